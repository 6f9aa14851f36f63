"""What a report reads from run folders: runs with their settings, results, curves and costs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from starlab.experiments.overrides import flatten
from starlab.platform.reports.charts import Curve
from starlab.platform.reports.costs import RunCost, run_cost
from starlab.platform.runs.folder import SPEC, RunFolder
from starlab.platform.runs.journal import FILE, read_points
from starlab.platform.runs.records import DamagedRecordError, Result

Series = tuple[tuple[float, ...], tuple[float, ...]]
"""Steps and values of one metric."""


@dataclass(frozen=True, slots=True)
class ReportRun:
    """One run of a report."""

    folder: RunFolder
    row: str
    """Name of the group that the run belongs to: a row of an ablation, or the run itself."""
    seed: int
    settings: Mapping[str, Any]
    """Spec of the run, by dotted key."""
    result: Result

    @property
    def name(self) -> str:
        """Run id."""
        return self.folder.path.name

    @property
    def pairing(self) -> str:
        """Encoder and decoder attentions, as in "FZ / FB"."""
        return f"{self.settings.get('model.encoder') or '–'} / {self.settings.get('model.decoder') or '–'}"

    @property
    def depth(self) -> float | None:
        """Number of encoder layers."""
        depth = self.settings.get("model.encoder_layers") or self.settings.get("model.layers")
        return None if depth is None else float(depth)

    def accuracy(self, metric: str = "top1") -> float | None:
        """Return the metric of the test part, or of the validation part for a run that did not evaluate the test part."""
        return (self.result.test or self.result.val).get(metric)


def read_run(folder: RunFolder, row: str, seed: int | None, complain: Callable[[str], None]) -> ReportRun | None:
    """Read a finished run. Returns None for one without a result, and calls `complain` if a record is damaged."""
    try:
        settings, result = flatten(folder.read_json(SPEC)), folder.result
    except (DamagedRecordError, OSError) as error:
        complain(f"skipped  {error}")
        return None
    if result is None:
        return None
    return ReportRun(folder, row, settings.get("train.seed", 0) if seed is None else seed, settings, result)


def read_curves(folder: RunFolder, keys: Sequence[str], most: int = 80) -> dict[str, Series]:
    """Read curves of a run's journal, each reduced to at most `most` means of neighbouring points."""
    found: dict[str, dict[int, float]] = {key: {} for key in keys}
    for point in read_points(folder.path / FILE):
        if point.key in found and np.isfinite(point.value):
            found[point.key][point.step] = point.value
    return {key: _thinned(points, most) for key, points in found.items() if points}


def mean_curve(name: str, series: Sequence[Series]) -> Curve:
    """Average curves of several seeds at common steps; the band reaches from the lowest to the highest of them."""
    if len(series) == 1:
        return Curve(name, *series[0])
    start, end = max(steps[0] for steps, _ in series), min(steps[-1] for steps, _ in series)
    grid = sorted({step for steps, _ in series for step in steps if start <= step <= end}) or [start]
    if len(grid) > 80:
        grid = [float(step) for step in np.linspace(start, end, 80)]
    values = np.array([np.interp(grid, steps, curve) for steps, curve in series])
    mean, low, high = (tuple(map(float, part)) for part in (values.mean(0), values.min(0), values.max(0)))
    return Curve(name, tuple(grid), mean, low, high)


def cost_of(run: ReportRun) -> RunCost:
    """Gather what a run cost, from its spec and its journals."""
    return run_cost(run.folder.path, run.folder.read_json(SPEC), run.result)


def groups(runs: Sequence[ReportRun]) -> dict[str, list[ReportRun]]:
    """Group runs by their row, in the order of the first run of each."""
    found: dict[str, list[ReportRun]] = {}
    for run in runs:
        found.setdefault(run.row, []).append(run)
    return found


def _thinned(points: Mapping[int, float], most: int) -> Series:
    steps = sorted(points)
    per_bin = -(-len(steps) // most)
    bins = [steps[start : start + per_bin] for start in range(0, len(steps), per_bin)]
    return (
        tuple(float(chosen[-1]) if per_bin == 1 else statistics.fmean(chosen) for chosen in bins),
        tuple(statistics.fmean(points[step] for step in chosen) for chosen in bins),
    )
