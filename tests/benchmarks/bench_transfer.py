"""Measure what a start from another run is worth: NTU-style generated people → Penn-style ones with few clips.

    .venv/bin/python tests/benchmarks/bench_transfer.py            # about seven minutes on two cores
    .venv/bin/python tests/benchmarks/bench_transfer.py --seeds 3 --runs transfer    # goes on with the runs in the folder

It trains on NTU-style people (25 joints, two bodies, six classes), then on Penn-style ones (13 joints, one body, ten classes,
16 clips of each) from nothing and from that run. It prints the validation accuracy after every epoch and the epochs to 0.8.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from starlab.experiments.spec import load_spec
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import FILE, read_points
from starlab.platform.runs.records import InitialWeights
from starlab.platform.trainer import train

NTU = [
    "data.dataset=synthetic_ntu",
    "data.protocol=xsub",
    "data.synthetic_ntu.train_performers=12",
    "data.synthetic_ntu.height_px=90",
    "train.epochs=6",
    "train.evaluate_every_epochs=3",
]
PENN = [
    "data.limit=16",
    "data.synthetic.test_clips_per_class=4",
    "train.epochs=10",
    "train.evaluate_every_epochs=2",
    "train.schedule=constant",
]
TARGET = 0.8


def main() -> None:
    """Run all trainings and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--seeds", type=int, default=1)
    arguments.add_argument("--runs", type=Path, help="folder of runs to keep; else a temporary one")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        runs = given.runs or Path(temporary)
        source = train(load_spec("demo", NTU), runs=runs, say=_say)
        curves: dict[str, list[dict[int, float]]] = {"from nothing": [], "from the NTU-style run": []}
        for seed in range(given.seeds):
            for kind, start in zip(curves, ([], [f"train.init_from={source.run_id}"]), strict=True):
                spec = load_spec("demo", [*PENN, f"train.seed={seed}", *start])
                folder = RunFolder(train(spec, runs=runs, say=_say).folder)
                points = [point for point in read_points(folder.path / FILE) if point.key == "val/top1"]
                values = [point.value for point in sorted(points, key=lambda point: point.step)]
                every = spec.train.evaluate_every_epochs
                curves[kind].append({every * number: value for number, value in enumerate(values, start=1)})
                if start:
                    record = folder.require(InitialWeights)
        print(f"\nNTU-style run: test top-1 {source.metrics['test/top1']:.3f}")
        print(f"taken: {len(record.taken)} weights; new: {', '.join(record.new)}; not used: {', '.join(record.unused)}")
        for kind, seeds in curves.items():
            mean = {epoch: sum(one[epoch] for one in seeds) / len(seeds) for epoch in seeds[0]}
            reached = next((epoch for epoch, value in mean.items() if value >= TARGET), None)
            print(f"{kind:<24}" + "  ".join(f"{value:.2f}" for value in mean.values()) + f"   epochs to {TARGET}: {reached}")
        print(json.dumps(curves), file=sys.stderr)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
