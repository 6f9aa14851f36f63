"""What a report reads from run folders: runs with their curves, and the costs of training and of the model."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from starlab.experiments.catalog import SpecError
from starlab.experiments.overrides import flatten
from starlab.experiments.spec import spec_from_dict
from starlab.models.config import StarConfig
from starlab.models.cost import Cost, cost
from starlab.platform.reports.charts import Curve
from starlab.platform.runs.folder import SPEC, RunFolder
from starlab.platform.runs.journal import FILE, journals, read_points
from starlab.platform.runs.metric_names import CLIPS_PER_SECOND, GPU_MEMORY_SUFFIX, SYSTEM
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


@dataclass(frozen=True, slots=True)
class RunCost:
    """What a run cost."""

    parameters: int | None
    flops: int | None
    """Floating-point operations of one clip's forward pass."""
    clips_per_second: float | None
    """Median over training."""
    minutes: float
    """From the first to the last point of the journal; pauses between restarts count."""
    gpu_hours: float
    memory_megabytes: float | None
    """Largest memory in use: of the GPU with the most if there is one, else of the machine."""


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


def run_cost(run: ReportRun) -> RunCost:
    """Gather what a run cost, from its spec and its journals."""
    model = _model_cost(run.folder)
    speeds, memory, times = [], [], []
    for path in journals(run.folder.path):
        for point in read_points(path):
            times.append(point.time_ms)
            if point.key == CLIPS_PER_SECOND:
                speeds.append(point.value)
            elif point.key.startswith(SYSTEM) and point.key.endswith("memory_usage_megabytes"):
                memory.append((GPU_MEMORY_SUFFIX in point.key and "/gpu" in point.key, point.value))
    minutes = (max(times) - min(times)) / 60_000 if times else 0.0
    gpus = int(run.settings.get("resources.workers") or 1) * int(run.settings.get("resources.gpus_per_worker") or 0)
    return RunCost(
        parameters=model.parameters if model else None,
        flops=model.forward_flops if model else None,
        clips_per_second=statistics.median(speeds) if speeds else None,
        minutes=minutes,
        gpu_hours=gpus * minutes / 60,
        memory_megabytes=max(memory)[1] if memory else None,
    )


def groups(runs: Sequence[ReportRun]) -> dict[str, list[ReportRun]]:
    """Group runs by their row, in the order of the first run of each."""
    found: dict[str, list[ReportRun]] = {}
    for run in runs:
        found.setdefault(run.row, []).append(run)
    return found


def _model_cost(folder: RunFolder) -> Cost | None:
    raw = folder.read_json(SPEC)
    try:
        spec = spec_from_dict(raw, str(folder.path / SPEC))
        return _cost_of(spec.model, spec.data.size)
    except (SpecError, ValueError):  # a spec of another version of starlab, whose model this one cannot build
        return None


@functools.cache  # the seeds of a row have the same model
def _cost_of(config: StarConfig, size: int) -> Cost:
    return cost(config, height=size, width=size)


def _thinned(points: Mapping[int, float], most: int) -> Series:
    steps = sorted(points)
    per_bin = -(-len(steps) // most)
    bins = [steps[start : start + per_bin] for start in range(0, len(steps), per_bin)]
    return (
        tuple(float(chosen[-1]) if per_bin == 1 else statistics.fmean(chosen) for chosen in bins),
        tuple(statistics.fmean(points[step] for step in chosen) for chosen in bins),
    )
