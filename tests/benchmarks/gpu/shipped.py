"""The step as starlab ships it: every improvement that won, together."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from gpu.gains import built, first_loss, plain_setup
from gpu.measure import ratios, seconds_in_turns
from gpu.report import Row, guarded
from gpu.setup import SHIPPED, Bench, Setup, tokens_per_clip
from gpu.step import needs_gpu
from gpu.trace import profile_figures
from gpu.training import rate_figures, rounds_for


def shipped_rows(bench: Bench) -> Iterator[Row]:
    """The shipped step at several batches and in several precisions, against the plain ones; its profile; NTU against Penn."""
    plain = plain_setup(bench)
    best = replace(plain, **SHIPPED)
    if not bench.on_gpu and needs_gpu(best):
        best = replace(best, compile="off")
    yield guarded("shipped", lambda: shipped_figures(plain, best, bench))
    yield guarded("shipped, profile", lambda: profile_figures(best, bench))
    yield guarded("shipped, ntu", lambda: beside_penn(best, replace(best, data="ntu"), bench))
    for clips in bench.scale.clips[1:]:
        yield guarded(f"shipped, batch {clips}", partial(alone, replace(best, clips=clips), bench))
    volta = replace(best, precision="fp16", compile="off")
    yield guarded("as on a V100: fp16, not compiled", lambda: alone(volta, bench))
    yield guarded("shipped, fp32 with TF32", lambda: alone(replace(best, precision="fp32", tf32=True), bench))
    yield guarded("shipped, ntu mixed", lambda: beside_penn(best, replace(best, data="ntu mixed"), bench))
    yield guarded("shipped, fp16", lambda: alone(replace(best, precision="fp16"), bench))
    yield guarded("shipped, ntu, profile", lambda: profile_figures(replace(best, data="ntu"), bench))
    yield guarded("shipped, fp32", lambda: alone(replace(best, precision="fp32"), bench))


def shipped_figures(plain: Setup, best: Setup, bench: Bench) -> Row:
    """Gains over plain bf16 and plain fp32, and the share of the card's matrix rate."""
    fp32 = replace(plain, precision="fp32")
    with built(plain, bench) as (bf16_step, _), built(fp32, bench) as (fp32_step, _), built(best, bench) as (step, figures):
        runs = {"bf16": bf16_step, "fp32": fp32_step, "best": step}
        seconds = seconds_in_turns(runs, rounds_for(runs, bench), bench.device)
        difference = abs(first_loss(step) / first_loss(fp32_step) - 1)
    return {
        **rate_figures(best, statistics.median(seconds["best"]), bench),
        "loss_difference": difference,
        "over_plain_bf16": statistics.median(ratios(seconds, "bf16", "best")),
        "over_plain_fp32": statistics.median(ratios(seconds, "fp32", "best")),
        **figures,
    }


def alone(setup: Setup, bench: Bench) -> Row:
    """The figures of one setup."""
    with built(setup, bench) as (step, figures):
        seconds = seconds_in_turns({"step": step}, rounds_for({"step": step}, bench), bench.device)["step"]
    return {**rate_figures(setup, statistics.median(seconds), bench), **figures}


def beside_penn(penn: Setup, ntu: Setup, bench: Bench) -> Row:
    """The rate of NTU clips over that of Penn clips, by tokens: all of them, and without those of absent bodies."""
    with built(penn, bench) as (penn_step, _), built(ntu, bench) as (ntu_step, figures):
        runs = {"penn": penn_step, "ntu": ntu_step}
        seconds = seconds_in_turns(runs, rounds_for(runs, bench), bench.device)
    clips = statistics.median(ratios(seconds, "penn", "ntu"))
    own = tokens_per_clip(penn, bench.scale)
    return {
        **rate_figures(ntu, statistics.median(seconds["ntu"]), bench),
        "clips_over_penn": clips,
        "tokens_over_penn": clips * tokens_per_clip(ntu, bench.scale) / own,
        "present_tokens_over_penn": clips * tokens_per_clip(ntu, bench.scale, present=True) / own,
        **figures,
    }
