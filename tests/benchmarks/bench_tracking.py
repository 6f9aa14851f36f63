"""What tracking costs the training thread, per step, its server well, stopped and dead: a table and runs/bench_tracking.json.

    .venv/bin/python tests/benchmarks/bench_tracking.py          # about two minutes

As in a run, one process trains: every step writes the five points of a training curve and then computes for 2 ms; another, the
driver, sends them to a real `mlflow server` and samples the machine. (A run writes them every `train.log_every_steps` = 10
steps: a tenth of this.) Wall time counts what other processes take from this one; CPU time does not.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import FILE, Journal
from starlab.platform.runs.system_metrics import SystemMetrics
from starlab.platform.tracking.sender import Sender
from starlab.platform.tracking.server import SERVER_SETTINGS

STEPS = 3000


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        server, uri = start_server(root)
        try:
            rows = {"no sender": measure(root / "alone", None)}
            rows["server well"] = measure(root / "well", uri)
            os.killpg(server.pid, signal.SIGSTOP)
            rows["server stopped (SIGSTOP)"] = measure(root / "stopped", uri)
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            rows["server dead"] = measure(root / "dead", uri)
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
    columns = ("CPU mean", "median", "mean", "99 %", "worst")
    print(f"{'µs per step on the training thread':<36}" + "".join(f"{column:>9}" for column in columns))
    for label, row in rows.items():
        print(f"{label:<36}" + "".join(f"{row[column]:9.0f}" for column in columns))
    out = Path("runs") / "bench_tracking.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"cpus": os.cpu_count(), "steps": STEPS, "microseconds": rows}, indent=1))
    print(f"written to {out}")


def measure(path: Path, uri: str | None) -> dict[str, float]:
    folder = RunFolder(path)
    folder.write_json("spec.json", {"name": "bench"})
    about = {"key": path.name, "run_id": path.name, "experiment": "bench", "mlflow_experiment": "bench", "status": "RUNNING"}
    folder.write_json("run.json", {**about, "tracking_uri": uri, "runs": str(path.parent), "tags": {}, "parent": None})
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as worker:
        if uri is None:
            return worker.submit(steps, path / FILE).result()
        with SystemMetrics(path, every_seconds=1.0):
            sender = Sender(folder)
            sender.__enter__()  # not left: the last try of a dead server is no part of a step
            return worker.submit(steps, path / FILE).result()


def steps(path: Path) -> dict[str, float]:
    """The training's process."""
    journal, microseconds, cpu = Journal(path), [], 0.0
    names = ("train/loss", "train/top1", "train/lr", "system/clips_per_second", "system/data_wait")
    for step in range(STEPS):
        points = dict.fromkeys(names, step / 7)
        began, began_cpu = time.perf_counter(), time.thread_time()
        journal.log(step, points)
        cpu += time.thread_time() - began_cpu
        microseconds.append(1e6 * (time.perf_counter() - began))
        compute(0.002)
    journal.close()
    microseconds.sort()
    return {
        "CPU mean": 1e6 * cpu / STEPS,
        "median": statistics.median(microseconds),
        "mean": statistics.fmean(microseconds),
        "99 %": microseconds[int(0.99 * STEPS)],
        "worst": microseconds[-1],
    }


def compute(seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
    until = clock() + seconds
    while clock() < until:
        pass


def start_server(root: Path, store: str | None = None, workers: int = 1) -> tuple[subprocess.Popen[bytes], str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store or f"sqlite:///{root}/server.db"]
    command += ["--workers", str(workers)]
    command += ["--port", str(port), "--artifacts-destination", str(root / "artifacts")]
    environment = {**os.environ, **SERVER_SETTINGS}
    server = subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    uri = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=5):
                return server, uri
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("the MLflow server did not start")


if __name__ == "__main__":
    main()
