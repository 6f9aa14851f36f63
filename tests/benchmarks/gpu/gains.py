"""Every improvement on its own against the plain step, then those that won together."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from gpu.measure import allocated_bytes, ratios, seconds_in_turns
from gpu.report import Row, guarded
from gpu.setup import Bench, Setup, tokens_per_clip
from gpu.step import Step, needs_gpu
from gpu.trace import profile_figures
from gpu.training import memory_figures, rate_figures, rounds_for, warm_up

WORTH = 1.01
"""A gain below this is noise and does not go into the combination."""
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
HOST: Mapping[str, Any] = {"inputs": "pageable"}
ADAMW: Mapping[str, Any] = {"optimizer": "adamw"}

IMPROVEMENTS = (
    Improvement("nothing changed (noise)", {}, kind="bound"),
    Improvement("channels_last_3d maps", {"layout": "maps"}),
    Improvement("channels_last_3d maps and weights", {"layout": "maps and weights"}),
    Improvement("cudnn.benchmark", {"cudnn_benchmark": True}),
    Improvement("flash attention", {"attention": "flash"}),
    Improvement("cuDNN attention", {"attention": "cudnn"}),
    Improvement("memory-efficient attention", {"attention": "efficient"}),
    Improvement("last layer for class rows only", {"class_rows_last": True}),
    Improvement("fused SGD", {"optimizer": "sgd fused"}),
    Improvement("no guard, no reading back", {"loop": "lean"}, kind="bound"),
    Improvement("NTU: absent bodies left out (bucket)", {"mask": "left out"}, NTU),
    Improvement("NTU: variable-length attention", {"mask": "varlen"}, NTU),
    Improvement("NTU: no mask (wrong results)", {"mask": "none"}, NTU, "bound"),
    Improvement("CUDA graphs", {"cuda_graphs": True}),
    Improvement("CUDA graphs, batch 4", {"cuda_graphs": True}, {"clips": 4}),
    Improvement("page-locked memory", {"inputs": "pinned"}, HOST),
    Improvement("page-locked memory and a stream of its own", {"inputs": "side stream"}, HOST),
    Improvement("clips on the device already", {"inputs": "device"}, HOST, "bound"),
    Improvement("frozen batch-norm, stem and layer1", {"frozen_stages": 2}, kind="departure"),
    Improvement("grid 7", {"grid": 7}, kind="departure"),
    Improvement("activation checkpointing (for memory)", {"checkpointing": True}),
    Improvement("compiled regions", {"compile": "regions"}),
    Improvement("compiled forward pass", {"compile": "forward"}),
    Improvement("fused AdamW", {"optimizer": "adamw fused"}, ADAMW),
    Improvement("TF32 in fp32", {"tf32": True}, {"precision": "fp32"}),
)
"""What takes long comes last."""

EXCLUSIVE = {"cuda_graphs": "compile"}
"""Options of which only one can be taken, by the name of the one that they are listed under."""


def gain_rows(bench: Bench) -> Iterator[Row]:
    """One row for each improvement: its gain is the plain step's time over its own."""
    plain = plain_setup(bench)
    bases: dict[Setup, Step] = {}
    for improvement in IMPROVEMENTS:
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


# --- the winners together ---------------------------------------------------------------------------------------------


def winners(rows: list[Row], base: Mapping[str, Any]) -> dict[str, Any]:
    """The options that won on their own against steps with this base, the best of each option; exact ones alone."""
    best: dict[str, tuple[float, str, Any]] = {}
    for row in rows:
        if row["kind"] != "exact" or not row["reached"] or row["base"] != base or row["gain_low"] < WORTH:
            continue
        for option, value in row["change"].items():
            slot = EXCLUSIVE.get(option, option)
            if row["gain"] > best.get(slot, (0.0, "", None))[0]:
                best[slot] = row["gain"], option, value
    return {option: value for _, option, value in best.values()}


def combined_rows(bench: Bench, rows: list[Row]) -> Iterator[Row]:
    """The winners together against the plain steps, NTU against Penn per token, and the profile of the winners."""
    plain = plain_setup(bench)
    won = winners(rows, {})
    best = replace(plain, **won)
    chosen = ", ".join(f"{option} {value}" for option, value in won.items()) or "none"
    yield guarded("winners together", lambda: {"chosen": chosen, **combined_figures(plain, best, bench)})
    yield guarded("winners, profile", lambda: profile_figures(best, bench))
    ntu = replace(best, **NTU, **winners(rows, NTU))
    yield guarded("NTU with an absent body, winners", lambda: ntu_figures(best, ntu, bench))
    yield guarded("NTU with an absent body, plain", lambda: ntu_figures(plain, replace(plain, **NTU), bench))


def combined_figures(plain: Setup, best: Setup, bench: Bench) -> Row:
    """Gains over plain bf16 and plain fp32, and the share of the card's matrix rate."""
    fp32 = replace(plain, precision="fp32")
    with built(plain, bench) as (bf16_step, _), built(fp32, bench) as (fp32_step, _), built(best, bench) as (step, figures):
        runs = {"bf16": bf16_step, "fp32": fp32_step, "best": step}
        seconds = seconds_in_turns(runs, rounds_for(runs, bench), bench.device)
    return {
        **rate_figures(best, statistics.median(seconds["best"]), bench),
        "over_plain_bf16": statistics.median(ratios(seconds, "bf16", "best")),
        "over_plain_fp32": statistics.median(ratios(seconds, "fp32", "best")),
        **figures,
    }


def ntu_figures(penn: Setup, ntu: Setup, bench: Bench) -> Row:
    """The rate of NTU clips over that of Penn clips, by tokens: all of them, and without those of absent bodies."""
    with built(penn, bench) as (penn_step, _), built(ntu, bench) as (ntu_step, _):
        runs = {"penn": penn_step, "ntu": ntu_step}
        seconds = seconds_in_turns(runs, rounds_for(runs, bench), bench.device)
    clips = statistics.median(ratios(seconds, "penn", "ntu"))
    own = tokens_per_clip(penn, bench.scale)
    return {
        "clips_over_penn": clips,
        "tokens_over_penn": clips * tokens_per_clip(ntu, bench.scale) / own,
        "present_tokens_over_penn": clips * tokens_per_clip(ntu, bench.scale, present=True) / own,
        "ntu_ms": 1e3 * statistics.median(seconds["ntu"]),
        "penn_ms": 1e3 * statistics.median(seconds["penn"]),
    }
