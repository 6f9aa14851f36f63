"""Cost of a run: size and operations of its model, device-hours, speed and memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal

from starlab.models.config import StarConfig
from starlab.platform.runs.journal import FILE, journals
from starlab.platform.runs.metric_names import CLIPS_PER_SECOND, GPU_MEMORY_SUFFIX
from starlab.platform.runs.records import Result

_PAUSE = 20.0
"""An interval between two points of the curve so many times longer than the median is a pause, not training."""
_NO_EFFECT_ON_COST = (
    "weights",
    "weights_path",
    "init",
    "batch_norm",
    "dropout",
    "drop_path",
    "token_init_std",
    "sigma_cells",
    "temporal_position_scale",
    "channels_last",
    "activation_checkpointing",
)
"""Keys of `model` that change neither the parameters nor the operations, so that runs share one count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCost:
    """What a run costs. A value is None where it is not recorded."""

    parameters: int | None = None
    flops: int | None = None
    """FLOP of the forward pass of one clip."""
    device: Literal["GPU", "CPU"] = "CPU"
    device_hours: float | None = None
    """Hours of training times the GPUs, or CPU threads, of all workers. Pauses between two starts count little."""
    clips_per_second: float | None = None
    """Median over the curve, of all workers together."""
    memory_gb: float | None = None
    """Largest memory in use of a GPU. None for runs on CPUs: their own memory is not recorded."""


def run_cost(folder: Path, spec: Mapping[str, Any], result: Result | None) -> RunCost:
    """Compute the cost of a run.

    Args:
        folder: Folder of the run.
        spec: The resolved spec of the run.
        result: Result of the run. None if it has not finished.
    """
    parameters, flops = _model_cost(spec.get("model", {}), spec.get("data", {}).get("size"))
    resources = spec.get("resources", {})
    gpus = resources.get("workers", 1) * resources.get("gpus_per_worker", 0)
    devices = gpus or resources.get("workers", 1) * resources.get("threads_per_worker", 1)
    seconds, speed = _speed(folder / FILE, spec, result)
    return RunCost(
        parameters=parameters,
        flops=flops,
        device="GPU" if gpus else "CPU",
        device_hours=None if seconds is None else seconds * devices / 3600,
        clips_per_second=speed,
        memory_gb=_peak_memory_gb(folder) if gpus else None,
    )


def _model_cost(model: Mapping[str, Any], size_px: int | None) -> tuple[int | None, int | None]:
    structure = {key: value for key, value in model.items() if key not in _NO_EFFECT_ON_COST}
    return _count(json.dumps(structure, sort_keys=True), size_px) if size_px else (None, None)


@lru_cache(maxsize=4096)
def _count(model: str, size_px: int) -> tuple[int | None, int | None]:
    from starlab.models.cost import cost  # torch takes a second to import, and a comparison without costs does not need it

    try:
        counted = cost(StarConfig(**json.loads(model)), height=size_px, width=size_px)
    except (TypeError, ValueError):  # the model of another version of starlab
        return None, None
    return counted.parameters, counted.forward_flops


def _speed(path: Path, spec: Mapping[str, Any], result: Result | None) -> tuple[float | None, float | None]:
    """Return the seconds of training and the median speed in clips per second, from a run's journal."""
    points = _values(path, CLIPS_PER_SECOND)
    if not points:
        return None, None
    speed = median(value for value, _ in points)
    times = sorted(time_ms for _, time_ms in points)
    gaps = [(after - before) / 1000 for before, after in pairwise(times)]
    steps = result.steps if result else 0
    if len(gaps) < 2:  # too short a curve to tell pauses from training
        seconds = steps * spec.get("train", {}).get("global_batch", 1) / speed if speed and steps else None
        return seconds, speed
    longest = _PAUSE * median(gaps)
    return sum(min(gap, longest) for gap in gaps) + median(gaps), speed


def _peak_memory_gb(folder: Path) -> float | None:
    found = [value for path in journals(folder)[1:] for value, _ in _values(path, GPU_MEMORY_SUFFIX, contains="gpu_")]
    return max(found) / 1000 if found else None


def _values(path: Path, key_end: str, contains: str = "") -> list[tuple[float, int]]:
    """Return (value, time in ms) of each point whose key ends so. Only these lines are parsed: a journal may have 100 MB."""
    end = key_end.encode()
    found: list[tuple[float, int]] = []
    if not path.exists():
        return found
    with path.open("rb") as lines:
        for line in lines:
            if end not in line:
                continue
            try:
                point = json.loads(line)
                key = str(point["key"])
                if key.endswith(key_end) and contains in key:
                    found.append((float(point["value"]), int(point["time_ms"])))
            except (ValueError, KeyError, TypeError):
                continue
    return found
