"""Predicts what a run would do, what it costs and whether it fits, without training: `starlab train --dry-run`."""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from starlab.experiments.spec import Spec
from starlab.models.cost import Cost, cost
from starlab.models.memory import activation_bytes
from starlab.pipelines.clip import ClipSource
from starlab.pipelines.sources import DataConfig, generated_clips_per_class, generated_folder, is_generated
from starlab.pipelines.splits import Parts
from starlab.platform.cluster.connect import Cluster, connect
from starlab.platform.cluster.placement import Placement, divide
from starlab.platform.errors import UserError
from starlab.platform.preflight import check_spec, open_data
from starlab.platform.recipe.step_plan import StepPlan
from starlab.platform.runs.checkpoint import checkpoint_steps
from starlab.platform.runs.folder import RunFolder, runs_folder
from starlab.platform.serving.initial_weights import with_digest

_OPTIMIZER_COPIES = {"sgd": 1, "adamw": 2}
"""Number of values that an optimizer keeps per parameter: SGD's momentum, AdamW's two moments."""
_PROCESS_BYTES = 600_000_000
"""Memory of a worker process before it has a model: Python, torch and Ray."""
_BESIDES_BYTES = 1_700_000_000
"""Memory of the driver, Ray's daemons and the decode tasks of a run on this machine, measured on two CPUs."""
_OBJECT_STORE_BYTES = 500_000_000
"""Object store of a local cluster (see `connect` in cluster/connect.py)."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Plan, cost and problems of a run that was not started."""

    lines: list[str]
    """Lines of text for the user."""
    problems: list[str]
    """Why the run would fail and how to fix it; empty if it would not."""
    steps: int
    """Number of optimizer steps."""
    flops: float
    """FLOPs of all training and evaluation."""
    worker_bytes: int
    """Memory of one worker's model, gradients, optimizer and activations."""


def forecast(spec: Spec, runs: str | Path | None = None) -> Forecast:
    """Resolve a spec completely without training: data, plan, resources, memory, cost.

    Raises:
        DataError, UserError: The data set cannot be used, or the pre-trained weights are missing.
    """
    root = runs_folder(runs)
    check_spec(spec)
    spec = with_digest(spec, root)
    lines: list[str] = []
    source, parts = _data(spec, root, lines)
    if spec.train.init_from is not None:
        lines.append(f"init       {spec.train.init_from}: train.init_digest={spec.train.init_digest}")
    run_id = spec.run_id(source.fingerprint) if source else f"{spec.name}-…"
    folder = RunFolder(root / run_id)
    folder.place_checkpoints(spec.resources.checkpoints, "dry-run")  # a bad place is refused now rather than when it trains
    lines.append(f"run        {run_id} {_state(folder)}; {folder.path}")
    cluster = _cluster()
    problems: list[str] = []
    steps = StepPlan(spec.train, len(parts.train))
    total = cost(spec.model, height=spec.data.size, width=spec.data.size)
    lines += _plan(spec, parts, steps, total)
    flops = _flops(spec, parts, steps, total)
    lines.append(
        f"cost       {amount(flops)}FLOP in all: {total.training_flops / 1e9:,.1f} GFLOP a training clip, "
        f"{total.forward_flops / 1e9:,.1f} an evaluated clip"
    )
    try:
        lines.append(_resources(spec, cluster, divide(spec, cluster, _OBJECT_STORE_BYTES)))
    except UserError as error:
        problems.append(str(error))
    worker = _worker_bytes(spec, total)
    lines.append(
        f"memory     {worker.total / 1e9:.2f} GB a worker, about: weights, gradients and {spec.train.optimizer} "
        f"{worker.model / 1e9:.2f}, activations of {worker.clips} clips {worker.activations / 1e9:.2f} ({worker.precision})"
    )
    problems += _memory_problems(spec, cluster, worker)
    return Forecast(lines, problems, steps.total_steps, flops, worker.total)


@dataclass(frozen=True, slots=True)
class _WorkerBytes:
    model: int
    activations: int
    clips: int
    precision: str

    @property
    def total(self) -> int:
        return self.model + self.activations


def _data(spec: Spec, root: Path, lines: list[str]) -> tuple[ClipSource | None, Parts]:
    data = spec.data
    place = Path(data.store) if data.store else generated_folder(data, root)
    if is_generated(data) and not place.exists():
        train, held_out, test = _generated_clips(data)
        lines.append(
            f"data       {data.dataset}: would be generated into {place}; about {train - held_out} train, {held_out} "
            f"validation, {test} test clips of {len(data.facts().classes)} classes"
        )
        numbers = iter(range(train + test))
        first, second, third = (tuple(itertools.islice(numbers, count)) for count in (train - held_out, held_out, test))
        return None, Parts(train=first, validation=second, test=third)
    return open_data(spec, root, lambda line: lines.append(f"{line[:9]}  {line[9:]}" if line[:1] != " " else f"  {line}"))


def _generated_clips(data: DataConfig) -> tuple[int, int, int]:
    """Return the numbers of training clips, of those held out for validation, and of test clips."""
    classes = len(data.facts().classes)
    train, test = generated_clips_per_class(data)
    held_out = max(1, round(data.validation_fraction * train)) if data.validation_fraction else 0
    train = held_out + max(1, math.floor(data.train_fraction * (train - held_out) + 0.5))
    if data.limit is not None:
        kept = [min(count, data.limit) for count in (train - held_out, held_out, test)]
        train, held_out, test = kept[0] + kept[1], kept[1], kept[2]
    return train * classes, held_out * classes, test * classes


def _state(folder: RunFolder) -> str:
    if folder.result:
        return "is complete already"
    steps = checkpoint_steps(folder.stored_checkpoints)
    return f"would continue at step {steps[-1]}" if steps else "would be new"


def _selection(spec: Spec, parts: Parts) -> tuple[int, ...]:
    return parts.test if spec.data.select == "test" else parts.validation


def _looks(spec: Spec, parts: Parts, evaluations: int) -> str:
    clips = len(_selection(spec, parts))
    if not clips:
        return "no validation part, the last weights count"
    part = "test" if spec.data.select == "test" else "validation"
    return f"{evaluations} looks at {clips} {part} clips" + (", the last weights count" if spec.data.select == "last" else "")


def _plan(spec: Spec, parts: Parts, steps: StepPlan, total: Cost) -> list[str]:
    train = spec.train
    evaluations, between = steps.evaluations(), steps.checkpoints_between()
    numbers = total.parameters * (1 + _OPTIMIZER_COPIES[train.optimizer] + (train.ema is not None))
    return [
        f"plan       {steps.total_steps:,} steps of {train.global_batch} clips, {train.trained_epochs:g} epochs over "
        f"{len(parts.train)} clips; {_looks(spec, parts, len(evaluations))}; "
        f"one look at {len(parts.test)} test clips",
        f"checkpoints {len(evaluations) + len(between)}, each about {4 * numbers / 1e6:,.1f} MB; the newest two and the "
        "best stay",
        f"model      {total.parameters:,} parameters: "
        + ", ".join(f"{name} {part.parameters:,}" for name, part in total.parts.items() if part.parameters),
    ]


def _flops(spec: Spec, parts: Parts, steps: StepPlan, total: Cost) -> float:
    trained = steps.total_steps * spec.train.global_batch
    views = math.prod(spec.data.test_views)
    evaluated = len(steps.evaluations()) * len(_selection(spec, parts)) + len(parts.test) * views
    return float(trained * total.training_flops + evaluated * total.forward_flops)


def _cluster() -> Cluster:
    """Connect to the cluster that RAY_ADDRESS names, or describe a local one without starting it."""
    if os.environ.get("RAY_ADDRESS", "local") != "local":
        return connect()
    gpus = torch.cuda.device_count()
    return Cluster(local=True, nodes=1, cpus=float(usable_cpus()), gpus=float(gpus), accelerators=())


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use, within the limit of a container."""
    count = len(os.sched_getaffinity(0))
    limit = Path("/sys/fs/cgroup/cpu.max")
    quota, period = (limit.read_text().split() if limit.is_file() else ("max", "1"))[:2]
    return count if quota == "max" else max(1, min(count, int(quota) // int(period)))


def _resources(spec: Spec, cluster: Cluster, placement: Placement) -> str:
    wanted = spec.resources
    decoding = cluster.cpus - wanted.max_workers * placement.cpus_per_worker
    gpus = f" and {wanted.gpus_per_worker} GPU" if wanted.gpus_per_worker else ""
    where = "this machine" if cluster.local else f"the cluster of {cluster.nodes} nodes"
    store = 2 * wanted.max_workers * placement.limits.object_store_bytes
    return (
        f"resources  {wanted.max_workers} workers of {placement.cpus_per_worker:g} CPUs{gpus}; {decoding:g} of the "
        f"{cluster.cpus:g} CPUs of {where} decode; {store / 1e6:,.0f} MB of object store"
    )


def _worker_bytes(spec: Spec, total: Cost) -> _WorkerBytes:
    clips = math.ceil(math.ceil(spec.train.global_batch / spec.resources.max_workers) / spec.train.accumulate)
    model = 4 * total.parameters * (2 + _OPTIMIZER_COPIES[spec.train.optimizer] + (spec.train.ema is not None))
    half = spec.train.precision in ("fp16", "bf16") or (spec.train.precision == "auto" and spec.resources.gpus_per_worker > 0)
    activations = activation_bytes(spec.model, clips, spec.data.size) // (2 if half else 1)
    return _WorkerBytes(model, activations, clips, "half precision" if half else "fp32")


def _memory_problems(spec: Spec, cluster: Cluster, worker: _WorkerBytes) -> list[str]:
    if not cluster.local:
        return []
    if spec.resources.gpus_per_worker:
        if not torch.cuda.is_available():
            return []  # the missing GPU is reported already
        there = torch.cuda.get_device_properties(0).total_memory
        need = worker.total
        what = "a GPU"
    else:
        there = psutil.virtual_memory().available
        need = spec.resources.max_workers * (worker.total + _PROCESS_BYTES) + _OBJECT_STORE_BYTES + _BESIDES_BYTES
        what = "this machine, free now,"
    if need <= there:
        return []
    return [
        f"the run needs about {need / 1e9:.1f} GB of memory and {what} has {there / 1e9:.1f}; use a smaller "
        "train.global_batch, a larger train.accumulate, more resources.workers (on GPUs), "
        "model.activation_checkpointing=true or a smaller data.size"
    ]


def amount(value: float) -> str:
    """A number with its prefix: "1.2 P"."""
    for prefix, unit in (("E", 1e18), ("P", 1e15), ("T", 1e12)):
        if value >= unit:
            return f"{value / unit:,.1f} {prefix}"
    return f"{value / 1e9:,.1f} G"
