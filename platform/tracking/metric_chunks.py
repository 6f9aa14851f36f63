"""Reads the points of a journal as MLflow's metrics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from starlab.platform.runs.journal import read_points_with_ends
from starlab.platform.runs.metric_names import BEST_VAL_TOP1

if TYPE_CHECKING:
    from mlflow.entities import Metric

_MAX_METRICS = 1000


def metric_chunks(path: Path, offset: int) -> Iterator[tuple[list[Metric], int]]:
    """Yield the complete points of a journal from byte `offset` on, up to 1,000 at a time, with the offset where they end."""
    from mlflow.entities import Metric

    metrics: list[Metric] = []
    end = offset
    for point, end in read_points_with_ends(path, offset):
        metrics.append(Metric(point.key, point.value, point.time_ms, point.step))
        if len(metrics) == _MAX_METRICS:
            yield metrics, end
            metrics = []
    if metrics:
        yield metrics, end


def importance(key: str) -> int:
    """Order the metrics of a batch by importance: MLflow's page that compares runs begins with the metric that it got first."""
    if key == BEST_VAL_TOP1:
        return 0
    return 1 if key.endswith("top1") else 2
