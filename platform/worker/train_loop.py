"""What each Ray Train worker runs: the page between the stream and the model.

    pipelines/stream.py ─► batch ─► models/star.py ─► loss ─► step ─► journal (rank 0)
      (Ray Data, CPUs)                                          └───► checkpoint (rank 0)

Every random number comes from (seed, step, rank) or (seed, position), so a run that was killed and resumed draws what it
would have drawn. What a step changes is in training_state.py, what a rank writes goes through run_record.py.
"""

from __future__ import annotations

import time
from typing import Any

import ray.train
import ray.train.torch
import torch

from starlab.models.star import StarTransformer
from starlab.pipelines.batch import Batch
from starlab.pipelines.clip import DataError
from starlab.pipelines.schedule import rank_slice
from starlab.pipelines.stream import Batches, train_batches
from starlab.platform.cluster.device import mismatch
from starlab.platform.errors import StopRunError
from starlab.platform.preemption import why_to_end
from starlab.platform.recipe import loss_guard
from starlab.platform.recipe.loss_guard import Verdict
from starlab.platform.recipe.optimizer import learning_rate
from starlab.platform.recipe.precision import agree_on_precision
from starlab.platform.recipe.ranks import Ranks
from starlab.platform.recipe.train_step import TrainStep
from starlab.platform.recipe.training_state import TrainingState
from starlab.platform.runs.checkpoint import Checkpoint, find_checkpoint
from starlab.platform.runs.lease import check_fence
from starlab.platform.runs.system_metrics import worker_metrics
from starlab.platform.worker.job import TrainJob
from starlab.platform.worker.looks import Looks
from starlab.platform.worker.predictions import write_predictions
from starlab.platform.worker.run_writer import RunRecord
from starlab.platform.worker.step_profile import StepProfile
from starlab.platform.worker.watchdog import Watchdog


def train_loop(config: dict[str, TrainJob]) -> None:
    """Train from the newest checkpoint (or from nothing) to the end, then look at the test part once."""
    context, job = ray.train.get_context(), config["job"]
    ranks = Ranks(context.get_world_rank(), context.get_world_size())
    device = ray.train.torch.get_device()
    if device.type == "cuda" and (problem := mismatch(device.index)):
        raise RuntimeError(problem)
    check_fence(job.folder.path, job.fence)  # a group that Ray starts again may come after another process took the run over
    watchdog = Watchdog(job.folder.path, ranks.rank, job.spec.resources.stuck_after_seconds)
    worker = _Worker(job, ranks, watchdog)
    try:
        with worker_metrics(job.folder, context.get_node_rank(), context.get_local_rank()):
            if worker.train():
                worker.finish()
    except StopRunError as error:
        if ranks.rank == 0:
            job.folder.write_json("stopped.json", {"reason": str(error), "step": worker.state.step})
    finally:
        worker.profile.close()
        worker.record.close()
        watchdog.close()


class _Worker:
    """One rank: its model replica, its place in the run, its record."""

    def __init__(self, job: TrainJob, ranks: Ranks, watchdog: Watchdog) -> None:
        self.job, self.ranks = job, ranks
        self.spec, self.folder = job.spec, job.folder
        self.record = RunRecord(job, ranks.rank)
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(self.spec.resources.threads_per_worker)
        low, high = rank_slice(self.spec.train.global_batch, ranks.rank, ranks.world)
        self.clips_per_step = high - low
        self.evaluate_at, self.epoch_ends = job.evaluation_steps(), job.epoch_steps()
        self.last_look: dict[str, float] = {}  # step and the selection's metrics
        self.ending: str | None = None
        """Why this rank wants the run to end; all ranks hear of it before the next step."""

        checkpoint = self._agree_on_checkpoint()
        # Started before the model is built, so that the first batch is ready when the model is.
        self.batches = self._stream(checkpoint.step if checkpoint else 0)
        torch.manual_seed(self.spec.train.seed)
        self.core = StarTransformer(self.spec.model).to(self.device)
        self.precision = agree_on_precision(job, ranks, self.core, self.clips_per_step, self.device)
        self.core.register_forward_pre_hook(lambda *_: watchdog.beat())
        self.state = TrainingState(self.core, self.spec.train, self.device, self.precision)
        self.state.guard.recall(ranks.first(self.folder.read_json(loss_guard.FILE)))
        self.local = torch.zeros_like(self.state.pending)  # this rank's sums since they were last folded into `pending`
        if checkpoint:
            self.state.restore(checkpoint)
        self.looks = Looks(job, ranks, self.state, self.device, self.record)
        self.optimization = TrainStep(self.state, self.spec.train, ranks, self.device, job.total_steps)
        self.profile = StepProfile(self.folder.artifacts / "trace.json.gz", ranks.rank == 0 and self.spec.train.profile)

    # ------------------------------------------------------------------ the loop

    def train(self) -> bool:
        """Step through what is left of the stream; False when the run ends before, and goes on another time."""
        config = self.spec.train
        if self.state.step in self.evaluate_at:  # the checkpoint was taken just before an evaluation, which starts again
            self._end_epoch(self.evaluate_at[self.state.step], checkpointed=True)
        mark, waited, since = time.perf_counter(), 0.0, self.state.step
        while self.state.step < self.job.total_steps:
            asked = time.perf_counter()
            batch = self.batches.next(give_up=self._wants_to_end)
            waited += time.perf_counter() - asked
            if self._agree_to_end() or batch is None:
                self._save()
                self.record.preempted(self.state.step, self.ending or "the run was asked to end")
                return False
            self._step(batch)
            self.profile.step()
            step, last_of_epoch = self.state.step, self.state.step in self.evaluate_at
            logged = step % config.log_every_steps == 0 or last_of_epoch
            if logged:
                self._log_curve(time.perf_counter() - mark, waited, max(0, step - since))
                mark, waited, since = time.perf_counter(), 0.0, step
            if last_of_epoch:
                self._end_epoch(self.evaluate_at[step])
                mark = time.perf_counter()
            elif self._is_checkpoint(step):
                self._save()
            if logged and not self.job.look_at_test and self._trial_is_given_up():
                return True
        return True

    def _is_checkpoint(self, step: int) -> bool:
        """At every epoch's end and as often as asked, but not amid bad steps: a roll-back is to go to before them."""
        every = self.spec.train.checkpoint_every_steps
        due = step in self.epoch_ends or bool(every and step % every == 0)
        return due and not self.state.guard.streak

    def _step(self, batch: Batch) -> None:
        """One optimizer step, or none where a loss is bad on any rank."""
        state = self.state
        state.unreadable.update(batch.unreadable)
        if len(batch.labels) < self.clips_per_step:
            raise DataError(f"no readable replacement was found for a clip of step {state.step}: {batch.unreadable[:3]}")
        if state.step in state.guard.left_out:
            state.step += 1
            return
        sums = self.optimization.gradients(batch)
        bad = bool(self.ranks.sum((~sums[0].isfinite()).to(sums.dtype)) > 0)
        verdict = state.guard.judge(state.step, bad or not self.optimization.clip())
        if verdict is Verdict.GOOD:
            self.optimization.apply()
            self.local += sums
        else:
            self.optimization.drop()
            self._heed(verdict)

    def _wants_to_end(self) -> bool:
        self.ending = self.ending or why_to_end(self.folder, self.ranks.rank)
        return self.ending is not None or self.record.lost

    def _agree_to_end(self) -> bool:
        """Before every step, with a batch or, where the stream has run dry, without: does any rank want the run to end here?"""
        return bool(self.ranks.sum(torch.tensor(float(self._wants_to_end()), device=self.device)) > 0)

    def _heed(self, verdict: Verdict) -> None:
        """A bad step is recorded; by the verdict it is left out, all goes back to the newest checkpoint, or the run stops."""
        state, rank = self.state, self.ranks.rank
        self.record.points(state.step + 1, {"train/bad_steps": float(len(state.guard.streak))})
        if rank == 0:
            self.record.event("bad_loss", f"a loss or gradient was not finite; {verdict.value}", state.step)
        if verdict is Verdict.STOP:
            raise StopRunError(f"{state.guard.complaint()}; try a lower train.lr or train.clip_norm=1.0")
        if verdict is Verdict.ROLL_BACK:
            self.record.wait()
            checkpoint = self._agree_on_checkpoint()
            if checkpoint is None:
                raise StopRunError(f"{state.guard.complaint()}, and there is no checkpoint to go back to")
            self.local.zero_()
            state.guard.give_up_on_streak(self.folder if rank == 0 else None)
            state.restore(checkpoint)
            self.batches.close()
            self.batches = self._stream(state.step)
        else:
            state.step += 1

    # ------------------------------------------------------------------ curve, epochs, test

    def _log_curve(self, seconds: float, waited: float, steps: int) -> None:
        self._fold()
        state = self.state
        loss, hits, clips, _ = state.pending.tolist()
        state.epoch += state.pending
        state.pending.zero_()
        if clips:  # none where every step was left out
            self.record.points(
                state.step,
                {
                    "train/loss": loss / clips,
                    "train/top1": hits / clips,
                    "train/lr": learning_rate(self.spec.train, state.step - 1, self.job.total_steps),
                    "system/clips_per_second": steps * self.spec.train.global_batch / seconds,
                    "system/data_wait": waited / seconds,
                },
            )

    def _end_epoch(self, epoch: int, *, checkpointed: bool = False) -> None:
        """Checkpoint, then look at the selection clips while it is being written."""
        if not checkpointed and not self.state.guard.streak:
            self._save()
        state = self.state
        loss, hits, clips, _ = state.epoch.tolist()
        self._gather_unreadable()
        if complaint := state.too_many_unreadable(self.spec.data.max_unreadable_fraction):
            raise StopRunError(f"{complaint}; all are listed in {self.folder.path / 'unreadable.json'}")
        looked = self.looks.at(self.job.selection, self.spec.data.select)
        selected = looked.metrics()
        better = not state.best or (selected["top1"], -selected["loss"]) > (state.best["top1"], -state.best["loss"])
        is_kept = self.ranks.first(checkpointed or self.record.wait() == state.step)
        self.last_look = {"step": float(state.step), **selected}
        if better and is_kept:  # a checkpoint that the disk had no room for cannot be the best
            state.best = self.last_look
        state.epoch.zero_()
        train = {"epoch/train_loss": loss / clips, "epoch/train_top1": hits / clips} if clips else {}
        self.record.points(
            state.step,
            {
                "epoch": float(epoch),
                **train,
                "data/unreadable_clips": float(len(state.unreadable)),
                **{f"val/{name}": value for name, value in selected.items()},
                "val/clips": float(len(looked.clips)),
            },
        )
        best = state.best.get("top1", selected["top1"])
        ray.train.report({"epoch": epoch, "step": state.step, "val_top1": selected["top1"], "best_val_top1": best})

    def finish(self) -> None:
        """Predict every test clip once with the best checkpoint, if the run is to look; rank 0 writes `result.json`."""
        self.record.wait()
        state = self.state
        best = self.ranks.first(state.best or self.last_look)
        result: dict[str, Any] = {
            "steps": state.step,
            "total_steps": self.job.total_steps,
            "best_step": int(best["step"]),
            "selected_by": self.spec.data.select,
            "precision": self.precision,
            "classes": list(self.job.source.classes),
            "val": {name: value for name, value in best.items() if name != "step"},
        }
        if self.job.look_at_test:
            if state.best:  # else no checkpoint could be kept, and the last weights are all there is
                self.core.load_state_dict(find_checkpoint(self.folder.stored_checkpoints, result["best_step"]).weights())
            evaluation = self.looks.at(self.job.parts.test, "test", *self.spec.data.test_views, averaged=bool(state.best))
            self.record.points(state.step, {f"test/{name}": value for name, value in evaluation.metrics().items()})
            result["test"] = evaluation.metrics()
            result["test_clips"] = len(evaluation.clips)
            result["confusion"] = evaluation.confusion().tolist()
            if self.ranks.rank == 0:
                write_predictions(self.folder.artifacts / "predictions.parquet", evaluation, self.job.source)
        self._gather_unreadable()
        result["unreadable"] = state.unreadable
        if self.ranks.rank == 0 and not self.record.lost:
            self.folder.write_json("result.json", result)

    # ------------------------------------------------------------------ small parts

    def _save(self) -> None:
        self._fold()
        if (self.state.pending + self.state.epoch)[3] > 0:
            self._gather_unreadable()
        self.record.save(self.state, self.spec.to_dict())

    def _agree_on_checkpoint(self) -> Checkpoint | None:
        """Rank 0 picks the newest whole checkpoint; the others load the same one."""
        newest = self.record.newest_checkpoint() if self.ranks.rank == 0 else None
        step = self.ranks.first(newest.step if newest else -1)
        if step < 0:
            return None
        return newest or find_checkpoint(self.folder.stored_checkpoints, step)

    def _stream(self, first_step: int) -> Batches:
        plan = self.job.plan(self.ranks.rank, self.ranks.world, first_step)
        return train_batches(self.job.source, self.spec.data, plan, self.job.total_steps - first_step, self.job.limits)

    def _fold(self) -> None:
        """Add every rank's sums to `pending`, which is the same on all of them."""
        self.state.pending += self.ranks.sum(self.local)
        self.local.zero_()

    def _gather_unreadable(self) -> None:
        """Every rank's list of unreadable clips becomes all ranks' list."""
        shares = self.ranks.gather(self.state.unreadable)
        self.state.unreadable = {clip: reason for share in shares for clip, reason in share.items()}
        self.record.list_unreadable(self.state.unreadable)

    def _trial_is_given_up(self) -> bool:
        """Rank 0 looks; without a look at the selection clips there is no result yet, so the trial goes on to its first."""
        return self.ranks.first(bool(self.state.best) and self.folder.asked_to_end)
