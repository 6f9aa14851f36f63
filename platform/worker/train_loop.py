"""The training loop of each Ray Train worker, which platform/trainer.py starts: the page between stream and model.

    pipelines/stream.py ─► batch ─► models/star.py ─► loss ─► step ─► journal (rank 0)
      (Ray Data, CPUs)                                          └───► checkpoint (rank 0)

Every random number derives from (seed, step, rank) or (seed, position), so a run that was killed and resumed draws the same
numbers. recipe/training_state.py holds everything that a step changes; run_writer.py writes the run's files.
"""

from __future__ import annotations

import ray.train.torch
import torch

from starlab.models.star import StarTransformer
from starlab.pipelines.batch import Batch
from starlab.pipelines.clip import DataError
from starlab.pipelines.datasets import not_official
from starlab.pipelines.schedule import rank_slice
from starlab.pipelines.stream import Batches, train_batches
from starlab.platform.cluster.device import check_device
from starlab.platform.errors import StopRunError
from starlab.platform.recipe.loss_guard import Verdict
from starlab.platform.recipe.metrics import is_better
from starlab.platform.recipe.optimizer import learning_rate
from starlab.platform.recipe.ranks import Ranks
from starlab.platform.recipe.sums import Sums
from starlab.platform.recipe.train_step import TrainStep
from starlab.platform.recipe.training_state import TrainingState, weights_to_evaluate
from starlab.platform.runs import metric_names as names
from starlab.platform.runs.checkpoint import Checkpoint, find_checkpoint
from starlab.platform.runs.end_request import read_early_end
from starlab.platform.runs.lease import check_fence
from starlab.platform.runs.provenance import note_device
from starlab.platform.runs.records import BadSteps, Result, WorkerNodes
from starlab.platform.runs.system_metrics import worker_metrics
from starlab.platform.worker.calibration import calibrate, keep_validation, median_clip_frames
from starlab.platform.worker.end_requests import why_to_end
from starlab.platform.worker.evaluate import Evaluator
from starlab.platform.worker.initial_weights import take_initial_weights
from starlab.platform.worker.precision import agree_on_precision
from starlab.platform.worker.predictions import write_predictions
from starlab.platform.worker.run_writer import RunWriter
from starlab.platform.worker.step_profile import StepProfile
from starlab.platform.worker.step_timer import StepTimer
from starlab.platform.worker.tasks import TrainTask
from starlab.platform.worker.watchdog import Watchdog

STEPS_AHEAD = {"cuda": 1}
"""Steps that the device may still be doing when the host judges, by device type, so that a GPU always has work. Else 0."""


def train_loop(config: dict[str, TrainTask]) -> None:
    """Train from the newest checkpoint (or from the start) to the end, then evaluate the test part once."""
    context, task = ray.train.get_context(), config["task"]
    device = ray.train.torch.get_device()
    check_device(device)
    ranks = Ranks.of(context.get_world_rank(), context.get_world_size(), device, task.spec.resources.collective_seconds)
    check_fence(task.folder.path, task.fence)  # another process may own the run when Ray restarts a group
    nodes = WorkerNodes(nodes=tuple(ranks.gather(ray.get_runtime_context().get_node_id())))
    if ranks.rank == 0:
        task.folder.write(nodes)
        note_device(task.folder, ranks.world, device)
    watchdog = Watchdog(task.folder.path, ranks.rank, task.spec.resources.stuck_after_seconds)
    worker = _Worker(task, ranks, device, watchdog)
    try:
        with worker_metrics(task.folder, context.get_node_rank(), context.get_local_rank()):
            if worker.train():
                worker.finish()
    except StopRunError as error:
        worker.writer.stopped(worker.state.step, str(error))
    finally:
        worker.profile.close()
        worker.writer.close()
        watchdog.close()


class _Worker:
    """One rank of a training: its model replica, its stream, its progress and its files."""

    def __init__(self, task: TrainTask, ranks: Ranks, device: torch.device, watchdog: Watchdog) -> None:
        self.task, self.ranks, self.device = task, ranks, device
        self.spec, self.folder, self.steps = task.spec, task.folder, task.steps
        self.writer = RunWriter(task, ranks.rank)
        if device.type == "cpu":
            torch.set_num_threads(self.spec.resources.threads_per_worker)
        self.clips_per_step = len(range(*rank_slice(self.spec.train.global_batch, ranks.rank, ranks.world)))
        self.evaluate_at, self.checkpoint_at = self.steps.evaluations(), self.steps.checkpoints_between()
        self.last_evaluation: dict[str, float] = {}  # step and the selection's metrics
        self.ending: str | None = None  # why this rank wants the run to end; all ranks agree on it before the next step
        checkpoint = self._agree_on_checkpoint()
        # Started before the model is built, so that the first batch is ready when the model is.
        self.batches = self._stream(checkpoint.step if checkpoint else 0)
        torch.manual_seed(self.spec.train.seed)
        self.core = StarTransformer(self.spec.model).to(device)
        self.precision = agree_on_precision(task, ranks, device)
        self.core.tokens.register_forward_pre_hook(lambda *_: watchdog.beat())  # every pass makes tokens
        self.state = TrainingState(self.core, self.spec.train, device, self.precision, take_initial_weights(task, self.core))
        bad_steps = ranks.first(self.folder.read(BadSteps)) or BadSteps()
        self.state.guard.left_out, self.state.guard.rollbacks = set(bad_steps.left_out), bad_steps.rollbacks
        self.local = Sums.zero(device)  # this rank's sums since they were last folded into `pending`
        if checkpoint:
            self.state.restore(checkpoint.step, checkpoint.tensors, checkpoint.state)
        self.evaluator = Evaluator(task, ranks, self.state, device, self.writer)
        self.optimization = TrainStep(self.state, self.spec.train, ranks, device, self.steps.schedule_steps)
        self.profile = StepProfile(self.folder.artifacts / "trace.json.gz", ranks.rank == 0 and self.spec.train.profile)

    def train(self) -> bool:
        """Train on the rest of the stream. Returns False if the run was asked to end before that."""
        if self.state.step in self.evaluate_at:  # the checkpoint was saved before an evaluation that did not finish
            self._evaluate(self.evaluate_at[self.state.step], checkpointed=True)
        timer = StepTimer(self.state.step)
        while self.state.step < self.steps.total_steps:
            with timer.waiting():
                batch = self.batches.next(give_up=self._wants_to_end)
            if self.ranks.any(self._wants_to_end()) or batch is None:
                self._judge()
                self._save()
                self.writer.preempted(self.state.step, self.ending or "the run was asked to end")
                return False
            self._step(batch)
            self.profile.step()
            if self._is_logged(self.state.step) or self.state.step in self.checkpoint_at:
                self._judge()  # which may go back to an earlier step
            step = self.state.step
            if logged := self._is_logged(step):
                self._log_curve(timer)
                timer.restart(step)
            if step in self.evaluate_at:
                self._evaluate(self.evaluate_at[step])
                timer.restart(step)
            elif step in self.checkpoint_at and not self.state.guard.streak:  # a roll-back must go back to before the bad steps
                self._save()
            if logged and self.task.is_trial and self._trial_is_given_up():
                return True
        return True

    def _is_logged(self, step: int) -> bool:
        return step % self.spec.train.log_every_steps == 0 or step in self.evaluate_at

    def _step(self, batch: Batch) -> None:
        """Do one optimizer step, which changes nothing if the loss or gradient is bad on any rank."""
        state = self.state
        state.unreadable.update(batch.unreadable)
        if len(batch.labels) < self.clips_per_step:
            raise DataError(f"no readable replacement was found for a clip of step {state.step}: {batch.unreadable[:3]}")
        if state.step in state.guard.left_out:
            state.step += 1
            return
        step, sums = state.step, self.optimization.gradients(batch)
        bad = self.optimization.apply()
        self.local.add(sums, unless=bad)
        state.guard.note(step, bad)
        self._judge(except_last=STEPS_AHEAD.get(self.device.type, 0))

    def _judge(self, except_last: int = 0) -> None:
        """Wait until the device has done all steps except the last few, and act on those that were bad."""
        for step, verdict in self.state.guard.verdicts(except_last):
            if verdict is not Verdict.GOOD:
                self.writer.bad_step(self.state.guard, step, verdict.value)
            if verdict in (Verdict.ROLL_BACK, Verdict.STOP):
                self._give_up(verdict, step)

    def _give_up(self, verdict: Verdict, step: int) -> None:
        """Go back from a bad step to the newest checkpoint, or stop the run."""
        state = self.state
        state.step = step
        if verdict is Verdict.STOP:
            raise StopRunError(f"{state.guard.complaint()}; try a lower train.lr or train.clip_norm=1.0")
        self.writer.wait()
        checkpoint = self._agree_on_checkpoint()
        if checkpoint is None:
            raise StopRunError(f"{state.guard.complaint()}, and there is no checkpoint to go back to")
        self.local.clear()
        state.guard.give_up_on_streak()
        self.writer.skip_from_now_on(state.guard)
        state.restore(checkpoint.step, checkpoint.tensors, checkpoint.state)
        self.batches.close()
        self.batches = self._stream(state.step)

    def _wants_to_end(self) -> bool:
        self.ending = self.ending or why_to_end(self.folder, self.ranks.rank)
        return self.ending is not None or self.writer.lost

    def _trial_is_given_up(self) -> bool:
        """Return whether the search asked this trial to end. Without an evaluation there is no result yet, so it continues."""
        return self.ranks.first(bool(self.state.best) and read_early_end(self.folder) is not None)

    def _log_curve(self, timer: StepTimer) -> None:
        self._fold()
        state = self.state
        totals = state.pending.totals()
        state.epoch.add(state.pending)
        state.pending.clear()
        if totals.clips:  # no clips if every step was left out
            self.writer.points(
                state.step,
                {
                    names.TRAIN_LOSS: totals.mean_loss,
                    names.TRAIN_TOP1: totals.top1,
                    names.TRAIN_RATE: learning_rate(self.spec.train, state.step - 1, self.steps.schedule_steps),
                    names.CLIPS_PER_SECOND: timer.steps_per_second(state.step) * self.spec.train.global_batch,
                    names.DATA_WAIT: timer.waiting_share(),
                },
            )

    def _evaluate(self, epoch: int, *, checkpointed: bool = False) -> None:
        """Start a checkpoint, and evaluate the selection part, if there is one, while it is being written."""
        if not checkpointed and not self.state.guard.streak:
            self._save()
        state = self.state
        totals = state.epoch.totals()
        self._gather_unreadable()
        if complaint := state.too_many_unreadable(self.spec.data.max_unreadable_fraction):
            raise StopRunError(f"{complaint}; all are listed in {self.folder.path / 'unreadable.json'}")
        selected, clips = self.evaluator.evaluate_selection()
        is_kept = self.ranks.first(checkpointed or self.writer.wait() == state.step)
        self.last_evaluation = {"step": float(state.step), **selected}
        if self.spec.data.select == "last":
            state.best = self.last_evaluation if is_kept else {}
        elif is_kept and is_better(selected, state.best, self.spec.train.select_by):  # never one that is not on the disk
            state.best = self.last_evaluation
        if self.ranks.rank == 0 and state.best is self.last_evaluation:
            keep_validation(self.task, self.evaluator.selection)
        state.epoch.clear()
        points = {names.UNREADABLE_CLIPS: float(len(state.unreadable)), names.EPOCH: float(epoch)}
        if totals.clips:  # none where every step was left out
            points = {names.EPOCH_TRAIN_LOSS: totals.mean_loss, names.EPOCH_TRAIN_TOP1: totals.top1} | points
        if selected:
            val = {f"{names.VAL}{name}": value for name, value in selected.items()} | {names.VAL_CLIPS: float(clips)}
            points = {names.BEST_VAL_TOP1: state.best.get("top1", selected["top1"])} | val | points
        self.writer.points(state.step, points)
        ray.train.report({"epoch": epoch, "step": state.step, **selected})

    def finish(self) -> None:
        """Write the result. Unless the run is a trial, evaluate the best checkpoint on the test part first."""
        self.writer.wait()
        state = self.state
        best = dict(self.ranks.first(state.best or self.last_evaluation))
        step = int(best.pop("step"))
        test = None
        if not self.task.is_trial:
            if state.best:  # otherwise no checkpoint was kept, so the last weights are used
                tensors = find_checkpoint(self.folder.stored_checkpoints, step).tensors
                self.core.load_state_dict(weights_to_evaluate(tensors))
            test = self.evaluator.evaluate(self.task.parts.test, "test", *self.spec.data.test_views, averaged=bool(state.best))
            self.writer.points(state.step, {f"{names.TEST}{name}": value for name, value in test.metrics().items()})
            if self.ranks.rank == 0:
                write_predictions(self.folder.artifacts / "predictions.parquet", test, self.task.source)
        self._gather_unreadable()
        self.writer.finished(
            Result(
                steps=state.step,
                total_steps=self.steps.total_steps,
                epochs=max((epoch for at, epoch in self.evaluate_at.items() if at <= state.step), default=0),
                best_step=step,
                selected_by=self.spec.data.select,
                precision=self.precision,
                classes=tuple(self.task.source.classes),
                val=best,
                test=test.metrics() if test else None,
                test_clips=len(test.clips) if test else None,
                confusion=test.confusion().tolist() if test else None,
                unreadable=state.unreadable,
                clip_frames=median_clip_frames(self.task),
                calibration=calibrate(self.task, best, test) if self.ranks.rank == 0 else None,
                not_official=not_official(self.spec.data.dataset, self.spec.data.protocol, self.task.source.clips),
            )
        )

    def _save(self) -> None:
        self._fold()
        if self.state.pending.totals().unreadable + self.state.epoch.totals().unreadable > 0:
            self._gather_unreadable()
        self.writer.save(self.state, self.spec.to_dict())

    def _agree_on_checkpoint(self) -> Checkpoint | None:
        """Load the newest whole checkpoint. Rank 0 chooses it and the other ranks load the same one."""
        newest = self.writer.newest_checkpoint() if self.ranks.rank == 0 else None
        step = self.ranks.first(newest.step if newest else -1)
        if step < 0:
            return None
        return newest or find_checkpoint(self.folder.stored_checkpoints, step)

    def _stream(self, first_step: int) -> Batches:
        plan = self.task.plan(self.ranks.rank, self.ranks.world, first_step)
        steps = self.steps.total_steps - first_step
        return train_batches(self.task.source, self.spec.data, plan, steps, self.task.limits)

    def _fold(self) -> None:
        """Add the sums of all ranks to `pending`, which is equal on all ranks."""
        self.ranks.sum(self.local.tensor)
        self.state.pending.add(self.local)
        self.local.clear()

    def _gather_unreadable(self) -> None:
        """Merge the unreadable clips of all ranks, on every rank, and list them in the run's folder."""
        shares = self.ranks.gather(self.state.unreadable)
        self.state.unreadable = {clip: reason for share in shares for clip, reason in share.items()}
        self.writer.list_unreadable(self.state.unreadable)
