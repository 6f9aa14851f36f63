"""Predicts every clip of a part exactly once, over any number of workers.

During a training, the `Evaluator` predicts the selection part at intervals and the test part at the end. The workers of
`starlab evaluate` run `evaluation_loop`.

Letters: C classes  n clips.
"""

from __future__ import annotations

from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
from numpy.typing import NDArray
from torch import nn

from starlab.models.star import StarTransformer, load_state
from starlab.pipelines.clip import ClipSource
from starlab.pipelines.schedule import EvalPlan
from starlab.pipelines.sources import DataConfig
from starlab.pipelines.stream import StreamLimits, eval_batches
from starlab.platform.cluster.device import check_device
from starlab.platform.errors import StopRunError
from starlab.platform.recipe.joint_error import joint_hits
from starlab.platform.recipe.metrics import PCK_DISTANCES, Evaluation, softmax
from starlab.platform.recipe.precision import AUTOCAST, set_gpu_arithmetic
from starlab.platform.recipe.ranks import Ranks
from starlab.platform.recipe.training_state import TrainingState, weights_to_evaluate
from starlab.platform.recipe.transfers import Download, Uploads
from starlab.platform.runs.checkpoint import find_checkpoint
from starlab.platform.worker.predictions import write_predictions
from starlab.platform.worker.run_writer import RunWriter
from starlab.platform.worker.tasks import EvaluationTask, TrainTask

_JOINT_HITS = len(PCK_DISTANCES) + 1
"""Columns of `joint_hits`."""


@dataclass(frozen=True, slots=True)
class Predictor:
    """Predicts clips on all ranks, each a share of them. Every rank gets all predictions."""

    source: ClipSource
    config: DataConfig
    ranks: Ranks
    device: torch.device
    limits: StreamLimits
    batch: int
    """Number of clips per batch on each rank."""
    autocast: torch.dtype | None
    upload: Uploads

    @classmethod
    def of(cls, task: TrainTask | EvaluationTask, ranks: Ranks, device: torch.device, precision: str) -> Predictor:
        """Create the predictor of a task, with batches of twice a rank's share of a training step."""
        batch = max(1, 2 * task.spec.train.global_batch // ranks.world)
        return cls(task.source, task.spec.data, ranks, device, task.limits, batch, AUTOCAST[precision], Uploads(device))

    @torch.no_grad()
    def predict(self, model: nn.Module, clips: tuple[int, ...], times: int = 1, places: int = 1) -> Evaluation:
        """Predict `clips`.

        If there are several views of a clip, the class probabilities are averaged over them and the returned logits are the
        logarithms of the means. A clip is omitted if any of its views cannot be read.

        Args:
            model: Equal on all ranks. It is evaluated in evaluation mode and then returned to its previous mode.
            clips: Source indices.
            times: Number of views of a clip in time.
            places: Number of spatial crops of each of these views.
        """
        was_training = model.training
        finder = model if isinstance(model, StarTransformer) and model.pose is not None else None
        model.eval()
        scores = deque[Download]()
        positions, labels, indices, logits = [], [], [], []
        unreadable: list[tuple[str, str]] = []
        plan = EvalPlan(clips, self.ranks.rank, self.ranks.world, times, places)
        for loaded in eval_batches(self.source, self.config, plan, self.batch, self.limits):
            unreadable.extend(loaded.unreadable)
            if not len(loaded.labels):
                continue
            ordered, bodies = loaded.by_bodies()
            frames, joints = self.upload(ordered.frames), self.upload(ordered.joints)
            with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
                if finder is not None:
                    found, seen = finder.forward_with_joints(frames)
                    scores.append(Download(torch.cat([found.float(), joint_hits(seen, joints)], 1)))
                else:
                    scores.append(Download(model(frames, joints, bodies).float()))
            positions.append(ordered.positions)
            labels.append(ordered.labels)
            indices.append(ordered.clips)
            if len(scores) > 1:  # the device computes the last batch while the host reads the one before
                logits.append(scores.popleft().wait().numpy())
        logits += [score.wait().numpy() for score in scores]
        model.train(was_training)
        shares = self.ranks.gather((positions, labels, indices, logits, unreadable))
        return _merge(shares, plan.views, _JOINT_HITS if finder else 0)


class Evaluator:
    """Evaluates a part of the data during a training, each rank a share of it. Every rank gets the whole evaluation."""

    def __init__(self, task: TrainTask, ranks: Ranks, state: TrainingState, device: torch.device, writer: RunWriter) -> None:
        self._task, self._ranks, self._state, self._writer = task, ranks, state, writer
        self._predictor = Predictor.of(task, ranks, device, state.precision)
        self.selection: Evaluation | None = None
        """The newest evaluation of the selection part."""

    def evaluate_selection(self) -> tuple[dict[str, float], int]:
        """Evaluate the selection part. Returns its metrics and the number of its clips; ({}, 0) if nothing was held out."""
        if not self._task.selection:
            return {}, 0
        part = "test" if self._task.spec.data.select == "test" else "validation"
        evaluation = self.selection = self.evaluate(self._task.selection, part)
        return evaluation.metrics(), len(evaluation.clips)

    def evaluate(
        self, clips: tuple[int, ...], part: str, times: int = 1, places: int = 1, *, averaged: bool = False
    ) -> Evaluation:
        """Predict every clip once, with the averaged weights if the run keeps them.

        Args:
            clips: Source indices.
            part: Name of the part, for messages.
            times: Number of views of a clip in time.
            places: Number of spatial crops of each of these views.
            averaged: Whether the model holds the averaged weights already.

        Raises:
            StopRunError: Too many of the clips cannot be read. `unreadable.json` lists them.
        """
        average = self._state.average
        self._ranks.share_buffers(self._state.model)
        with average.in_place() if average and not averaged else nullcontext():
            evaluation = self._predictor.predict(self._state.model, clips, times, places)
        missing = len(clips) - len(evaluation.clips)
        self._state.unreadable.update(evaluation.unreadable)
        limit = self._task.spec.data.max_unreadable_fraction
        if missing > limit * len(clips) or missing == len(clips):
            self._writer.list_unreadable(self._state.unreadable)
            raise StopRunError(
                f"{missing} of {len(clips)} {part} clips could not be read, more than data.max_unreadable_fraction ({limit}) "
                f"allows; all are listed in {self._task.folder.path / 'unreadable.json'}"
            )
        return evaluation


def evaluation_loop(config: dict[str, EvaluationTask]) -> None:
    """Predict one worker's share of the clips with a checkpoint of a run. Rank 0 writes all predictions."""
    task, context = config["task"], ray.train.get_context()
    device = ray.train.torch.get_device()
    check_device(device)
    ranks = Ranks(context.get_world_rank(), context.get_world_size())
    if device.type == "cpu":
        torch.set_num_threads(task.spec.resources.threads_per_worker)
    else:
        train = task.spec.train
        set_gpu_arithmetic(task.precision, tf32=train.tf32, deterministic=train.deterministic)
    model = StarTransformer(replace(task.spec.model, weights="none"))  # the checkpoint has the weights
    load_state(model, weights_to_evaluate(find_checkpoint(task.folder.stored_checkpoints, task.step).tensors))
    evaluation = Predictor.of(task, ranks, device, task.precision).predict(model.to(device), task.clips, *task.views)
    if ranks.rank == 0:
        write_predictions(task.target / "predictions.parquet", evaluation, task.source)


def _merge(shares: list[Any], views: int, counts: int = 0) -> Evaluation:
    """Merge the shares of all ranks. The last `counts` columns of the logits are counts of joints."""
    parts = [[array for share in shares for array in share[column]] for column in range(4)]
    unreadable = tuple(sorted(dict(pair for share in shares for pair in share[4]).items()))  # once per clip, not per view
    if not parts[0]:
        empty = np.zeros(0, np.int64)
        return Evaluation(empty, empty, np.zeros((0, 1), np.float32), unreadable)
    order = np.argsort(np.concatenate(parts[0]), kind="stable")
    positions, labels, indices, logits = (np.concatenate(part)[order] for part in parts)
    hits = logits[:, -counts:] if counts else None
    logits = logits[:, : logits.shape[1] - counts]
    if views > 1:
        _, first, count = np.unique(positions // views, return_index=True, return_counts=True)
        whole = first[count == views]
        labels, indices = labels[whole], indices[whole]
        of_views = whole[:, None] + np.arange(views)
        logits = _mean_over_views(logits[of_views])
        hits = None if hits is None else hits[of_views].sum(axis=1)
    return Evaluation(indices, labels, logits, unreadable, hits)


def _mean_over_views(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average (n, views, C) logits over the views, as probabilities. Returns the (n, C) logarithms of the means."""
    mean: NDArray[np.float64] = softmax(logits.astype(np.float64)).mean(axis=1)
    return np.log(np.maximum(mean, np.finfo(np.float32).tiny)).astype(np.float32)
