"""Writes to the run's folder: events on every rank; metrics, checkpoints and the outcome on rank 0."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

from starlab.platform.recipe.loss_guard import LossGuard
from starlab.platform.recipe.training_state import TrainingState
from starlab.platform.runs import events, journal
from starlab.platform.runs.checkpoint import Checkpoint, newest_checkpoint, remove_orphans
from starlab.platform.runs.checkpoint_writer import CheckpointWriter
from starlab.platform.runs.lease import LeaseLostError, check_fence
from starlab.platform.runs.metric_names import TRAIN_BAD_STEPS
from starlab.platform.runs.records import BadSteps, Outcome, Result
from starlab.platform.worker.tasks import TrainTask


class RunWriter:
    """Writes the files of one rank. Nothing more is written once another process owns the run."""

    def __init__(self, task: TrainTask, rank: int) -> None:
        self._task, self._rank, self._folder = task, rank, task.folder
        self._lost = False
        self._journal = journal.Journal(self._folder.path / journal.FILE, read=False) if rank == 0 else None
        self._journal_fails = False
        self._writer = (
            CheckpointWriter(task.folder.stored_checkpoints, self._check, self._journal.sync, self._alert)
            if self._journal
            else None
        )

    @property
    def lost(self) -> bool:
        """Whether another process has taken over the run. Only rank 0 knows."""
        return self._lost

    def newest_checkpoint(self) -> Checkpoint | None:
        """Load the newest whole checkpoint, on rank 0. Damaged ones are reported as events; incomplete ones are deleted.

        Raises:
            LeaseLostError: Another process has taken over the run.
            OSError: As for `checkpoint.newest_checkpoint`.
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
                self.event("journal_failed", f"{missing} bytes of metrics from before this checkpoint are missing", newest.step)
        if self._journal:
            self._journal.expect_replay(newest.state["journal_bytes"] if newest else 0)
        return newest

    def points(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step. A full disk delays them and does not stop the training."""
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
        """Record an event that the user should know about."""
        events.record(self._folder.path, kind, says, rank=self._rank, step=step)

    def bad_step(self, guard: LossGuard, step: int, verdict: str) -> None:
        """Log that the step after `step` was bad, the number of bad steps in a row, and the verdict."""
        self.points(step + 1, {TRAIN_BAD_STEPS: float(len(guard.streak))})
        if self._rank == 0:
            self.event("bad_loss", f"a loss or gradient was not finite; {verdict}", step)

    def skip_from_now_on(self, guard: LossGuard) -> None:
        """Store the steps that a restarted run skips. If the disk is full, a restarted run does not skip them."""
        if self._rank == 0 and self._own():
            with contextlib.suppress(OSError):
                self._folder.write(BadSteps(left_out=tuple(sorted(guard.left_out)), rollbacks=guard.rollbacks))

    def save(self, state: TrainingState, spec: Mapping[str, object]) -> None:
        """Start writing a checkpoint. `wait` returns when it is complete or has failed."""
        if self._writer is None or self._journal is None or not self._own():
            return
        if self._writer.written is not None:
            self._journal.forget_before(self._writer.written)
        numbers = {**state.numbers(), "journal_bytes": self._journal.num_bytes, "spec": dict(spec)}
        keep = {int(state.best["step"])} if state.best else set()
        self._guarded(lambda writer: writer.save(state.step, state.tensors(), numbers, keep))

    def wait(self) -> int | None:
        """Wait until no checkpoint is being written. Returns the step of the last one that this process completed."""
        self._guarded(CheckpointWriter.wait)
        return self._writer.written if self._writer else None

    def preempted(self, step: int, reason: str) -> None:
        """Report to the driver that the run was asked to end and ended at `step`."""
        if self._rank == 0 and self._own():
            written = self.wait()
            kept = f"the checkpoint of step {step} is complete"
            if written != step:
                kept = f"the checkpoint of step {step} could not be written, so an older one counts"
            self.event("preempted", f"{reason}; {kept}", step)
            self._folder.write(Outcome(kind="preempted", step=step, reason=reason, kept=kept))

    def stopped(self, step: int, reason: str) -> None:
        """Report to the driver that the run stopped and would stop again for the same reason."""
        if self._rank == 0 and self._own():
            self._folder.write(Outcome(kind="stopped", step=step, reason=reason))

    def finished(self, result: Result) -> None:
        """Write the result, then report to the driver that the run finished."""
        if self._rank == 0 and self._own():
            self._folder.write(result)
            self._folder.write(Outcome(kind="finished", step=result.steps))

    def list_unreadable(self, clips: Mapping[str, str]) -> None:
        """Write `unreadable.json`, the reason by clip id. If the disk is full, the next call writes these clips too."""
        if self._rank == 0 and clips and self._own():
            with contextlib.suppress(OSError):
                self._folder.write_json("unreadable.json", dict(clips))

    def close(self) -> None:
        """Wait until no checkpoint is being written, and close the journal."""
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
        check_fence(self._folder.path, self._task.fence)

    def _lose(self, error: LeaseLostError) -> None:
        self._lost = True
        print(error, flush=True)  # the run's folder belongs to another process now

    def _guarded(self, use: Callable[[CheckpointWriter], None]) -> None:
        if self._writer is None:
            return
        try:
            use(self._writer)
        except LeaseLostError as error:
            self._lose(error)

    def _alert(self, step: int, says: str) -> None:
        self.event("checkpoint_failed", says, step)
