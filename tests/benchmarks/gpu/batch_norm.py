"""Compiled batch-norm with residual and ReLU, forward and backward, against the bytes that it moves."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from gpu.measure import Run, copy_bytes_per_second, median_seconds, synchronize
from gpu.report import Row, guarded
from gpu.setup import Bench
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from starlab.models.trunks import CHANNELS

REPETITIONS = 5
LEAST_MAPS = 12
"""Maps that are read or written where batch-norm is not joined with a convolution. Forward 4: the map for its sums; the map and
the residual; the output. Backward 8: gradient, output, and the gradient behind ReLU; that and the map for the sums; both again,
and the gradient of the map."""


def batch_norm_rows(bench: Bench) -> Iterator[Row]:
    """One row for each stage of the trunk that has blocks."""
    rate = copy_bytes_per_second(bench.scale.copy_bytes, bench.device)
    widths = CHANNELS["mc3_18" if bench.on_gpu else "mc3_tiny"]
    for number, stage in enumerate(("layer1", "layer2", "layer3", "layer4"), start=1):
        side = max(1, bench.scale.size_px >> number)
        shape = (bench.scale.clips[0], widths[stage], bench.scale.frames, side, side)
        yield guarded(f"batch-norm, residual and ReLU of {stage}", partial(batch_norm_figures, shape, rate, bench))


def batch_norm_figures(shape: tuple[int, ...], copy_rate: float, bench: Bench) -> Row:
    """Milliseconds, and the number of maps that are moved in this time at the rate of a copy within the device."""
    dtype = torch.bfloat16 if bench.on_gpu else torch.float32

    def random_map() -> Tensor:
        return torch.randn(shape, device=bench.device, dtype=dtype).to(memory_format=torch.channels_last_3d)

    norm, gradient = nn.BatchNorm3d(shape[1], device=bench.device), random_map()
    inputs = [random_map().requires_grad_(), random_map().requires_grad_(), *norm.parameters()]

    def block(x: Tensor, residual: Tensor) -> Tensor:
        return torch.relu(norm(x) + residual)

    forward = torch.compile(block, dynamic=False) if bench.on_gpu else block
    seconds = device_seconds(lambda: torch.autograd.grad(forward(*inputs[:2]), inputs, gradient), bench)
    moved = seconds * copy_rate / (gradient.numel() * gradient.element_size())
    return {"ms": 1e3 * seconds, "maps": moved, "least_maps": LEAST_MAPS}


def device_seconds(run: Run, bench: Bench) -> float:
    """Seconds of a run's kernels, without the gaps between them; on a CPU the seconds of the run."""
    if not bench.on_gpu:
        return median_seconds(run, 1, bench.device)
    for _ in range(3):
        run()
    synchronize(bench.device)
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in range(REPETITIONS):
            run()
        synchronize(bench.device)
    return float(sum(event.self_device_time_total for event in recorded.key_averages())) / 1e6 / REPETITIONS
