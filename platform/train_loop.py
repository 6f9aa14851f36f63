"""What each Ray Train worker runs: the page between the stream and the model.

    pipelines/stream.py ─► batch ─► models/star.py ─► loss ─► step ─► journal (rank 0)
      (Ray Data, CPUs)                                          └───► checkpoint (rank 0)

Every random number comes from (seed, step, rank) or (seed, position), so a run that was killed and resumed draws what it
would have drawn.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import ray.train
import ray.train.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from starlab.models.star import StarTransformer
from starlab.pipelines.clip import DataError
from starlab.pipelines.schedule import Schedule, TrainPlan, clip_weights, rank_slice
from starlab.pipelines.stream import Batch, train_batches
from starlab.platform import journal
from starlab.platform.checkpoint import Checkpoint, CheckpointWriter, find_checkpoint, newest_checkpoint
from starlab.platform.evaluate import Evaluation, evaluate
from starlab.platform.job import TrainJob
from starlab.platform.optimization import (
    AUTOCAST,
    choose_precision,
    learning_rate,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
)
from starlab.platform.predictions import write_predictions
from starlab.platform.ranks import Ranks
from starlab.platform.step_profile import StepProfile


class StopRunError(Exception):
    """Training again would end the same way, so the run stops; raised on every rank at the same step."""


def train_loop(config: dict[str, TrainJob]) -> None:
    """Train from the newest checkpoint (or from nothing) to the end, then look at the test part once."""
    context = ray.train.get_context()
    worker = _Worker(config["job"], context.get_world_rank(), context.get_world_size())
    try:
        worker.train()
        worker.finish()
    except StopRunError as error:
        if worker.ranks.rank == 0:
            worker.folder.write_json("stopped.json", {"reason": str(error), "step": worker.step})
    finally:
        worker.close()


class _Worker:
    """One rank: its model replica, its place in the run, and (rank 0) the run's journal and checkpoints."""

    def __init__(self, job: TrainJob, rank: int, world: int) -> None:
        self.job, self.ranks = job, Ranks(rank, world)
        self.spec, self.folder = job.spec, job.folder
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(self.spec.resources.threads_per_worker)

        checkpoint = self._agree_on_checkpoint()
        self.step = checkpoint.step if checkpoint else 0
        schedule = Schedule(self.spec.train.seed, len(job.parts.train), self._clip_weights())
        low, high = rank_slice(self.spec.train.global_batch, rank, world)
        self.clips_per_step = high - low
        plan = TrainPlan(schedule, job.parts.train, self.spec.train.global_batch, rank, world, first_step=self.step)
        # Started before the model is built, so that the first batch is ready when the model is.
        self.batches = train_batches(job.source, self.spec.data, plan, job.total_steps - self.step, job.limits)

        torch.manual_seed(self.spec.train.seed)
        self.core = StarTransformer(self.spec.model).to(self.device)
        self.optimizer = make_optimizer(self.core, self.spec.train)
        self.best: dict[str, float] = {}  # step and the selection's metrics of the best checkpoint so far
        self.unreadable: dict[str, str] = {}  # of this rank, by clip id
        self.local = torch.zeros(4, dtype=torch.float64, device=self.device)  # loss sum, hits, clips, unreadable
        self.pending = torch.zeros_like(self.local)  # the same over all ranks, since the last point of the curve
        self.epoch = torch.zeros_like(self.local)  # the same since the epoch began
        if checkpoint:
            self._restore(checkpoint)
        self.model: nn.Module = self.core
        if world > 1:
            # Batch-norm's running statistics are rank 0's, handed round before each evaluation: nothing reads them earlier.
            self.model = DistributedDataParallel(self.core, broadcast_buffers=False, gradient_as_bucket_view=True)
        self.precision = self._precision()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        if checkpoint and self.precision == "fp16":
            self.scaler.load_state_dict(checkpoint.state["scaler"])
        self.journal = journal.Journal(self.folder.path / journal.FILE) if rank == 0 else None
        self.writer = CheckpointWriter(self.folder.checkpoints) if rank == 0 else None
        self.profile = StepProfile(self.folder.artifacts / "trace.json.gz", rank == 0 and self.spec.train.profile)

    # ------------------------------------------------------------------ the loop

    def train(self) -> None:
        """Step through what is left of the stream, or until a search has given this trial up."""
        config = self.spec.train
        evaluate_at = self.job.evaluation_steps()
        mark, waited = time.perf_counter(), 0.0
        for _ in range(self.step, self.job.total_steps):
            asked = time.perf_counter()
            batch = next(self.batches)
            waited += time.perf_counter() - asked
            self._step(batch)
            self.profile.step()
            last_of_epoch = self.step in evaluate_at
            logged = self.step % config.log_every_steps == 0 or last_of_epoch
            if logged:
                seconds = time.perf_counter() - mark
                self._log_curve(seconds, waited)
                mark, waited = time.perf_counter(), 0.0
            if last_of_epoch:
                self._end_epoch(evaluate_at[self.step])
                mark = time.perf_counter()
            elif config.checkpoint_every_steps and self.step % config.checkpoint_every_steps == 0:
                self._save()
            if logged and not self.job.look_at_test and self._asked_to_end():
                return

    def _step(self, batch: Batch) -> None:
        config = self.spec.train
        self.unreadable.update(batch.unreadable)
        if len(batch.labels) < self.clips_per_step:
            raise DataError(f"no readable replacement was found for a clip of step {self.step}: {batch.unreadable[:3]}")
        torch.manual_seed(_step_seed(config.seed, self.step, self.ranks.rank))  # dropout and drop-path of this step
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step, self.job.total_steps)
        labels = torch.from_numpy(batch.labels).to(self.device)
        logits = self._forward(batch, AUTOCAST[self.precision])
        losses = cross_entropy(logits.float(), labels, reduction="none", label_smoothing=config.label_smoothing)
        # DDP averages over ranks; ranks may hold unequal slices. So: the sum here, times world / G, is the global mean.
        self.scaler.scale(losses.sum() * self.ranks.world / config.global_batch).backward()
        if config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.core.parameters(), config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        hits = (logits.detach().argmax(dim=1) == labels).sum()
        counts = torch.tensor([len(batch.labels), len(batch.unreadable)], dtype=torch.float64, device=self.device)
        self.local += torch.cat([torch.stack([losses.detach().double().sum(), hits.double()]), counts])
        self.step += 1

    def _forward(self, batch: Batch, autocast: torch.dtype | None) -> Tensor:
        frames = torch.from_numpy(batch.frames).to(self.device, non_blocking=True)
        joints = torch.from_numpy(batch.joints).to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, dtype=autocast, enabled=autocast is not None):
            logits: Tensor = self.model(frames, joints)
        return logits

    # ------------------------------------------------------------------ curve, epochs, test

    def _log_curve(self, seconds: float, waited: float) -> None:
        self._fold()
        loss, hits, clips, _ = self.pending.tolist()
        self.epoch += self.pending
        self.pending.zero_()
        if not math.isfinite(loss):
            raise StopRunError(f"the loss became {loss} by step {self.step}; try a lower train.lr or train.clip_norm=1.0")
        self._write_points(
            {
                "train/loss": loss / clips,
                "train/top1": hits / clips,
                "train/lr": learning_rate(self.spec.train, self.step - 1, self.job.total_steps),
                "system/clips_per_second": clips / seconds,
                "system/data_wait": waited / seconds,
            }
        )

    def _end_epoch(self, epoch: int) -> None:
        loss, hits, clips, unreadable = self.epoch.tolist()
        self.epoch.zero_()
        problems = self._gather_unreadable()
        drawn, limit = clips + unreadable, self.spec.data.max_unreadable_fraction
        if unreadable > limit * drawn:
            listed = "; ".join(f"{clip}: {reason}" for clip, reason in sorted(problems.items())[:5])
            raise StopRunError(
                f"{unreadable:.0f} of {drawn:.0f} clips drawn could not be read, more than data.max_unreadable_fraction "
                f"({limit}) allows; all are listed in {self.folder.path / 'unreadable.json'}. The first: {listed}"
            )
        selected = self._evaluate(self.job.selection).metrics()
        better = not self.best or (selected["top1"], -selected["loss"]) > (self.best["top1"], -self.best["loss"])
        if better:
            self.best = {"step": float(self.step), **selected}
        self._write_points(
            {
                "epoch": float(epoch),
                "epoch/train_loss": loss / clips,
                "epoch/train_top1": hits / clips,
                "data/unreadable_clips": float(len(problems)),
                **{f"val/{name}": value for name, value in selected.items()},
            }
        )
        self._save()
        ray.train.report({"epoch": epoch, "step": self.step, "val_top1": selected["top1"], "best_val_top1": self.best["top1"]})

    def finish(self) -> None:
        """Predict every test clip once with the best checkpoint, if the run is to look; rank 0 writes `result.json`."""
        if self.writer:
            self.writer.wait()
        self.best = self.ranks.first(self.best)
        result: dict[str, Any] = {
            "steps": self.step,
            "total_steps": self.job.total_steps,
            "best_step": int(self.best["step"]),
            "selected_by": self.spec.data.select,
            "precision": self.precision,
            "classes": list(self.job.source.classes),
            "val": {name: value for name, value in self.best.items() if name != "step"},
        }
        if self.job.look_at_test:
            best = find_checkpoint(self.folder.checkpoints, int(self.best["step"]))
            self.core.load_state_dict(_under("model/", best.tensors))
            evaluation = self._evaluate(self.job.parts.test, *self.spec.data.test_views)
            self.unreadable.update(evaluation.unreadable)
            self._write_points({f"test/{name}": value for name, value in evaluation.metrics().items()})
            result["test"] = evaluation.metrics()
            result["test_clips"] = len(evaluation.clips)
            result["confusion"] = evaluation.confusion().tolist()
            if self.ranks.rank == 0:
                write_predictions(self.folder.artifacts / "predictions.parquet", evaluation, self.job.source)
        result["unreadable"] = self._gather_unreadable()
        if self.ranks.rank == 0:
            self.folder.write_json("result.json", result)

    def _evaluate(self, clips: tuple[int, ...], times: int = 1, places: int = 1) -> Evaluation:
        self.ranks.share_buffers(self.core)
        return evaluate(
            self.core,
            self.job.source,
            self.spec.data,
            clips,
            times=times,
            places=places,
            ranks=self.ranks,
            device=self.device,
            limits=self.job.limits,
            batch=max(1, 2 * self.spec.train.global_batch // self.ranks.world),
            autocast=AUTOCAST[self.precision],
        )

    # ------------------------------------------------------------------ checkpoints

    def _save(self) -> None:
        self._fold()
        if self.writer is None:
            return
        assert self.journal is not None
        self.journal.sync()
        tensors = {f"model/{name}": value for name, value in self.core.state_dict().items()}
        tensors |= {f"optimizer/{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        state = {
            "pending": self.pending.tolist(),
            "epoch": self.epoch.tolist(),
            "best": self.best,
            "unreadable": self.unreadable,
            "scaler": self.scaler.state_dict(),
            "spec": self.spec.to_dict(),
        }
        self.writer.save(self.step, tensors, state, keep_steps={int(self.best["step"])} if self.best else set())

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.core.load_state_dict(_under("model/", checkpoint.tensors))
        load_optimizer_tensors(self.optimizer, _under("optimizer/", checkpoint.tensors))
        for sums, name in ((self.pending, "pending"), (self.epoch, "epoch")):
            sums.copy_(torch.tensor(checkpoint.state[name], dtype=sums.dtype))  # to wherever they live
        self.best = checkpoint.state["best"]
        self.unreadable = dict(checkpoint.state["unreadable"])

    def _agree_on_checkpoint(self) -> Checkpoint | None:
        """Rank 0 picks the newest whole checkpoint; the others load the same one."""
        step = -1
        if self.ranks.rank == 0:
            newest, complaints = newest_checkpoint(self.folder.checkpoints)
            for complaint in complaints:
                print(f"damaged checkpoint set aside: {complaint}", flush=True)
            step = newest.step if newest else -1
        step = self.ranks.first(step)
        return find_checkpoint(self.folder.checkpoints, step) if step >= 0 else None

    # ------------------------------------------------------------------ small parts

    def _fold(self) -> None:
        """Add every rank's sums to `pending`, which is the same on all of them."""
        self.pending += self.ranks.sum(self.local)
        self.local.zero_()

    def _gather_unreadable(self) -> dict[str, str]:
        merged = {clip: reason for share in self.ranks.gather(self.unreadable) for clip, reason in share.items()}
        if self.ranks.rank == 0 and merged:
            self.folder.write_json("unreadable.json", merged)
        return merged

    def _asked_to_end(self) -> bool:
        """Rank 0 looks; without a look at the selection clips there is no result yet, so the trial goes on to its first."""
        return self.ranks.first(bool(self.best) and self.folder.asked_to_end)

    def _precision(self) -> str:
        """The spec's, or for "auto" the choice made once for this run and kept on resume."""
        wanted = self.spec.train.precision
        if wanted != "auto":
            return wanted
        chosen = self.ranks.first(self.folder.read_json("choices.json").get("precision"))
        if chosen is None:
            data, model = self.spec.data, self.spec.model
            frames = torch.zeros(self.clips_per_step, data.frames, data.size, data.size, 3, dtype=torch.uint8)
            joints = torch.full((self.clips_per_step, data.frames, model.max_bodies, model.num_joints, 3), 0.5)
            chosen = self.ranks.first(choose_precision(self.core, frames.to(self.device), joints.to(self.device)))
            if self.ranks.rank == 0:
                self.folder.write_json("choices.json", {"precision": chosen})
        return str(chosen)

    def _clip_weights(self) -> bytes:
        source, oversample = self.job.source, self.spec.data.oversample
        labels = [source.clips[index].label for index in self.job.parts.train]
        if isinstance(oversample, dict):
            return clip_weights(labels, {source.classes.index(name): weight for name, weight in oversample.items()})
        return clip_weights(labels, oversample)

    def _write_points(self, metrics: Mapping[str, float]) -> None:
        if self.journal:
            self.journal.log(self.step, metrics)

    def close(self) -> None:
        """Nothing stays in flight."""
        self.profile.close()
        if self.writer:
            self.writer.wait()
        if self.journal:
            self.journal.close()


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _step_seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 4096 + rank
