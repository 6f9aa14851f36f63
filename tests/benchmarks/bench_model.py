"""How fast the model is, as ratios within one run: `make bench-model`, or `python tests/benchmarks/bench_model.py`.

Prints a table and writes the same as JSON. The CPU part takes about five minutes on two quiet cores; the accelerator
part runs where CUDA is. Nothing here is a test: a busy machine moves every figure.

Letters: T frames, S tokens per frame, L tokens per group, D width.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from starlab.models.attention import SpatioTemporalAttention
from starlab.models.cost import cost
from starlab.models.heatmaps import CellGrid, joint_heatmaps
from starlab.models.star import StarConfig, StarTransformer

THREADS = 2
PENN = StarConfig(num_classes=15, num_joints=13)
FRAMES, TOKENS, DIM, HEADS = 16, 212, 512, 8  # T·S = 3,392, Penn-Action at 224²
DEMO = StarConfig(
    num_classes=10,
    num_joints=13,
    backbone="mc3_tiny",
    pixel_norm="clip",
    joint_position="index_xy",
    token_norm=True,
    token_init_std=0.5,
    temporal_position="sincos",
    temporal_position_scale=0.7,
    layers=1,
    dim=64,
    heads=4,
    mlp_ratio=2.0,
    norm="pre",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    measured: float
    unit: str
    target: str
    reached: bool | None
    """None where there is no target."""


def at_most(what: str, measured: float, limit: float) -> Row:
    """A ratio that should not exceed its limit."""
    return Row(what, measured, "×", f"≤ {limit}", measured <= limit)


def at_least(what: str, measured: float, limit: float) -> Row:
    """A ratio that should reach its limit."""
    return Row(what, measured, "×", f"≥ {limit}", measured >= limit)


def plain(what: str, measured: float, unit: str) -> Row:
    """A figure without a target."""
    return Row(what, measured, unit, "", None)


Run = Callable[[], object]


def rounds(runs: dict[str, Run], repeats: int) -> dict[str, list[float]]:
    """Seconds of every run in every round; the runs take turns, so that a disturbance meets them alike."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, base: str) -> float:
    """The median over the rounds of one run's time over another's."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


def clip_batch(config: StarConfig, clips: int, size: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Random frames, joints and labels."""
    frames = torch.randint(0, 256, (clips, config.frames, size, size, 3), dtype=torch.uint8, device=device)
    joints = torch.rand(clips, config.frames, config.max_bodies, config.num_joints, 3, device=device)
    return frames, joints, torch.randint(0, config.num_classes, (clips,), device=device)


def training_step(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Run:
    """Forward, backward and an SGD step, as the paper trains."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=2e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(model(*batch[:2]).float(), batch[2]).backward()
        optimizer.step()

    return step


# --- attention --------------------------------------------------------------------------------------------------------


def core(module: SpatioTemporalAttention, qkv: Tensor) -> Tensor:
    """What a module does between its projections: flip, split into heads, attend. (B, G, L, 3 D) → (B, G, L, D)."""
    q, k, v = module.split_heads(qkv)
    return module.join_heads(scaled_dot_product_attention(q, k, v))


def materialised(module: SpatioTemporalAttention, qkv: Tensor) -> Tensor:
    """The same as Eq. 6 is written: scores over √d_h, their softmax, times the values; each matrix is stored."""
    q, k, v = module.split_heads(qkv)
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    return module.join_heads(weights @ v)


def materialised_prescaled(module: SpatioTemporalAttention, qkv: Tensor) -> Tensor:
    """The same, the queries scaled instead of the scores: one matrix less, the fastest stored form we know."""
    q, k, v = module.split_heads(qkv)
    weights = (q / math.sqrt(q.shape[-1]) @ k.transpose(-1, -2)).softmax(-1)
    return module.join_heads(weights @ v)


def forward_backward(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Run:
    """Forward and backward on random numbers of that shape, to an output of width D."""
    x = torch.randn(shape, requires_grad=True)
    gradient = torch.randn(*shape[:-1], DIM)
    return lambda: function(x).backward(gradient)


def qkv_shape(module: SpatioTemporalAttention) -> tuple[int, ...]:
    """One clip's projected tokens, grouped."""
    return (1, module.groups, FRAMES * TOKENS // module.groups, 3 * DIM)


def bench_attention() -> list[Row]:
    """Z and B against F, with and without projections; fused against materialised, in time and memory."""
    patterns: tuple[str, ...] = ("F", "Z", "B")
    modules = {pattern: SpatioTemporalAttention(DIM, HEADS, pattern) for pattern in patterns}
    runs: dict[str, Run] = {}
    for pattern, module in modules.items():
        runs[f"core {pattern}"] = forward_backward(partial(core, module), qkv_shape(module))
        runs[f"module {pattern}"] = forward_backward(module, (1, FRAMES, TOKENS, DIM))
        runs[f"stored {pattern}"] = forward_backward(partial(materialised, module), qkv_shape(module))
        runs[f"prescaled {pattern}"] = forward_backward(partial(materialised_prescaled, module), qkv_shape(module))
    seconds = rounds(runs, repeats=5)
    rows = [plain("FAttn core, forward + backward", 1e3 * min(seconds["core F"]), "ms")]
    for pattern in ("Z", "B"):
        rows.append(at_most(f"{pattern}Attn core / FAttn core", ratio(seconds, f"core {pattern}", "core F"), 0.57))
    for pattern in ("Z", "B"):
        rows.append(at_most(f"{pattern}Attn module / FAttn module", ratio(seconds, f"module {pattern}", "module F"), 0.66))
    for pattern in patterns:
        name = f"{pattern}Attn: stored softmax / fused, time"
        rows.append(at_least(name, ratio(seconds, f"stored {pattern}", f"core {pattern}"), 2))
        rows.append(plain("  with prescaled queries", ratio(seconds, f"prescaled {pattern}", f"core {pattern}"), "×"))
    for pattern in patterns:
        peaks = {kind: peak_in_child(kind, pattern) for kind in ("fused", "stored")}
        rows.append(plain(f"{pattern}Attn: fused, peak memory", peaks["fused"], "MiB"))
        rows.append(at_least(f"{pattern}Attn: stored / fused, peak memory", peaks["stored"] / peaks["fused"], 5))
    return rows


def peak_in_child(kind: str, pattern: str) -> float:
    """MiB that one forward and backward adds to a fresh process at its peak."""
    command = [sys.executable, __file__, "--peak", kind, pattern]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(kind: str, pattern: str) -> None:
    """The child's side of `peak_in_child`: the run's inputs and libraries are there before it counts."""
    module = SpatioTemporalAttention(DIM, HEADS, pattern)
    function = core if kind == "fused" else materialised
    function(module, torch.randn(1, module.groups, 2, 3 * DIM, requires_grad=True)).sum().backward()
    run = forward_backward(partial(function, module), qkv_shape(module))
    before = peak_kib()
    run()
    print((peak_kib() - before) / 1024)


def peak_kib() -> int:
    """This process's largest resident size so far (Linux). getrusage's figure would begin with the parent's."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


# --- whole model on the CPU -------------------------------------------------------------------------------------------

FLOOR = (
    "aten::convolution",
    "aten::linear",
    "aten::bmm",
    "aten::scaled_dot_product_attention",
)


def bench_whole_model() -> list[Row]:
    """One clip at 16 × 224 × 224: forward against its products alone; heat maps against a training step."""
    model = StarTransformer(PENN).eval()
    batch = clip_batch(PENN, clips=1, size=224)
    totals, floors, backbones = [], [], []
    with torch.no_grad():
        model(*batch[:2])
        for _ in range(3):
            with (
                torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile,
                torch.profiler.record_function("whole model"),
            ):
                model(*batch[:2])
            events = {event.key: event.cpu_time_total / 1e6 for event in profile.key_averages()}
            totals.append(events["whole model"])
            floors.append(sum(events[name] for name in FLOOR))
            start = time.perf_counter()
            assert model.backbone is not None
            model.backbone(batch[0])
            backbones.append(time.perf_counter() - start)
    over_floor = statistics.median(total / floor for total, floor in zip(totals, floors, strict=True))
    flops = cost(PENN).forward_flops
    model.train()
    step = training_step(model, batch)
    step_seconds = statistics.median(rounds({"step": step}, repeats=1)["step"])
    joints = torch.rand(8, 16, 25, 3)
    map_seconds = statistics.median(
        rounds({"maps": lambda: joint_heatmaps(joints, CellGrid((56, 56), (224, 224), 4), 0.7)}, repeats=5)["maps"]
    )
    return [
        plain("whole model, forward, one clip", min(totals), "s"),
        plain("  its backbone alone", min(backbones), "s"),
        plain("  achieved", flops / min(totals) / 1e9, "GFLOP/s"),
        at_most("whole model / its convolutions, products, attentions", over_floor, 1.10),
        plain("training step, one clip", step_seconds, "s"),
        plain("heat maps of 8 clips × 16 × 25 at 56²", 1e3 * map_seconds, "ms"),
        at_most("heat maps of 8 clips / 8 training steps of one clip", map_seconds / (8 * step_seconds), 0.05),
    ]


def bench_demo() -> list[Row]:
    """The demo's training step at batch 8, the critical cost of `starlab demo`."""
    batch = clip_batch(DEMO, clips=8, size=48)
    runs = {
        name: training_step(StarTransformer(dataclasses.replace(DEMO, channels_last=last)), batch)
        for name, last in (("channels last", True), ("channels first", False))
    }
    seconds = rounds(runs, repeats=15)
    return [
        plain("demo model, training step, 8 clips at 48²", 1e3 * statistics.median(seconds["channels last"]), "ms"),
        plain("  channels_last_3d / channels first", ratio(seconds, "channels last", "channels first"), "×"),
    ]


# --- accelerator ------------------------------------------------------------------------------------------------------


def matrix_rate(size: int) -> float:
    """TFLOP/s of a large bf16 product: what the card gives at best."""
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return 2 * size**3 / statistics.median(cuda_seconds(lambda: a @ b, repeats=20)) / 1e12


def cuda_seconds(run: Run, repeats: int) -> list[float]:
    """Seconds of each repetition, by events on the stream; three runs first to warm up."""
    for _ in range(3):
        run()
    events = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(repeats)]
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]


def training_rate(config: StarConfig, clips: int, *, autocast: bool, compiled: bool) -> tuple[float, float]:
    """Training clips per second at 224² and peak GiB per clip."""
    torch.compiler.reset()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    model = StarTransformer(config).cuda().train()
    forward = torch.compile(model) if compiled else model
    batch = clip_batch(config, clips, 224, "cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=2e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
            logits = forward(*batch[:2])
        cross_entropy(logits.float(), batch[2]).backward()
        optimizer.step()

    seconds = statistics.median(cuda_seconds(step, repeats=10))
    return clips / seconds, torch.cuda.max_memory_allocated() / clips / 2**30


def bench_accelerator(clips: int) -> list[Row]:
    """Training at 224² in bf16 with compile, against plain versions and the card's matrix rate."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    first = dataclasses.replace(PENN, channels_last=False)
    saving = dataclasses.replace(PENN, activation_checkpointing=True)
    limit = matrix_rate(8192)
    fp32, _ = training_rate(first, clips, autocast=False, compiled=False)
    bf16, _ = training_rate(first, clips, autocast=True, compiled=False)
    eager, _ = training_rate(PENN, clips, autocast=True, compiled=False)
    ours, gib = training_rate(PENN, clips, autocast=True, compiled=True)
    ours_first, _ = training_rate(first, clips, autocast=True, compiled=True)
    saved, saved_gib = training_rate(saving, clips, autocast=True, compiled=True)
    tflops = ours * cost(PENN).training_flops / 1e12
    return [
        plain("bf16 product 8192³ on this card", limit, "TFLOP/s"),
        plain("training, bf16 and compiled", ours, "clips/s"),
        plain("  achieved", tflops, "TFLOP/s"),
        at_least("  achieved / bf16 product", tflops / limit, 0.45),
        at_least("  over plain fp32", ours / fp32, 2.5),
        at_least("  over plain bf16 autocast", ours / bf16, 1.5),
        plain("  channels_last_3d over channels first, compiled", ours / ours_first, "×"),
        plain("  channels_last_3d over channels first, eager", eager / bf16, "×"),
        plain("  peak memory per clip", gib, "GiB"),
        plain("with activation checkpointing", saved, "clips/s"),
        plain("  peak memory per clip", saved_gib, "GiB"),
    ]


# --- the table --------------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure, print, write."""
    parts = ["attention", "demo", "model"] + ["accelerator"] * torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=parts, help="one part instead of all")
    parser.add_argument("--clips", type=int, default=16, help="batch of the accelerator part (default 16)")
    parser.add_argument("--json", type=Path, default=Path("runs/bench_model.json"), help="where the figures go")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    if arguments.peak:
        print_peak(*arguments.peak)
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {THREADS} threads"
    print(f"torch {torch.__version__}, {platform.machine()}, {device}\n")
    benches: dict[str, Callable[[], list[Row]]] = {
        "attention": bench_attention,
        "demo": bench_demo,
        "model": bench_whole_model,
        "accelerator": partial(bench_accelerator, arguments.clips),
    }
    rows = []
    for part in [arguments.only] if arguments.only else parts:
        for row in benches[part]():
            verdict = {True: "reached", False: "NOT REACHED", None: ""}[row.reached]
            print(f"{row.what:<58} {row.measured:10.3f} {row.unit:<8} {row.target:<7} {verdict}", flush=True)
            rows.append({"part": part, **dataclasses.asdict(row)})
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    record = {"torch": torch.__version__, "device": device, "threads": THREADS, "rows": rows}
    arguments.json.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    print(f"\nwritten to {arguments.json}")


if __name__ == "__main__":
    main()
