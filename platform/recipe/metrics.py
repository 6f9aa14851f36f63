"""What the predictions of a part come to: accuracy, recall by class, confusion, loss.

A new metric is a function of an `Evaluation` and its line in `METRICS`; `train.select_by` picks checkpoints by its name.

Letters: C classes  n clips.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


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
        """The value of every metric in `METRICS`, by name; empty where there is no clip."""
        return {name: metric.value(self) for name, metric in METRICS.items()} if len(self.labels) else {}

    def hits(self, k: int) -> NDArray[np.bool_]:
        """(n,) whether the true class is among the `k` most likely ones."""
        found: NDArray[np.bool_] = (self._ranking()[:, :k] == self.labels[:, None]).any(axis=1)
        return found

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
        return softmax(self.logits.astype(np.float64))

    def _ranking(self) -> NDArray[np.int64]:
        """(n, C) classes, most likely first. A logit that is not a number comes last."""
        return np.argsort(-self.logits, axis=1, kind="stable")


@dataclass(frozen=True, slots=True)
class Metric:
    """One number about an evaluation."""

    value: Callable[[Evaluation], float]
    higher_is_better: bool = True


def top1(evaluation: Evaluation) -> float:
    """Share of clips whose most likely class is the true one, in [0, 1]."""
    return float(evaluation.hits(1).mean())


def top5(evaluation: Evaluation) -> float:
    """Share of clips whose true class is among the five most likely ones, in [0, 1]."""
    return float(evaluation.hits(5).mean())


def mean_class(evaluation: Evaluation) -> float:
    """Recall averaged over the classes present, in [0, 1]."""
    return float(np.nanmean(evaluation.per_class()))


def loss(evaluation: Evaluation) -> float:
    """Mean cross-entropy, in nats."""
    likelihoods = log_softmax(evaluation.logits)[np.arange(len(evaluation.labels)), evaluation.labels]
    return float(-likelihoods.mean())


METRICS: dict[str, Metric] = {
    "top1": Metric(top1),
    "top5": Metric(top5),
    "mean_class": Metric(mean_class),
    "loss": Metric(loss, higher_is_better=False),
}
"""Metrics by name: what a run reports of each part, as "val/top1" and so on."""


def is_better(new: Mapping[str, float], best: Mapping[str, float], select_by: str) -> bool:
    """Whether the metrics `new` are better than `best` by one of `METRICS`; of equal ones the lower loss wins.

    Anything is better than no metrics at all.
    """
    if not best:
        return True
    sign = 1 if METRICS[select_by].higher_is_better else -1
    return (sign * new[select_by], -new["loss"]) > (sign * best[select_by], -best["loss"])


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Softmax over the last axis, in the dtype of the logits."""
    _, weights, total = _exponentials(logits)
    probabilities: NDArray[Any] = weights / total
    return probabilities


def log_softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Logarithm of the softmax over the last axis, in the dtype of the logits."""
    shifted, _, total = _exponentials(logits)
    logarithms: NDArray[Any] = shifted - np.log(total)
    return logarithms


def _exponentials(logits: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Logits below 0, their exponentials, and the sums of these: no overflow whatever the logits are."""
    shifted = logits - logits.max(axis=-1, keepdims=True, initial=-np.inf)
    weights = np.exp(shifted)
    return shifted, weights, weights.sum(axis=-1, keepdims=True)
