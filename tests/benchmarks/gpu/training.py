"""The card's own rates, and training steps at several batches in every precision."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

from gpu.measure import (
    BLOCK,
    Run,
    allocated_bytes,
    copy_bytes_per_second,
    matrix_flops_per_second,
    peak_bytes,
    seconds_in_turns,
    synchronize,
    upload_bytes_per_second,
)
from gpu.report import Row, guarded
from gpu.setup import Bench, Data, Setup, training_flops
from gpu.step import Step

PLAIN_DATA: tuple[Data, ...] = ("penn", "ntu")


def card_rows(bench: Bench) -> Iterator[Row]:
    """Matrix rates by precision, the highest of several sizes, and the rates of copies."""
    for precision in ("bf16", "fp16", "tf32", "fp32"):
        row = guarded(f"matrix product, {precision}", partial(best_matrix_rate, precision, bench))
        if "failed" not in row:
            bench.matrix_rates[precision] = row["tflops"] * 1e12
        yield row
    num_bytes = bench.scale.copy_bytes
    yield guarded("copy within the device", lambda: gigabytes(copy_bytes_per_second(num_bytes, bench.device)))
    for pinned in (False, True):
        what = f"copy to the device, {'page-locked' if pinned else 'pageable'} memory"
        yield guarded(what, partial(uploaded, num_bytes // 8, bench, pinned))


def best_matrix_rate(precision: str, bench: Bench) -> Row:
    """TFLOP/s of the size with the highest rate."""
    sizes = bench.scale.matrix_sizes[:2] if precision == "fp32" else bench.scale.matrix_sizes
    rates = {size: matrix_flops_per_second(size, precision, bench.device) for size in sizes}
    size = max(rates, key=lambda size: rates[size])
    return {"tflops": rates[size] / 1e12, "size": size}


def gigabytes(bytes_per_second: float) -> Row:
    """A rate as a figure."""
    return {"gb_per_second": bytes_per_second / 1e9}


def uploaded(num_bytes: int, bench: Bench, pinned: bool) -> Row:
    """The rate of copies from the host."""
    return gigabytes(upload_bytes_per_second(num_bytes, bench.device, pinned=pinned))


def training_rows(bench: Bench) -> Iterator[Row]:
    """Clips per second, memory and share of the card's matrix rate, without any improvement."""
    for clips in bench.scale.clips:
        for data in PLAIN_DATA:
            for precision in ("bf16", "fp16", "fp32"):
                setup = Setup(clips=clips, data=data, precision=precision)
                yield guarded(f"{data}, {precision}, batch {clips}", partial(training_row, setup, bench))


def training_row(setup: Setup, bench: Bench) -> Row:
    """The figures of one setup alone."""
    before = allocated_bytes(bench.device)
    step = Step(setup, bench)
    try:
        first_seconds = warm_up(step, bench)
        memory = memory_figures(step, before, setup, bench)
        rounds = rounds_for({"step": step}, bench)
        seconds = statistics.median(seconds_in_turns({"step": step}, rounds, bench.device)["step"])
    finally:
        step.close()
    return {**rate_figures(setup, seconds, bench), **memory, "first_step_seconds": first_seconds}


def warm_up(run: Run, bench: Bench) -> float:
    """Run a few times. Returns the seconds of the first run, in which compiled code is compiled."""
    first = seconds_once(run, bench)
    for _ in range(bench.scale.warm_up_steps - 1):
        run()
    return first


def rounds_for(runs: Mapping[str, Run], bench: Bench) -> int:
    """How many rounds of all runs fit the time of a row, within the limits."""
    seconds = BLOCK * sum(seconds_once(run, bench) for run in runs.values())
    fewest, most = bench.scale.rounds
    return min(most, max(fewest, int(bench.scale.seconds_per_row / seconds)))


def seconds_once(run: Run, bench: Bench) -> float:
    """Seconds of one run by the host's clock, the device's work included."""
    synchronize(bench.device)
    start = time.perf_counter()
    run()
    synchronize(bench.device)
    return time.perf_counter() - start


def memory_figures(run: Run, before: int, setup: Setup, bench: Bench) -> Row:
    """GiB per clip that a step takes at its peak: weights, optimizer, inputs and activations. Nothing on a CPU.

    Nothing for CUDA graphs either: their activations stay in a pool of their own, which a replay does not allocate.
    """
    if not bench.on_gpu or setup.cuda_graphs:
        return {}
    return {"gib_per_clip": (peak_bytes(run, bench.device) - before) / setup.clips / 2**30}


def rate_figures(setup: Setup, seconds: float, bench: Bench) -> Row:
    """Step time, clips per second, FLOP/s, and their share of the measured matrix rate where that is known."""
    clips_per_second = setup.clips / seconds
    flops = clips_per_second * training_flops(replace(setup, checkpointing=False), bench.scale)  # repeated work does not count
    rate = bench.matrix_rates.get("tf32" if setup.tf32 and setup.precision == "fp32" else setup.precision)
    figures = {"step_ms": 1e3 * seconds, "clips_per_second": clips_per_second, "tflops": flops / 1e12}
    return figures | ({"mfu": flops / rate} if rate else {})
