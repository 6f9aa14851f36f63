"""What a rank leaves behind: metrics and checkpoints (rank 0 alone, and only while the run is its own), and events."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

from starlab.platform.preemption import DONE
from starlab.platform.recipe.training_state import TrainingState
from starlab.platform.runs import events, journal
from starlab.platform.runs.checkpoint import Checkpoint, newest_checkpoint, remove_orphans
from starlab.platform.runs.checkpoint_writer import CheckpointWriter
from starlab.platform.runs.lease import LeaseLostError, check_fence
from starlab.platform.worker.job import TrainJob


class RunRecord:
    """The pen of one rank."""

    def __init__(self, job: TrainJob, rank: int) -> None:
        self._job, self._rank, self._folder = job, rank, job.folder
        self._lost = False
        self._journal = journal.Journal(self._folder.path / journal.FILE) if rank == 0 else None
        self._journal_fails = False
        self._writer = (
            CheckpointWriter(job.folder.stored_checkpoints, self._check, self._journal.sync, self._alert)
            if self._journal
            else None
        )

    @property
    def lost(self) -> bool:
        """Whether another process has taken the run over; known to rank 0 alone."""
        return self._lost

    def newest_checkpoint(self) -> Checkpoint | None:
        """Rank 0's: the newest whole checkpoint; damaged ones are told of, half-written ones deleted.

        Raises:
            LeaseLostError: the run is somebody else's by now.
            OSError: as `checkpoint.newest_checkpoint`.
        """
        self._check()
        storage = self._folder.stored_checkpoints
        for name in remove_orphans(storage):
            self.event("orphan_removed", f"{name} was never completed; deleted")
        newest, complaints = newest_checkpoint(storage)
        for complaint in complaints:
            self.event("checkpoint_passed_over", complaint)
        if newest:
            self.event("resumed", f"from {storage}/{newest.name}", newest.step)
            missing = newest.state["journal_bytes"] - (self._folder.path / journal.FILE).stat().st_size
            if missing > 0:
                self.event("journal_failed", f"{missing} bytes of metrics that this checkpoint knew of are gone", newest.step)
        return newest

    def points(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of a step. A disk without room delays them; it does not stop the training."""
        if self._journal is None or not self._own():
            return
        try:
            self._journal.log(step, metrics)
        except OSError as error:
            if not self._journal_fails:
                self.event("journal_failed", f"metrics wait in memory: {error}", step)
            self._journal_fails = True
        else:
            self._journal_fails = False

    def event(self, kind: str, says: str, step: int | None = None) -> None:
        """Something that the user should know of."""
        events.record(self._folder.path, kind, says, rank=self._rank, step=step)

    def save(self, state: TrainingState, spec: Mapping[str, object]) -> None:
        """Start writing a checkpoint; `wait` ends when it is there, or could not be written."""
        if self._writer is None or self._journal is None or not self._own():
            return
        numbers = {**state.numbers(), "journal_bytes": self._journal.num_bytes, "spec": dict(spec)}
        keep = {int(state.best["step"])} if state.best else set()
        self._guarded(lambda writer: writer.save(state.step, state.tensors(), numbers, keep))

    def wait(self) -> int | None:
        """Until no checkpoint is in flight; the step of the last one written by this process."""
        self._guarded(CheckpointWriter.wait)
        return self._writer.written if self._writer else None

    def preempted(self, step: int, reason: str) -> None:
        """Tell the driver that the run ended before its end, as asked."""
        if self._rank == 0 and self._own():
            written = self.wait()
            kept = f"the checkpoint of step {step} is complete"
            if written != step:
                kept = f"the checkpoint of step {step} could not be written, so an older one counts"
            self.event("preempted", f"{reason}; {kept}", step)
            self._folder.write_json(DONE, {"step": step, "reason": reason, "kept": kept})

    def list_unreadable(self, clips: Mapping[str, str]) -> None:
        """Reason by clip id, for the user to read; on a full disk the next list has them too."""
        if self._rank == 0 and clips and self._own():
            with contextlib.suppress(OSError):
                self._folder.write_json("unreadable.json", dict(clips))

    def close(self) -> None:
        """Nothing stays in flight."""
        self.wait()
        if self._journal:
            try:
                self._journal.close()
            except OSError as error:
                self.event("journal_failed", f"the last metrics could not be written: {error}")

    def _own(self) -> bool:
        if self._lost:
            return False
        try:
            self._check()
        except LeaseLostError as error:
            self._lose(error)
        return not self._lost

    def _check(self) -> None:
        check_fence(self._folder.path, self._job.fence)

    def _lose(self, error: LeaseLostError) -> None:
        self._lost = True
        print(error, flush=True)  # the run's folder is no longer ours to write to

    def _guarded(self, use: Callable[[CheckpointWriter], None]) -> None:
        if self._writer is None:
            return
        try:
            use(self._writer)
        except LeaseLostError as error:
            self._lose(error)

    def _alert(self, step: int, says: str) -> None:
        self.event("checkpoint_failed", says, step)
