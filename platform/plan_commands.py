"""The command `starlab plan`: what a run would take on more or fewer GPUs, without starting anything."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from starlab.experiments.spec import Spec
    from starlab.platform.scale import Device, Prediction, Work

_DECODE_RATES = {"store": 124.0, "frames": 65.0, "video": 4.0}
"""Clips per second of one core for a prepared store, a folder of JPEG frames and raw 1080p video (docs/performance.md)."""
_STREAM_SHARE = {"worker": 0.97, "cluster": 0.64}
"""Share of that which the stream reaches, by `data.decode` (docs/performance.md)."""
_STORED_BYTES = 1.6e6
"""Of one clip, read whole (docs/performance.md)."""
_OPTIMIZER_COPIES = {"sgd": 1, "adamw": 2}


def plan(
    experiment: Annotated[str, typer.Argument(help="Name of a packaged experiment (demo, …) or a path ending in .yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Dotted overrides: train.epochs=2 model.encoder=FF")] = None,
    gpus: Annotated[str, typer.Option(help="1..128 for powers of two, or a list: 1,3,8")] = "1..128",
    gpu: Annotated[
        str | None, typer.Option(help="V100 (a prediction) or H100. Default: resources.accelerator, else V100.")
    ] = None,
    efficiency: Annotated[
        float | None, typer.Option(help="Share of the GPU's rate that a step reaches, measured by yourself: 0.28")
    ] = None,
    clips_per_gpu: Annotated[
        int | None, typer.Option(help="Grow train.global_batch with the GPUs. Each row is then another experiment.")
    ] = None,
    clips: Annotated[str | None, typer.Option(help="Training and test clips of data that are not official: 1258,1068")] = None,
    source: Annotated[str, typer.Option(help="Where clips are decoded from: store, frames or video.")] = "store",
    gpus_per_node: Annotated[int, typer.Option(help="GPUs of a node.")] = 4,
    cores_per_gpu: Annotated[float, typer.Option(help="CPU cores of a node, per GPU.")] = 8.0,
    decode_cores: Annotated[float, typer.Option(help="CPU cores of all nodes without a GPU.")] = 0.0,
    network_gbps: Annotated[float, typer.Option(help="Network of a node, Gbit/s.")] = 10.0,
    storage_mbps: Annotated[float, typer.Option(help="Shared storage, MB/s for all nodes together.")] = 1000.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Predict clips per second, hours and GPU-hours on 1 to 128 GPUs: starlab plan penn_action --gpus 1..128"""
    from starlab.experiments.spec import load_spec
    from starlab.platform.errors import UserError
    from starlab.platform.scale import Nodes, predict

    counts = parse_counts(gpus)
    spec = load_spec(experiment, overrides or [])
    device = _device(gpu or spec.resources.accelerator or "V100", efficiency)
    positive = {
        "--clips-per-gpu": clips_per_gpu or 1,
        "--gpus-per-node": gpus_per_node,
        "--cores-per-gpu": cores_per_gpu,
        "--network-gbps": network_gbps,
        "--storage-mbps": storage_mbps,
    }
    for name, value in positive.items():
        if value <= 0:
            raise UserError(f"{name} is {value:g}; it must be above 0")
    if source not in _DECODE_RATES:
        raise UserError(f"--source is {source!r}; there are: {', '.join(_DECODE_RATES)}")
    nodes = Nodes(
        gpus_per_node=gpus_per_node,
        cores_per_gpu=cores_per_gpu,
        decode_cores=max(0.0, decode_cores),
        network_bytes_per_second=0.8 * network_gbps * 1e9 / 8,
        storage_bytes_per_second=storage_mbps * 1e6,
    )
    works = {count: _work(_with_batch(spec, clips_per_gpu, count), source, clips) for count in counts}
    possible = [count for count in counts if count <= works[count].global_batch]
    if not possible:
        raise UserError(
            f"--gpus {gpus}: a step has {works[counts[0]].global_batch} clips (train.global_batch), and each GPU needs one; "
            "plan fewer GPUs, or a larger batch with --clips-per-gpu 4"
        )
    rows = [predict(works[count], device, nodes, count) for count in possible]
    if as_json:
        print(json.dumps({"gpu": asdict(device), "nodes": asdict(nodes), "rows": [_row(row) for row in rows]}, indent=1))
        return
    for line in _lines(spec, device, rows):
        print(line)
    if left := [count for count in counts if count not in possible]:
        print(
            f"not      {left[0]} GPUs and more: a step has {spec.train.global_batch} clips (train.global_batch), and each GPU "
            "needs one; --clips-per-gpu 4 plans a larger batch for each row"
        )
    if device.efficiency_range:
        low, high = (
            predict(works[rows[0].gpus], replace(device, efficiency=share), nodes, rows[0].gpus).clips_per_second
            for share in device.efficiency_range
        )
        print(
            f"note     no {device.name} was measured: a step is assumed to reach {device.efficiency:.0%} of its "
            f"{device.flops_per_second / 1e12:,.0f} TFLOP/s. {rows[0].gpus} of them could also do {low:.1f} to {high:.1f} "
            "clips/s; --efficiency takes what you measure (docs/scale.md)"
        )


def parse_counts(text: str) -> list[int]:
    """Numbers of GPUs: "1..128" is the powers of two and the end, "1,3,8" is a list.

    Raises:
        UserError: it is neither, or a number is below 1 or above 100,000.
    """
    from starlab.platform.errors import UserError

    try:
        if ".." in text:
            first, last = map(int, text.split(".."))
            counts = sorted({count for power in range(17) if first <= (count := 2**power) <= last} | {first, last})
        else:
            counts = sorted({int(part) for part in text.split(",")})
            first, last = counts[0], counts[-1]
    except ValueError:
        raise UserError(f"--gpus is {text!r}; give a range such as 1..128, or a list such as 1,3,8") from None
    if not 1 <= first <= last <= 100_000:
        raise UserError(f"--gpus is {text!r}; numbers must rise from 1 or more to 100000 or fewer")
    return counts


def _with_batch(spec: Spec, clips_per_gpu: int | None, gpus: int) -> Spec:
    if clips_per_gpu is None:
        return spec
    return replace(spec, train=replace(spec.train, global_batch=max(clips_per_gpu * gpus, spec.resources.max_workers)))


def _device(name: str, efficiency: float | None) -> Device:
    from starlab.platform.errors import UserError
    from starlab.platform.scale import DEVICES

    if name not in DEVICES:
        raise UserError(f"--gpu is {name!r}; there are figures for: {', '.join(DEVICES)}")
    if efficiency is None:
        return DEVICES[name]
    if not 0 < efficiency <= 1:
        raise UserError(f"--efficiency is {efficiency:g}; it is a share of the GPU's rate, above 0 and at most 1")
    return replace(DEVICES[name], efficiency=efficiency, efficiency_range=None)


def _work(spec: Spec, source: str, clips: str | None) -> Work:
    from starlab.models.cost import cost
    from starlab.platform.recipe.step_plan import StepPlan
    from starlab.platform.scale import Work

    train, held_out, test = _clip_counts(spec, clips)
    steps, total = StepPlan(spec.train, train), cost(spec.model, height=spec.data.size, width=spec.data.size)
    evaluations = len(steps.evaluations())
    selection = test if spec.data.select == "test" else held_out
    numbers = total.parameters * (1 + _OPTIMIZER_COPIES[spec.train.optimizer] + (spec.train.ema is not None))
    views = spec.data.test_views[0] * spec.data.test_views[1]
    return Work(
        train_clips=train,
        evaluated_clips=evaluations * selection + test * views,
        epochs=spec.train.trained_epochs,
        global_batch=spec.train.global_batch,
        training_flops=float(total.training_flops),
        forward_flops=float(total.forward_flops),
        parameters=total.parameters,
        decoded_bytes=3.0 * spec.data.frames * spec.data.size**2,
        stored_bytes=_STORED_BYTES,
        clips_per_core_second=_DECODE_RATES[source] * _STREAM_SHARE[spec.data.decode],
        decodes_in_worker=spec.data.decode == "worker",
        checkpoint_bytes=4.0 * numbers,
        checkpoints=evaluations + len(steps.checkpoints_between()),
    )


def _clip_counts(spec: Spec, clips: str | None) -> tuple[int, int, int]:
    """Training, held-out and test clips: as given, or the official numbers."""
    from starlab.pipelines.datasets import find_dataset
    from starlab.pipelines.sources import generated_clips_per_class, is_generated
    from starlab.platform.errors import UserError

    data = spec.data
    if clips is not None:
        try:
            train, test = map(int, clips.split(","))
        except ValueError:
            train = test = 0
        if train < 1 or test < 1:
            raise UserError(f"--clips is {clips!r}; give the numbers of training and test clips: 1258,1068")
    elif is_generated(data):
        train, test = (count * len(data.facts().classes) for count in generated_clips_per_class(data))
    elif official := find_dataset(data.dataset).official_counts.get(data.protocol):
        train, test = official
    else:
        raise UserError(f"nobody published how many clips {data.dataset} has: give --clips TRAIN,TEST")
    held_out = round(train * data.validation_fraction)
    return max(1, round((train - held_out) * data.train_fraction)), held_out, test


def _lines(spec: Spec, device: Device, rows: list[Prediction]) -> list[str]:
    from starlab.platform.scale import BEND, bend

    said = [
        f"plan     {spec.name} on {device.name}, {'predicted' if device.efficiency_range else 'from measured steps'}: "
        f"{spec.train.trained_epochs:g} epochs",
        f"{'GPUs':>8} {'batch':>6} {'clips/GPU':>9} {'clips/s':>9} {'of ideal':>8} {'hours':>8} {'GPU-hours':>9}  limited by",
    ]
    said += [
        f"{row.gpus:>8} {row.global_batch:>6} {row.clips_per_gpu:>9} {row.clips_per_second:>9,.1f} {row.efficiency:>8.0%} "
        f"{row.hours:>8,.1f} {row.gpu_hours:>9,.0f}  {row.limit}"
        for row in rows
    ]
    bent = bend(rows)
    if bent is None:
        return [*said, f"bend     none: each GPU does at least {BEND:.0%} of what one of {rows[0].gpus} does"]
    parts = ", ".join(f"{name} {1000 * seconds:,.0f}" for name, seconds in bent.parts.items() if seconds)
    cause = "fixed cost of a step" if bent.limit == device.name else bent.limit
    return [*said, f"bend     at {bent.gpus} GPUs, by the {cause}: ms of a step side by side: {parts}"]


def _row(row: Prediction) -> dict[str, object]:
    return asdict(row) | {"gpu_hours": row.gpu_hours}
