"""Seconds, bytes, rates and relative errors on one device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

Run = Callable[[], object]

BLOCK = 3
"""Repetitions of a run in a row on a GPU, of which all but the first are timed."""

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}
"""Matrix precisions and the dtype of their operands."""


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_in_turns(runs: Mapping[str, Run], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every run in every round. The runs take turns, so that a disturbance meets them alike.

    On a GPU these are the times between events on the stream, which include the gaps where the device waits for the host. A
    run is repeated in a block that begins with an idle device: behind another run, for which the host has little to do, the
    host could work ahead, and a gap would not show.
    """
    if device.type != "cuda":
        return {name: list(column) for name, column in zip(runs, zip(*host_rounds(runs, rounds), strict=True), strict=True)}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            synchronize(device)
            run()
            start.record()
            for _ in range(BLOCK - 1):
                run()
            end.record()
            synchronize(device)
            seconds[name].append(start.elapsed_time(end) / 1e3 / (BLOCK - 1))
    return seconds


def host_rounds(runs: Mapping[str, Run], rounds: int) -> list[list[float]]:
    """The same by the host's clock, round by round."""
    table = []
    for _ in range(rounds):
        row = []
        for run in runs.values():
            start = time.perf_counter()
            run()
            row.append(time.perf_counter() - start)
        table.append(row)
    return table


def median_seconds(run: Run, rounds: int, device: torch.device) -> float:
    """Median of `rounds` repetitions, after two that warm up."""
    for _ in range(2):
        run()
    return statistics.median(seconds_in_turns({"run": run}, rounds, device)["run"])


def ratios(seconds: Mapping[str, list[float]], slow: str, fast: str) -> list[float]:
    """The time of `slow` over that of `fast`, round by round, in ascending order."""
    return sorted(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))


def allocated_bytes(device: torch.device) -> int:
    """Bytes that tensors take on a GPU at this moment; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def peak_bytes(run: Run, device: torch.device) -> int:
    """The most bytes that tensors take on a GPU during a run, those there before included; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device)


@contextmanager
def matrix_flags(*, matmul_tf32: bool, conv_tf32: bool) -> Iterator[None]:
    """Allow or forbid TF32 inside, and restore what was allowed before."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (matmul.allow_tf32, conv.allow_tf32)
    matmul.allow_tf32, conv.allow_tf32 = matmul_tf32, conv_tf32
    try:
        yield
    finally:
        matmul.allow_tf32, conv.allow_tf32 = before


def matrix_flops_per_second(size: int, precision: str, device: torch.device) -> float:
    """FLOP/s of a product of two random size × size matrices."""
    a, b = (torch.randn(size, size, device=device).to(DTYPES[precision]) for _ in range(2))
    out = torch.empty_like(a)
    tf32 = precision == "tf32"
    with matrix_flags(matmul_tf32=tf32, conv_tf32=tf32):
        return 2 * size**3 / median_seconds(lambda: torch.mm(a, b, out=out), 15, device)


def copy_bytes_per_second(num_bytes: int, device: torch.device) -> float:
    """Bytes read plus bytes written per second of a copy within the device."""
    source = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / median_seconds(lambda: target.copy_(source), 15, device)


def upload_bytes_per_second(num_bytes: int, device: torch.device, *, pinned: bool) -> float:
    """Bytes per second from the host's memory to the device."""
    source = torch.zeros(num_bytes, dtype=torch.uint8).random_(0, 256)
    if pinned and device.type == "cuda":
        source = source.pin_memory()
    target = torch.empty_like(source, device=device)
    return num_bytes / median_seconds(lambda: target.copy_(source, non_blocking=pinned), 7, device)


def relative_error(value: Tensor, reference: Tensor) -> float:
    """‖value − reference‖ / ‖reference‖ in float64; NaN where a value is not finite."""
    value, reference = value.detach().double(), reference.detach().double()
    return float((value - reference).norm() / reference.norm())
