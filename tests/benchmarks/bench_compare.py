"""Measure `starlab compare` on simulated run folders: seconds and largest memory of the whole command, by number of runs.

    .venv/bin/python tests/benchmarks/bench_compare.py            # about two minutes

Rows have three seeds and 1,068 test clips, as many as Penn Action, and a curve of 2,000 points. They are the points of a grid
of depth, pairing and learning rate, so that 1,000 runs have 72 architectures whose costs are counted. Limits: 15 runs in 10 s,
200 runs in 20 s, 1,000 runs in 60 s and 1 GB.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMITS = {15: (10.0, None), 200: (20.0, None), 1000: (60.0, 1024.0)}
"""Seconds and MiB by number of runs."""
CLIPS = 1068


def write_runs(root: Path, count: int) -> None:
    """Write `count` runs of rows with three seeds."""
    import numpy as np

    from starlab.experiments.spec import load_spec
    from starlab.platform.reports.simulated import Effects, hits, write_run

    random = np.random.default_rng(0)
    rates = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3)
    grid = itertools.product(rates, (1, 2, 3, 4, 5, 6, 7, 8), ("FF", "FZ", "FB"), ("FF", "FZ", "FB"))
    for row, (rate, layers, encoder, decoder) in zip(range((count + 2) // 3), grid, strict=False):
        changes = [f"model.layers={layers}", f"model.encoder={encoder}", f"model.decoder={decoder}", f"train.lr={rate}"]
        resolved = load_spec("demo", changes).to_dict()
        right = hits([0.95], 3, CLIPS, Effects(), random)[0]
        for seed in range(min(3, count - 3 * row)):
            spec = resolved | {"train": resolved["train"] | {"seed": seed}}
            write_curve(write_run(root / f"demo-{row:04d}-{seed}", right[seed], spec).path)


def write_curve(folder: Path) -> None:
    """Write a journal of 2,000 points, as a training of some hours leaves one."""
    from starlab.platform.runs.journal import FILE
    from starlab.platform.runs.metric_names import CLIPS_PER_SECOND, TRAIN_LOSS

    lines = []
    for step in range(1, 1001):
        for key, value in ((TRAIN_LOSS, 1 / step), (CLIPS_PER_SECOND, 50.0)):
            lines.append(json.dumps({"key": key, "step": 10 * step, "value": value, "time_ms": 1000 * step}))
    (folder / FILE).write_text("\n".join(lines) + "\n")


def measure(root: Path) -> tuple[float, float, float]:
    """Return the wall seconds, processor seconds and largest memory in MiB of the command."""
    command = [str(Path(sys.executable).with_name("starlab")), "compare", "demo", "--runs", str(root), "--format", "json"]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "COLUMNS": "200"})
    assert process.stdout is not None
    rows = json.loads(process.stdout.read())["rows"]
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert all(row["is_base"] or row["difference"] for row in rows), "every row is compared"
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    print("| runs | seconds | CPU seconds | largest memory, MiB | limits |\n| ---: | ---: | ---: | ---: | --- |")
    for count, (seconds, mebibytes) in LIMITS.items():
        with tempfile.TemporaryDirectory() as name:
            # In a process of its own: a child's largest memory is never reported as less than its parent's.
            writer = multiprocessing.get_context("spawn").Process(target=write_runs, args=(Path(name), count))
            writer.start()
            writer.join()
            assert writer.exitcode == 0
            took, cpu, memory = measure(Path(name))
        limit = f"{seconds:.0f} s" + (f", {mebibytes:.0f} MiB" if mebibytes else "")
        print(f"| {count:,} | {took:.1f} | {cpu:.1f} | {memory:.0f} | {limit} |", flush=True)


if __name__ == "__main__":
    main()
