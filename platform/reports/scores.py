"""Scores of test clips from a run's predictions. A metric is the (weighted) mean of its scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from starlab.pipelines.ntu_names import parse_name
from starlab.platform.recipe.metrics import METRICS, log_softmax
from starlab.platform.runs.records import DamagedRecordError


@dataclass(frozen=True, slots=True)
class Scores:
    """One score per test clip of a run."""

    clip_ids: tuple[str, ...]
    """Clips that could be read, in alphabetical order."""
    values: NDArray[np.float32]
    """(n,) score of each: a hit (0 or 1), or the loss in nats."""
    labels: NDArray[np.int32]
    """(n,) true class of each."""
    unreadable: frozenset[str]
    """Clips that could not be read."""

    @property
    def asked(self) -> frozenset[str]:
        """Every test clip of the run, readable or not."""
        return frozenset(self.clip_ids) | self.unreadable


class ScoreReader:
    """Reads predictions; runs that were tested on the same clips share one tuple of their names."""

    def __init__(self, metric: str) -> None:
        """`metric` is a name in METRICS."""
        self._score = SCORES[metric]
        self._needs_logits = metric in ("top5", "loss")
        self._shared: dict[tuple[str, ...], tuple[str, ...]] = {}

    def read(self, path: Path) -> Scores:
        """Read the scores of a `predictions.parquet`.

        Raises:
            DamagedRecordError: The file cannot be read, or lacks a column.
        """
        columns = ["clip_id", "true", "predicted", *(["logits"] if self._needs_logits else [])]
        try:
            with pq.ParquetFile(path) as file:  # read_table would import pandas, a tenth of a comparison's time
                table = file.read(columns=columns, use_threads=False)
            about = json.loads((table.schema.metadata or {})[b"starlab"])
            classes = pa.array(about["classes"], pa.string())
            labels, predicted = (_class_numbers(table[name], classes) for name in ("true", "predicted"))
            logits = _logits(table, len(classes)) if self._needs_logits else None
            clip_ids = table["clip_id"].to_numpy(zero_copy_only=False)
            unreadable = frozenset(about.get("unreadable") or ())
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise DamagedRecordError(f"{path} cannot be read as predictions: {error}") from None
        order = np.argsort(clip_ids, kind="stable")
        names = tuple(clip_ids[order].tolist())
        if len(set(names)) < len(names):
            raise DamagedRecordError(f"{path} cannot be read as predictions: it holds a clip twice")
        values = self._score(labels, predicted, logits)
        return Scores(
            clip_ids=self._shared.setdefault(names, names),
            values=values[order].astype(np.float32),
            labels=labels[order].astype(np.int32),
            unreadable=unreadable,
        )


@lru_cache(maxsize=8)  # every row asks about the same clips
def subjects(clip_ids: tuple[str, ...]) -> NDArray[np.int64] | None:
    """Return (n,) the number of the subject of each clip, from 0, where clip ids name the subject as NTU's do. Else None."""
    try:
        _, numbers = np.unique([parse_name(clip_id).performer for clip_id in clip_ids], return_inverse=True)
    except ValueError:
        return None
    return numbers.astype(np.int64) if numbers.max(initial=0) > 0 else None


def _class_numbers(column: pa.ChunkedArray, classes: pa.Array) -> NDArray[np.int64]:
    numbers = pc.index_in(column, value_set=classes)
    if numbers.null_count:
        raise ValueError("it names a class that is not in its list of classes")
    found: NDArray[np.int64] = numbers.to_numpy().astype(np.int64)
    return found


def _logits(table: pa.Table, classes: int) -> NDArray[np.float32]:
    values = table["logits"].combine_chunks()
    if isinstance(values, pa.ChunkedArray):  # a table without rows
        return np.zeros((0, classes), np.float32)
    found: NDArray[np.float32] = values.flatten().to_numpy().reshape(-1, classes).astype(np.float32)
    return found


Score = Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32] | None], NDArray[np.floating]]


def _hit(labels: NDArray[np.int64], predicted: NDArray[np.int64], _: NDArray[np.float32] | None) -> NDArray[np.floating]:
    found: NDArray[np.floating] = (labels == predicted).astype(np.float32)
    return found


def _hit_of_five(labels: NDArray[np.int64], _: NDArray[np.int64], logits: NDArray[np.float32] | None) -> NDArray[np.floating]:
    assert logits is not None
    ranking = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    found: NDArray[np.floating] = (ranking == labels[:, None]).any(axis=1).astype(np.float32)
    return found


def _loss(labels: NDArray[np.int64], _: NDArray[np.int64], logits: NDArray[np.float32] | None) -> NDArray[np.floating]:
    assert logits is not None
    found: NDArray[np.floating] = -log_softmax(logits)[np.arange(len(labels)), labels]
    return found


SCORES: dict[str, Score] = {"top1": _hit, "top5": _hit_of_five, "mean_class": _hit, "loss": _loss}
"""The score of a clip by metric. `mean_class` takes the mean of each class first."""
BOUNDED = frozenset({"top1", "top5", "mean_class"})
"""Metrics in [0, 1], which are shown in percent."""
assert SCORES.keys() <= METRICS.keys()
