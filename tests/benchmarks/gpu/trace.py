"""Where the time of a step goes: kernels, idle time, synchronisations, and which attention kernel ran."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from gpu.measure import synchronize
from gpu.report import Row, guarded
from gpu.setup import Bench, Setup
from gpu.step import Step
from gpu.training import PLAIN_DATA
from torch.profiler import ProfilerActivity, profile, record_function

STEPS = 3
KERNELS = 20
MARK = "benchmark: one step"
ATTENTION = re.compile(r"flash|fmha|attention|sdpa", re.IGNORECASE)
WAITING = re.compile(r"^cu(da)?(Stream|Device|Event|Ctx)Synchronize|^cudaMemcpy$|^cuMemcpy(HtoD|DtoH)(_v2)?$")
"""Calls of the CUDA runtime or driver in which the host waits for the device."""


@dataclass(frozen=True, slots=True)
class Span:
    """One event of a trace."""

    name: str
    start_us: float
    end_us: float

    @property
    def us(self) -> float:
        """Its length."""
        return self.end_us - self.start_us


def profile_rows(bench: Bench) -> Iterator[Row]:
    """The plain steps of both data sets."""
    for data in PLAIN_DATA:
        setup = Setup(clips=bench.scale.clips[0], data=data)
        yield guarded(f"plain bf16, {data}, batch {setup.clips}", partial(profile_figures, setup, bench))


def profile_figures(setup: Setup, bench: Bench) -> Row:
    """The figures of a few steps of a setup, after some that warm up."""
    step = Step(setup, bench)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * bench.on_gpu
    try:
        for _ in range(3):
            step()
        synchronize(bench.device)
        with profile(activities=activities) as recorded:
            for _ in range(STEPS):
                with record_function(MARK):
                    step()
            synchronize(bench.device)
    finally:
        step.close()
    return figures_of(list(recorded.events()), on_gpu=bench.on_gpu)


def figures_of(events: list[Any], *, on_gpu: bool) -> Row:
    """The figures of a trace of `STEPS` marked steps. On a CPU its operators take the place of kernels."""
    host = [event for event in events if event.device_type.name == "CPU"]
    marks = [span_of(event) for event in host if event.name == MARK]
    calls = [span_of(event) for event in host if WAITING.search(event.name)]
    waits = [call for call in calls if any(mark.start_us <= call.start_us < mark.end_us for mark in marks)]
    if on_gpu:
        # Marks are on the device's timeline too, and are no kernels.
        on_device = [event for event in events if event.device_type.name == "CUDA" and not event.is_user_annotation]
        kernels = [span_of(event) for event in on_device]
        times = [(kernel.name, kernel.us) for kernel in kernels]
    else:
        kernels = marks
        times = [(event.name, float(event.self_cpu_time_total)) for event in host if event.name != MARK]
    begin = min(mark.start_us for mark in marks)
    end = max(span.end_us for span in (*marks, *kernels))
    return {
        "step_ms": (end - begin) / STEPS / 1e3,
        "device_idle_share": 1 - covered_us(kernels) / (end - begin),
        "host_waiting_share": sum(wait.us for wait in waits) / sum(mark.us for mark in marks),
        "synchronisations_per_step": len(waits) / STEPS,
        "kernels_per_step": len(times) / STEPS,
        "attention_kernels": sorted({name[:120] for name, _ in times if ATTENTION.search(name)}),
        "kernels": top_kernels(times),
    }


def span_of(event: Any) -> Span:
    """An event's name and time."""
    return Span(event.name, float(event.time_range.start), float(event.time_range.end))


def top_kernels(times: Iterable[tuple[str, float]]) -> list[Row]:
    """The kernels that take most time, with their share of all kernels' time."""
    totals: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for name, us in times:
        totals[name] += us
        counts[name] += 1
    whole = sum(totals.values()) or 1.0
    return [
        {
            "name": name[:160],
            "ms_per_step": totals[name] / STEPS / 1e3,
            "share": totals[name] / whole,
            "calls_per_step": counts[name] / STEPS,
        }
        for name in sorted(totals, key=lambda name: -totals[name])[:KERNELS]
    ]


def covered_us(spans: Iterable[Span]) -> float:
    """The time that at least one span covers."""
    covered, until = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.start_us):
        covered += max(0.0, span.end_us - max(span.start_us, until))
        until = max(until, span.end_us)
    return covered
