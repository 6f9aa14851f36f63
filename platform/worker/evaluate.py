"""Every clip of a part exactly once, over any number of workers, and what the predictions come to.

Letters: C classes  n clips.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from starlab.pipelines.clip import ClipSource
from starlab.pipelines.schedule import EvalPlan
from starlab.pipelines.sources import DataConfig
from starlab.pipelines.stream import StreamLimits, eval_batches
from starlab.platform.recipe.ranks import Ranks


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Predictions for a list of clips, in the list's order."""

    clips: NDArray[np.int64]
    """(n,) indices into the source; a clip that could not be read is missing."""
    labels: NDArray[np.int64]
    """(n,)"""
    logits: NDArray[np.float32]
    """(n, C)"""
    unreadable: tuple[tuple[str, str], ...]
    """(clip id, reason) of the clips left out."""

    def metrics(self) -> dict[str, float]:
        """top1, top5, mean_class (recall averaged over the classes present), all in [0, 1], and loss (cross-entropy, nats)."""
        if not len(self.labels):
            return {}
        hits = self._ranking() == self.labels[:, None]
        shifted = self.logits - self.logits.max(axis=1, keepdims=True)
        log_likelihood = shifted[np.arange(len(self.labels)), self.labels] - np.log(np.exp(shifted).sum(axis=1))
        recall = self.per_class()
        return {
            "top1": float(hits[:, 0].mean()),
            "top5": float(hits[:, :5].any(axis=1).mean()),
            "mean_class": float(np.nanmean(recall)),
            "loss": float(-log_likelihood.mean()),
        }

    def per_class(self) -> NDArray[np.float64]:
        """(C,) recall of each class in [0, 1]; NaN for a class with no clip."""
        confusion = self.confusion()
        total = confusion.sum(axis=1)
        recall: NDArray[np.float64] = np.divide(np.diag(confusion), total, out=np.full(len(total), np.nan), where=total > 0)
        return recall

    def confusion(self) -> NDArray[np.int64]:
        """(C, C) counts: row = true class, column = predicted class."""
        classes = self.logits.shape[1]
        cells = self.labels * classes + self.predicted
        return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(n,) class with the largest logit; of equal ones the first."""
        return self._ranking()[:, 0]

    def probabilities(self) -> NDArray[np.float64]:
        """(n, C) softmax of the logits."""
        shifted = self.logits.astype(np.float64) - self.logits.max(axis=1, keepdims=True, initial=-np.inf)
        weights = np.exp(shifted)
        probabilities: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
        return probabilities

    def _ranking(self) -> NDArray[np.int64]:
        """(n, C) classes, most likely first. A logit that is not a number comes last."""
        return np.argsort(-self.logits, axis=1, kind="stable")


@torch.no_grad()
def evaluate(
    model: nn.Module,
    source: ClipSource,
    config: DataConfig,
    clips: tuple[int, ...],
    *,
    times: int = 1,
    places: int = 1,
    ranks: Ranks,
    device: torch.device,
    limits: StreamLimits,
    batch: int,
    autocast: torch.dtype | None,
) -> Evaluation:
    """Predict `clips` (source indices) with every rank doing its share; all ranks return the whole.

    With several views of a clip (`times` in time, `places` in the picture for each) the class probabilities are averaged over
    them; the logits returned are then the logarithms of these means. A clip of which a view cannot be read is left out.

    `model` must be the same on all ranks and is left in training mode if it was.
    """
    was_training = model.training
    model.eval()
    positions, labels, indices, logits = [], [], [], []
    unreadable: list[tuple[str, str]] = []
    plan = EvalPlan(clips, ranks.rank, ranks.world, times, places)
    for loaded in eval_batches(source, config, plan, batch, limits):
        unreadable.extend(loaded.unreadable)
        if not len(loaded.labels):
            continue
        frames = torch.from_numpy(loaded.frames).to(device)
        joints = torch.from_numpy(loaded.joints).to(device)
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            scores = model(frames, joints)
        positions.append(loaded.positions)
        labels.append(loaded.labels)
        indices.append(loaded.clips)
        logits.append(scores.float().cpu().numpy())
    model.train(was_training)
    return _merge(ranks.gather((positions, labels, indices, logits, unreadable)), plan.views)


def _merge(shares: list[Any], views: int) -> Evaluation:
    parts = [[array for share in shares for array in share[column]] for column in range(4)]
    unreadable = tuple(sorted(dict(pair for share in shares for pair in share[4]).items()))  # a clip once, whatever its views
    if not parts[0]:
        empty = np.zeros(0, np.int64)
        return Evaluation(empty, empty, np.zeros((0, 1), np.float32), unreadable)
    order = np.argsort(np.concatenate(parts[0]), kind="stable")
    positions, labels, indices, logits = (np.concatenate(part)[order] for part in parts)
    if views > 1:
        _, first, count = np.unique(positions // views, return_index=True, return_counts=True)
        whole = first[count == views]
        labels, indices = labels[whole], indices[whole]
        logits = _mean_over_views(logits[whole[:, None] + np.arange(views)])
    return Evaluation(indices, labels, logits, unreadable)


def _mean_over_views(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, views, C) logits → (n, C): logarithms of the mean probabilities."""
    shifted = logits.astype(np.float64) - logits.max(axis=2, keepdims=True)
    probabilities = np.exp(shifted) / np.exp(shifted).sum(axis=2, keepdims=True)
    mean: NDArray[np.float64] = probabilities.mean(axis=1)
    return np.log(np.maximum(mean, np.finfo(np.float32).tiny)).astype(np.float32)
