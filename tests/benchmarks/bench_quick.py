"""The ratios that must not get worse, in three minutes: `make bench-quick`, or `python tests/benchmarks/bench_quick.py`.

Prints each ratio with its target, and exits with 1 if one is past its target by more than the tolerance. Both sides of a ratio
are measured in this run, so a slower machine gives the same ratios. A machine that is busy with other work still moves those of
wall time. Whole trainings and raw videos take longer: `make bench-train` and `make bench-data` measure them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import bench_model
import bench_peers
import bench_train
import ray
import torch

from starlab.experiments.spec import load_spec
from starlab.platform.cluster.connect import connect
from starlab.platform.preflight import open_data

TOLERANCE = 0.1
FEW_CLIPS = ["data.synthetic.train_clips_per_class=4", "data.synthetic.test_clips_per_class=1"]


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio that should reach its target (`at_least`), or not exceed it."""

    what: str
    measured: float
    target: float
    at_least: bool

    def is_past(self, tolerance: float) -> bool:
        """Whether it misses its target by more than this share of the target."""
        if self.at_least:
            return self.measured < self.target * (1 - tolerance)
        return self.measured > self.target * (1 + tolerance)


def model_ratios() -> list[Ratio]:
    """Attention and the whole model; see bench_model.py."""
    rows = [*bench_model.bench_attention(), *bench_model.bench_whole_model()]
    return [
        Ratio(row.what, row.measured, float(row.target[1:]), row.target.startswith("≥"))
        for row in rows
        if row.reached is not None
    ]


def data_ratios(folder: Path) -> list[Ratio]:
    """The stream beside the plain loop and the loaders that are installed; see bench_peers.py."""
    names = ["starlab_worker", "plain", "torch_dataloader", "torchvision"]
    rows, _ = bench_peers.measure(folder, names, clips=96, frames=24, rounds=7)
    return [
        Ratio(f"clips per CPU second, decode: worker / {row.loader}", row.starlab_over, float(row.target[1:]), at_least=True)
        for row in rows
        if row.reached is not None
    ]


def training_ratios(folder: Path) -> list[Ratio]:
    """What the record and a checkpoint cost, over the demo's training step; see bench_train.py."""
    source, parts = open_data(load_spec("demo", FEW_CLIPS), folder, lambda _: None)
    bench = bench_train.Bench(folder, connect(), source, parts)
    rows = {row.what: row.measured for row in [*bench_train.critical_path(bench), *bench_train.checkpoint_cost(folder)]}
    [record_us] = [value for what, value in rows.items() if what.startswith("record, a step (points every step)")]
    [wait_ms] = [value for what, value in rows.items() if what.startswith("a checkpoint: the training waits")]
    step_ms = bench_model.bench_demo()[0].measured
    return [
        Ratio("record of every step / training step of the demo", record_us / 1000 / step_ms, 0.01, at_least=False),
        Ratio("wait for a checkpoint / 50 training steps of the demo", wait_ms / (50 * step_ms), 0.02, at_least=False),
    ]


def main() -> None:
    """Measure, print, write; exit with 1 past the tolerance."""
    parts: dict[str, Callable[[Path], list[Ratio]]] = {
        "data": data_ratios,
        "training": training_ratios,
        "model": lambda _: model_ratios(),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=parts, help="one part instead of all")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="share of a target by which a ratio may miss it")
    parser.add_argument("--json", type=Path, default=Path("runs/bench_quick.json"), help="where the ratios go")
    arguments = parser.parse_args()
    began, load = time.monotonic(), os.getloadavg()[0]
    torch.manual_seed(0)
    folder = Path(tempfile.mkdtemp(prefix="starlab-quick-"))
    found: list[Ratio] = []
    try:
        for name in [arguments.only] if arguments.only else parts:
            torch.set_num_threads(bench_model.THREADS)  # checkpoint_cost takes one
            for ratio in parts[name](folder):
                found.append(ratio)
                sign = "≥" if ratio.at_least else "≤"
                verdict = "PAST THE TOLERANCE" if ratio.is_past(arguments.tolerance) else ""
                print(f"{ratio.what:<64}{ratio.measured:>10.4f}   {sign} {ratio.target:<6g} {verdict}", flush=True)
            ray.shutdown()
    finally:
        shutil.rmtree(folder)
    past = [ratio.what for ratio in found if ratio.is_past(arguments.tolerance)]
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "tolerance": arguments.tolerance,
        "load_at_start": load,
        "ratios": [asdict(ratio) for ratio in found],
        "past": past,
    }
    arguments.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(
        f"\n{len(found)} ratios in {time.monotonic() - began:.0f} s, load {load:.1f} at the start; written to {arguments.json}"
    )
    if past:
        sys.exit(f"{len(past)} past the tolerance of {arguments.tolerance:.0%}: {'; '.join(past)}")


if __name__ == "__main__":
    main()
