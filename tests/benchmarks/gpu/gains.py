"""Every improvement on its own against the plain step."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from gpu.measure import allocated_bytes, ratios, seconds_in_turns
from gpu.report import Row, guarded
from gpu.setup import SHIPPED, Bench, Setup
from gpu.step import Step, needs_gpu
from gpu.training import memory_figures, rounds_for, warm_up

LOSS_LIMIT = 2e-2
"""Relative difference of the first loss from the plain step's, from the same weights and clips in bf16."""
PLAIN, CHANGED = "plain", "changed"


@dataclass(frozen=True, slots=True)
class Improvement:
    """One change of a step's options."""

    name: str
    change: Mapping[str, Any]
    base: Mapping[str, Any] = field(default_factory=dict)
    """How the step that it is compared with differs from the plain one."""
    kind: str = "exact"
    """"exact" but for rounding; "departure" from the paper's model; "bound": what a fix could gain at most."""


NTU: Mapping[str, Any] = {"data": "ntu"}
MIXED: Mapping[str, Any] = {"data": "ntu mixed"}
HOST: Mapping[str, Any] = {"inputs": "pageable"}
LAST: Mapping[str, Any] = {"layout": "maps"}
RESIDENT: Mapping[str, Any] = {**SHIPPED, "inputs": "device"}
"""The shipped step without the copy of its clips from the host."""

IMPROVEMENTS = (
    Improvement("nothing changed (noise)", {}, kind="bound"),
    Improvement("bad steps judged one step later", {"loop": "library"}),
    Improvement("no guard", {"loop": "lean"}, kind="bound"),
    Improvement("clips copied beside the step", {"inputs": "library", "loop": "library"}, HOST),
    Improvement("NTU: absent bodies left out", {"mask": "left out"}, NTU),
    Improvement("NTU, a quarter of two bodies: absent ones left out", {"mask": "left out"}, MIXED),
    Improvement("deterministic kernels (for exactness)", {"deterministic": True}),
    Improvement("channels_last_3d maps", {"layout": "maps"}),
    Improvement("first convolution on cells of 2 × 2 pixels, with channels_last_3d", {"stem_cells": True}, LAST),
    Improvement("last layer for class rows only", {"class_rows_last": True}),
    Improvement("cudnn.benchmark", {"cudnn_benchmark": True}),
    Improvement("clips on the device already", {"inputs": "device", "loop": "library"}, HOST, "bound"),
    Improvement("NTU: no mask (wrong results)", {"mask": "none"}, NTU, "bound"),
    Improvement("NTU: variable-length attention", {"mask": "varlen"}, NTU),
    Improvement("AdamW instead of SGD", {"optimizer": "adamw"}, kind="departure"),
    Improvement("flash attention", {"attention": "flash"}),
    Improvement("cuDNN attention", {"attention": "cudnn"}),
    Improvement("memory-efficient attention", {"attention": "efficient"}),
    Improvement("CUDA graphs", {"cuda_graphs": True}),
    Improvement("CUDA graphs, batch 4", {"cuda_graphs": True}, {"clips": 4}),
    Improvement("frozen batch-norm, stem and layer1", {"frozen_stages": 2}, kind="departure"),
    Improvement("grid 7", {"grid": 7}, kind="departure"),
    Improvement("activation checkpointing (for memory)", {"checkpointing": True}, {"class_rows_last": True}),
    Improvement("compiled regions, with channels_last_3d", {"compile": "regions"}, LAST),
    Improvement("tokens between layers in half precision", {"residuals": "half"}, {**SHIPPED, "residuals": "fp32"}),
    Improvement("one compiled graph instead of regions", {"compile": "forward"}, SHIPPED),
    Improvement("CUDA graphs on the shipped step", {"cuda_graphs": True}, RESIDENT),
    Improvement("CUDA graphs on the shipped step, batch 4", {"cuda_graphs": True}, {**RESIDENT, "clips": 4}),
    Improvement("CUDA graphs on the shipped step, batch 4, clips copied", {"cuda_graphs": True}, {**SHIPPED, "clips": 4}),
    Improvement("compiled forward pass", {"compile": "forward"}),
    Improvement("TF32 in fp32", {"tf32": True}, {"precision": "fp32"}),
)


def gain_rows(bench: Bench) -> Iterator[Row]:
    """One row for each improvement: its gain is the plain step's time over its own."""
    plain = plain_setup(bench)
    bases: dict[Setup, Step] = {}
    wanted = [one for one in IMPROVEMENTS if not bench.improvements or any(word in one.name for word in bench.improvements)]
    for improvement in wanted:
        base = replace(plain, **scaled(improvement.base, bench))
        changed = replace(base, **scaled(improvement.change, bench))
        about = {"kind": improvement.kind, "change": dict(improvement.change), "base": dict(improvement.base)}
        if not bench.on_gpu and (why := needs_gpu(changed)):
            yield {"what": improvement.name, **about, "skipped": f"{why} needs a GPU"}
        else:
            yield guarded(improvement.name, partial(gain_figures, base, changed, about, bases, bench))


def plain_setup(bench: Bench) -> Setup:
    """The plain step: bf16 autocast on Penn clips."""
    return Setup(clips=bench.scale.clips[0])


def scaled(change: Mapping[str, Any], bench: Bench) -> dict[str, Any]:
    """A change at the size of this run: small maps have no 7 × 7 cells, and batches are smaller."""
    small = {"grid": 1, "clips": bench.scale.clips[-1]}
    return {key: small.get(key, value) if bench.scale.model else value for key, value in change.items()}


def gain_figures(base: Setup, changed: Setup, about: Row, bases: dict[Setup, Step], bench: Bench) -> Row:
    """Gain, its quartiles over the rounds, times, memory, and how far the first loss differs. `bases` keeps built steps."""
    if base not in bases:
        bases[base] = Step(base, bench)
        warm_up(bases[base], bench)
    with built(changed, bench) as (step, figures):
        runs = {PLAIN: bases[base], CHANGED: step}
        seconds = seconds_in_turns(runs, rounds_for(runs, bench), bench.device)
        difference = abs(first_loss(step) / first_loss(bases[base]) - 1)
    gains = ratios(seconds, PLAIN, CHANGED)
    return {
        **about,
        "gain": statistics.median(gains),
        "gain_low": gains[len(gains) // 4],
        "gain_high": gains[-1 - len(gains) // 4],
        "plain_ms": 1e3 * statistics.median(seconds[PLAIN]),
        "changed_ms": 1e3 * statistics.median(seconds[CHANGED]),
        **figures,
        "loss_difference": difference,
        "reached": about["kind"] != "exact" or difference <= LOSS_LIMIT,
    }


@contextmanager
def built(setup: Setup, bench: Bench) -> Iterator[tuple[Step, Row]]:
    """A step that has warmed up, with its memory and the seconds of its first run."""
    before = allocated_bytes(bench.device)
    step = Step(setup, bench)
    try:
        first_seconds = warm_up(step, bench)
        yield step, {**memory_figures(step, before, setup, bench), "first_step_seconds": first_seconds}
    finally:
        step.close()


def first_loss(step: Step) -> float:
    """The mean loss of a step's first run."""
    assert step.first_loss is not None
    return float(step.first_loss) / step.setup.clips
