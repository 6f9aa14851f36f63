"""Metrics of the predictions for a part of the data: accuracy, recall by class, confusion, loss.

To add a metric, write a function of an `Evaluation` and add it to `METRICS`. `train.select_by` can then name it.

Letters: C classes  n clips.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PCK_DISTANCES = (0.1, 0.2)
"""Distances within which a joint counts as found, over the longer side of its person's box."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Predictions for a list of clips, in the list's order."""

    clips: NDArray[np.int64]
    """(n,) indices of the clips in the source, without those that could not be read."""
    labels: NDArray[np.int64]
    """(n,) true classes."""
    logits: NDArray[np.float32]
    """(n, C) scores of the classes."""
    unreadable: tuple[tuple[str, str], ...]
    """(clip id, reason) of each clip that could not be read."""
    joint_hits: NDArray[np.float32] | None = None
    """(n, 3) numbers of joints of each clip, from a model that finds them itself: within each distance of `PCK_DISTANCES`, and
    all that were compared. None for other models."""

    def metrics(self) -> dict[str, float]:
        """Compute every metric in `METRICS`, by name, and those of `pck`. Empty if there are no clips."""
        if not len(self.labels):
            return {}
        return {name: float(metric.value(self)) for name, metric in METRICS.items()} | self.pck()

    def pck(self) -> dict[str, float]:
        """Compute the percentage of correct keypoints as shares in [0, 1], "pck_0.1" and "pck_0.2".

        A joint is correct within α times the longer side of the box around the annotated joints of its person (Yang and
        Ramanan, TPAMI 2013, with the box as Penn Action has it). Empty if the model does not find joints.
        """
        if self.joint_hits is None:
            return {}
        *close, compared = self.joint_hits.sum(axis=0, dtype=np.float64).tolist()
        if not compared:
            return {}
        return {f"pck_{distance}": hits / compared for distance, hits in zip(PCK_DISTANCES, close, strict=True)}

    def hits(self, k: int) -> NDArray[np.bool_]:
        """Return (n,) whether the true class is among the `k` most likely ones."""
        found: NDArray[np.bool_] = (self._ranking()[:, :k] == self.labels[:, None]).any(axis=1)
        return found

    def per_class(self) -> NDArray[np.float64]:
        """Compute (C,) the recall of each class in [0, 1]; NaN for a class without clips."""
        confusion = self.confusion()
        total = confusion.sum(axis=1)
        recall: NDArray[np.float64] = np.divide(np.diag(confusion), total, out=np.full(len(total), np.nan), where=total > 0)
        return recall

    def confusion(self) -> NDArray[np.int64]:
        """Count (C, C) clips by true class (row) and predicted class (column)."""
        classes = self.logits.shape[1]
        cells = self.labels * classes + self.predicted
        return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(n,) class with the largest logit, the first of equal ones."""
        return self._ranking()[:, 0]

    def probabilities(self) -> NDArray[np.float64]:
        """Compute (n, C) the softmax of the logits."""
        return softmax(self.logits.astype(np.float64))

    def _ranking(self) -> NDArray[np.int64]:
        """Return (n, C) the classes of each clip, most likely first. A NaN logit comes last."""
        return np.argsort(-self.logits, axis=1, kind="stable")


@dataclass(frozen=True, slots=True)
class Metric:
    """A scalar metric of an evaluation."""

    value: Callable[[Evaluation], float]
    higher_is_better: bool = True


def top1(evaluation: Evaluation) -> float:
    """Compute the share of clips whose most likely class is the true one, in [0, 1]."""
    return float(evaluation.hits(1).mean())


def top5(evaluation: Evaluation) -> float:
    """Compute the share of clips whose true class is among the five most likely ones, in [0, 1]."""
    return float(evaluation.hits(5).mean())


def mean_class(evaluation: Evaluation) -> float:
    """Compute the recall averaged over the classes that have clips, in [0, 1]."""
    return float(np.nanmean(evaluation.per_class()))


def loss(evaluation: Evaluation) -> float:
    """Compute the mean cross-entropy, in nats."""
    likelihoods = log_softmax(evaluation.logits)[np.arange(len(evaluation.labels)), evaluation.labels]
    return float(-likelihoods.mean())


METRICS: dict[str, Metric] = {
    "top1": Metric(top1),
    "top5": Metric(top5),
    "mean_class": Metric(mean_class),
    "loss": Metric(loss, higher_is_better=False),
}
"""All metrics by name. A run reports each one for each part, e.g. as "val/top1"."""


def is_better(new: Mapping[str, float], best: Mapping[str, float], select_by: str) -> bool:
    """Return whether the metrics `new` are better than `best` by the metric `select_by`. Ties go to the lower loss.

    If `best` is empty, `new` is better.
    """
    if not best:
        return True
    return _rank(new, select_by) > _rank(best, select_by)


def _rank(metrics: Mapping[str, float], select_by: str) -> tuple[float, float]:
    """Sort key, larger is better. NaN counts as the worst value."""
    sign = 1 if METRICS[select_by].higher_is_better else -1
    keys = (sign * metrics[select_by], -metrics["loss"])
    return (-np.inf if np.isnan(keys[0]) else keys[0], -np.inf if np.isnan(keys[1]) else keys[1])


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Compute the softmax over the last axis, in the dtype of the logits."""
    _, weights, total = _exponentials(logits)
    probabilities: NDArray[Any] = weights / total
    return probabilities


def log_softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Compute the logarithm of the softmax over the last axis, in the dtype of the logits."""
    shifted, _, total = _exponentials(logits)
    logarithms: NDArray[Any] = shifted - np.log(total)
    return logarithms


def _exponentials(logits: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Shift the logits to at most 0, so that nothing overflows. Returns them, their exponentials and the sums of these."""
    shifted = logits - logits.max(axis=-1, keepdims=True, initial=-np.inf)
    weights = np.exp(shifted)
    return shifted, weights, weights.sum(axis=-1, keepdims=True)
