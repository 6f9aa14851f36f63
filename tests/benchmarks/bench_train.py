"""What `starlab train` costs besides its arithmetic: `make bench-train`, or `python tests/benchmarks/bench_train.py`.

Ratios within one run, from runs that take turns; a table, and the same as JSON. About eight minutes on two quiet cores. Nothing
here is a test: a busy machine moves every figure.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from starlab.experiments.spec import Spec, load_spec
from starlab.models.star import StarTransformer
from starlab.pipelines.clip import ClipSource
from starlab.pipelines.splits import Parts
from starlab.pipelines.storage import Folder
from starlab.pipelines.stream import train_batches
from starlab.platform.cluster.connect import Cluster, connect
from starlab.platform.cluster.placement import place
from starlab.platform.preflight import open_data
from starlab.platform.recipe.optimizer import learning_rate, make_optimizer
from starlab.platform.recipe.training_state import TrainingState
from starlab.platform.runs.checkpoint_writer import CheckpointWriter
from starlab.platform.runs.end_request import read_request
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import FILE, read_points
from starlab.platform.runs.lease import Lease
from starlab.platform.runs.lifecycle import open_run
from starlab.platform.trainer import RunRequest, run_training
from starlab.platform.worker.run_writer import RunWriter
from starlab.platform.worker.tasks import TrainTask
from starlab.platform.worker.watchdog import Watchdog

FIRST, LAST = 20, 170
"""Steps between which is measured: not the start, not the evaluation at the end."""
DEMO = ["train.epochs=2", "train.evaluate_every_epochs=2", "resources.workers=1"]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    measured: float
    unit: str
    target: str


@dataclass(frozen=True, slots=True)
class Bench:
    """What every measurement uses."""

    root: Path
    cluster: Cluster
    source: ClipSource
    parts: Parts

    def starlab(self, name: str, *overrides: str) -> float:
        """Seconds a step of a run under the platform."""
        runs = self.root / name
        spec = load_spec("demo", [*DEMO, *overrides])
        request = RunRequest(spec=spec, source=self.source, parts=self.parts, runs=runs, cluster=self.cluster)
        result = run_training(request)
        times = {p.step: p.time_ms / 1000 for p in read_points(result.folder / FILE) if p.key == "train/lr"}
        shutil.rmtree(runs)
        return (times[LAST] - times[FIRST]) / (LAST - FIRST)

    def plain(self) -> float:
        """Seconds a step of the same model over the same stream, in this process, with nothing around it."""
        spec = load_spec("demo", DEMO)
        job = self.job(spec, RunFolder(self.root / "plain"))
        torch.set_num_threads(1)
        torch.manual_seed(0)
        model = StarTransformer(spec.model)
        optimizer = make_optimizer(model, spec.train)
        batches = train_batches(self.source, spec.data, job.plan(0, 1, 0), job.steps.total_steps, job.limits)
        began = 0.0
        for step, batch in zip(range(LAST), batches, strict=False):
            if step == FIRST:
                began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(spec.train, step, job.steps.total_steps)
            logits = model(torch.from_numpy(batch.frames), torch.from_numpy(batch.joints))
            cross_entropy(logits, torch.from_numpy(batch.labels)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        seconds = time.perf_counter() - began
        batches.close()
        return seconds / (LAST - FIRST)

    def job(self, spec: Spec, folder: RunFolder, fence: int = 0) -> TrainTask:
        """What a worker of this run would be given."""
        return TrainTask(spec, self.source, self.parts, folder, place(spec, self.cluster).limits, fence=fence)


def throughput(bench: Bench, rounds: int) -> list[Row]:
    """The platform against the plain loop, and checkpoints against none; all take turns."""
    seconds: dict[str, list[float]] = {"plain": [], "starlab": [], "checkpoints": []}
    for number in range(rounds):
        seconds["starlab"].append(bench.starlab(f"starlab-{number}"))
        seconds["plain"].append(bench.plain())
        seconds["checkpoints"].append(bench.starlab(f"checkpoints-{number}", "train.checkpoint_every_steps=50"))
        print(f"round {number + 1}: " + ", ".join(f"{name} {1000 * times[-1]:.0f} ms" for name, times in seconds.items()))
    best = {name: min(times) for name, times in seconds.items()}
    return [
        Row("plain loop, one process", 1000 * best["plain"], "ms a step", ""),
        Row("starlab train, one worker", 1000 * best["starlab"], "ms a step", ""),
        Row("throughput, starlab / plain", best["plain"] / best["starlab"], "", ">= 0.95"),
        Row("a checkpoint every 50 steps", 100 * (best["checkpoints"] / best["starlab"] - 1), "% more time", "<= 2"),
    ]


def critical_path(bench: Bench) -> list[Row]:
    """What the training thread spends on its record; MLflow is the driver's business and no part of it."""
    spec = load_spec("demo", DEMO)
    folder = RunFolder(bench.root / "record")
    with Lease.claim(folder.path) as lease:
        open_run(folder, spec, bench.source, bench.root, None)
        record = RunWriter(bench.job(spec, folder, lease.fence), rank=0)
        watchdog = Watchdog(folder.path, 0, 600)
        metrics = {
            "train/loss": 1.0,
            "train/top1": 0.5,
            "train/lr": 1e-3,
            "system/clips_per_second": 9.0,
            "system/data_wait": 0.0,
        }
        points = _microseconds(lambda step: record.points(step, metrics))
        beat = _microseconds(lambda _: watchdog.beat())
        asked = _microseconds(lambda _: read_request(folder))
        record.close()
        watchdog.close()
    every = spec.train.log_every_steps
    return [
        Row("five points into the journal, lease checked", points, "µs", ""),
        Row("a beat, and a look for a request to end", beat + asked, "µs", ""),
        Row(f"record, a step (points every {every})", points / every + beat + asked, "µs", "<= 1000"),
        Row("record, a step (points every step)", points + beat + asked, "µs", "<= 1000"),
    ]


def checkpoint_cost(root: Path) -> list[Row]:
    """What a checkpoint of the demo takes: the wait for the copy, and all processor time, the background's included."""
    spec = load_spec("demo")
    torch.set_num_threads(1)
    state = TrainingState(StarTransformer(spec.model), spec.train, torch.device("cpu"), "fp32")
    for weight in state.model.parameters():
        weight.grad = torch.zeros_like(weight)
    state.optimizer.step()
    writer = CheckpointWriter(Folder(root / "checkpoints"), lambda: None, lambda: None, print)
    waits, began = [], time.process_time()
    for state.step in range(20):
        writer.wait()
        asked = time.perf_counter()
        writer.save(state.step, state.tensors(), state.numbers(), set())
        waits.append(time.perf_counter() - asked)
    writer.wait()
    return [
        Row("a checkpoint: the training waits (median)", 1000 * statistics.median(waits), "ms", ""),
        Row("a checkpoint: processor time of all threads", 1000 * (time.process_time() - began) / len(waits), "ms", ""),
    ]


def _microseconds(act: Callable[[int], object]) -> float:
    times = []
    for step in range(2000):
        began = time.perf_counter()
        act(step)
        times.append(time.perf_counter() - began)
    return 1e6 * statistics.median(times)


def first_step(root: Path, *overrides: str) -> list[Row]:
    """From the command to the first step of a new run over data that are there, by what the run leaves and prints when."""
    runs = root / "first"
    environment = os.environ | {"STARLAB_RUNS": str(runs)}
    environment.pop("RAY_ADDRESS", None)
    shutil.copytree(root / "data", runs / "data")
    command = [sys.executable, "-u", "-m", "starlab.platform.cli", "train", "demo", "train.log_every_steps=1", *overrides]
    began = time.time()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    printed: dict[str, float] = {}
    for line in process.stdout:
        printed[line.split(" ")[0]] = time.time()
        if line.startswith("workers"):
            break
    points: list[float] = []
    cpu: dict[int, float] = {}
    while not points and process.poll() is None:
        time.sleep(0.02)
        points = [p.time_ms / 1000 for path in runs.glob(f"*/{FILE}") for p in read_points(path) if p.key == "train/lr"]
        cpu |= processor_seconds(process.pid)
    [stacks] = runs.glob("*/stacks/rank-0.txt")
    trains = float(stacks.stat().st_mtime)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    shutil.rmtree(runs)
    return [
        Row("command to data: imports, spec, index", printed["data"] - began, "s", ""),
        Row(
            "data to run: the trainer is imported, Ray has started, the run is opened",
            printed["run"] - printed["data"],
            "s",
            "",
        ),
        Row("run to worker: Ray Train places and starts two", trains - printed["run"], "s", ""),
        Row("worker to first step: model, first batch, step", points[0] - trains, "s", ""),
        Row("from command to first step", points[0] - began, "s", "<= 12"),
        Row("processor time of all processes until then", sum(cpu.values()), "s", ""),
        Row("processes until then", len(cpu), "", ""),
    ]


def processor_seconds(pid: int) -> dict[int, float]:
    """Processor time so far of a process and its descendants, by process."""
    found = {}
    with contextlib.suppress(psutil.Error):
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                found[process.pid] = times.user + times.system
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="only the cost of the record and of a checkpoint")
    parser.add_argument("--json", type=Path, default=Path("runs/bench_train.json"))
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="bench-train-"))
    try:
        load = os.getloadavg()[0]
        source, parts = open_data(load_spec("demo"), root, print)
        rows = [] if arguments.quick else first_step(root)
        bench = Bench(root, connect(), source, parts)
        rows += critical_path(bench) + checkpoint_cost(root)
        rows += [] if arguments.quick else throughput(bench, arguments.rounds)
    finally:
        shutil.rmtree(root)
    print(f"\n{os.cpu_count()} CPUs, {platform.machine()}, torch {torch.__version__}; load {load:.1f} at the start\n")
    for row in rows:
        print(f"{row.what:<48}{row.measured:>10.3g} {row.unit:<12}{row.target}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    table = [{"what": row.what, "measured": row.measured, "unit": row.unit, "target": row.target} for row in rows]
    arguments.json.write_text(json.dumps({"load_at_start": load, "cpus": os.cpu_count(), "rows": table}, indent=1))


if __name__ == "__main__":
    main()
