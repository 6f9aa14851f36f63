"""Predicts how fast a training is on a number of GPUs and which part limits it. Pure arithmetic; docs/scale.md has the model.

A step is as long as the slowest of its parts that run side by side (GPUs with their fixed cost of a step, the hosts that
launch it, decoding, network, storage), plus what cannot run beside them: the rest of the all-reduce.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_BUCKET_BYTES = 25 * 2**20
"""DistributedDataParallel sends gradients in such pieces. The last one leaves when the backward pass has ended."""
_BACKWARD_SHARE = 2 / 3
"""Share of the backward pass, which the all-reduce runs beside, in the arithmetic of a step."""
_START_SECONDS = 60.0
"""From the command to the first step, and from the last to the end."""
BEND = 0.8
"""Efficiency below which more GPUs are said not to pay."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """What one accelerator, or one CPU worker, does."""

    name: str
    flops_per_second: float
    """Rate of half-precision matrix products."""
    efficiency: float
    """Share of that rate which a training step reaches."""
    efficiency_range: tuple[float, float] | None = None
    """Bounds of a prediction; None if the efficiency was measured."""
    step_seconds: float = 0.01
    """Fixed cost of a step: gaps between kernels, synchronisation, the agreement to go on."""
    host_seconds: float = 0.0
    """Time that the host takes to launch a step. It works ahead of the device, but no step is shorter."""
    shares_cores: bool = False
    """Whether training and decoding compute on the same cores."""


DEVICES = {
    # docs/performance.md: one H100, Penn Action 16 × 224², batch 16, bf16, compiled: 107 ms a step, idle for 5 of them. With
    # batch 4 the host limits it: 37 and 56 ms on two machines. It depends on the machine; 45 is between them.
    "H100": Device(name="H100", flops_per_second=797e12, efficiency=0.415, step_seconds=0.005, host_seconds=0.045),
    # Never measured, and not compiled. Bounds: the H100's share of its rate, not compiled and with the slower attention that a
    # V100 has; the H100's step that is not compiled, by memory bandwidth (900 instead of 3,350 GB/s).
    "V100": Device(name="V100", flops_per_second=125e12, efficiency=0.30, efficiency_range=(0.20, 0.46), host_seconds=0.045),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Nodes:
    """A cluster of equal nodes."""

    gpus_per_node: int = 4
    cores_per_gpu: float = 8.0
    decode_cores: float = 0.0
    """Cores of CPU-only nodes, in all."""
    network_bytes_per_second: float = 1.0e9
    """Of one node: 10 Gbit/s, of which 80 % are reached."""
    link_bytes_per_second: float = 50e9
    """Between GPUs of one node."""
    latency_seconds: float = 50e-6
    """Of one message between nodes."""
    storage_bytes_per_second: float = 1.0e9
    """Of the shared storage, for all nodes together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a run has to do."""

    train_clips: int
    evaluated_clips: int
    """Clips of all evaluations together."""
    epochs: float
    global_batch: int
    training_flops: float
    """FLOP of one clip's training step."""
    forward_flops: float
    parameters: int
    decoded_bytes: float
    """Of one clip."""
    stored_bytes: float
    """Of one clip, as it is read."""
    clips_per_core_second: float
    """Clips that one core decodes in a second."""
    decodes_in_worker: bool
    """`data.decode: worker`: decoded on the node that trains, and never sent."""
    checkpoint_bytes: float
    checkpoints: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """A run on a number of GPUs."""

    gpus: int
    clips_per_gpu: int
    """In a step, of the GPU that has most."""
    global_batch: int
    clips_per_second: float
    efficiency: float
    """Clips per second and GPU over those of a GPU that only computes, without any other cost."""
    hours: float
    limit: str
    """What the step waits for."""
    parts: dict[str, float]
    """Seconds that each part of a step takes by itself."""

    @property
    def gpu_hours(self) -> float:
        """GPUs times hours."""
        return self.gpus * self.hours


def predict(work: Work, device: Device, nodes: Nodes, gpus: int) -> Prediction:
    """Predict a run on `gpus` devices.

    Raises:
        ValueError: there are more devices than clips in a step.
    """
    if gpus > work.global_batch:
        raise ValueError(f"{gpus} GPUs for {work.global_batch} clips a step (train.global_batch): each GPU needs one")
    clips = math.ceil(work.global_batch / gpus)
    second_per_flop = 1 / (device.flops_per_second * device.efficiency)
    computing = clips * work.training_flops * second_per_flop
    reducing = _all_reduce_seconds(4.0 * work.parameters, nodes, gpus)
    parts = {
        device.name: computing + device.step_seconds,
        "host": device.host_seconds,
        "decoding": _decode_seconds(work, nodes, gpus),
        "network": _network_seconds(work, nodes, gpus),
        "storage": work.global_batch * work.stored_bytes / nodes.storage_bytes_per_second,
        "all-reduce": _exposed_seconds(reducing, computing, 4.0 * work.parameters),
    }
    if device.shares_cores:  # everything that the workers of a step do, on all cores
        arithmetic = work.global_batch * (1 / work.clips_per_core_second + computing / clips)
        parts["decoding"] = (arithmetic + gpus * device.step_seconds) / (nodes.cores_per_gpu * gpus)
    side_by_side = {name: seconds for name, seconds in parts.items() if name != "all-reduce"}
    step = max(side_by_side.values()) + parts["all-reduce"]
    limit = max(side_by_side, key=lambda name: side_by_side[name])
    reduced = parts["all-reduce"]
    if reduced > side_by_side[limit] or (limit == device.name and reduced > max(device.step_seconds, 0.1 * step)):
        limit = "all-reduce"
    elif limit == device.name and device.step_seconds > 0.25 * step:
        limit = "fixed cost of a step"
    steps = math.ceil(work.epochs * work.train_clips / work.global_batch)
    evaluating = work.evaluated_clips * max(work.forward_flops * second_per_flop / gpus, _clip_seconds(work, parts, step))
    storing = work.checkpoints * work.checkpoint_bytes / nodes.storage_bytes_per_second
    training = max(steps * step, storing)  # checkpoints are written beside the training
    alone = work.training_flops * second_per_flop
    rate = work.global_batch / step
    return Prediction(
        gpus=gpus,
        clips_per_gpu=clips,
        global_batch=work.global_batch,
        clips_per_second=rate,
        efficiency=rate * alone / gpus,
        hours=(training + evaluating + _START_SECONDS) / 3600,
        limit="checkpoints" if storing > steps * step else limit,
        parts=parts,
    )


def bend(predictions: Iterable[Prediction]) -> Prediction | None:
    """The first prediction whose GPUs do less than 0.8 of what the fewest GPUs do each; None if there is none."""
    first, *rest = sorted(predictions, key=lambda prediction: prediction.gpus)
    return next((one for one in rest if one.efficiency < BEND * first.efficiency), None)


def _all_reduce_seconds(size_bytes: float, nodes: Nodes, gpus: int) -> float:
    """A ring over all GPUs: each sends 2 (n − 1) / n of the gradients; between nodes, a node's network carries one ring."""
    if gpus == 1:
        return 0.0
    sent = 2 * (gpus - 1) / gpus * size_bytes
    if gpus <= nodes.gpus_per_node:
        return sent / nodes.link_bytes_per_second
    return sent / nodes.network_bytes_per_second + 2 * math.ceil(gpus / nodes.gpus_per_node) * nodes.latency_seconds


def _exposed_seconds(reducing: float, computing: float, size_bytes: float) -> float:
    """What is left of the all-reduce when the backward pass, beside which it runs, has ended."""
    if not reducing:
        return 0.0
    last_bucket = reducing * min(1.0, _BUCKET_BYTES / size_bytes)
    return max(last_bucket, reducing - _BACKWARD_SHARE * computing)


def _decode_seconds(work: Work, nodes: Nodes, gpus: int) -> float:
    """Decoding of a step on the cores that the workers leave: one each."""
    own = gpus * max(0.5, nodes.cores_per_gpu - (0.0 if work.decodes_in_worker else 1.0))
    cores = own + (0.0 if work.decodes_in_worker else nodes.decode_cores)
    return work.global_batch / (cores * work.clips_per_core_second)


def _network_seconds(work: Work, nodes: Nodes, gpus: int) -> float:
    """Decoded clips that come from other nodes, on the network of the node that takes most."""
    machines = math.ceil(gpus / nodes.gpus_per_node)
    if work.decodes_in_worker or (machines == 1 and not nodes.decode_cores):
        return 0.0
    own = gpus * max(0.5, nodes.cores_per_gpu - 1.0)
    elsewhere = 1 - own / (own + nodes.decode_cores) / machines
    clips = math.ceil(work.global_batch / gpus) * min(gpus, nodes.gpus_per_node)
    return clips * work.decoded_bytes * elsewhere / nodes.network_bytes_per_second


def _clip_seconds(work: Work, parts: dict[str, float], step: float) -> float:
    """Seconds per clip that data take, which an evaluation cannot beat either."""
    return max(parts["decoding"], parts["network"], parts["storage"]) / work.global_batch if step else 0.0
