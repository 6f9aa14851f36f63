"""What a tracking server bears: many runs at once that send their curves to it, as the trials of a large search do.

    .venv/bin/python tests/benchmarks/bench_many_runs.py --runs 100 1000          # about five minutes

Simulated: no run trains. Each writes five points every ten seconds for a minute, as a run with quick steps does, and has a
sender of its own, as every run has. One `mlflow server` over SQLite, or over `--store`, runs on this machine, which the
senders share with it. All end at the same moment. Prints how long their last tries took, how many sends failed on the way,
how long a send took, how many runs were left to `starlab sync`, how long that took for them, one after another, and how many
runs, and runs with all their points, MLflow has in the end. Nothing here is a test: a busy machine moves every figure.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from bench_tracking import start_server
from mlflow import MlflowClient

from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import FILE, Journal
from starlab.platform.tracking import sender as sending
from starlab.platform.tracking.sender import Sender

PROCESSES = 4
WRITE_SECONDS, EVERY_SECONDS = 60.0, 10.0
POINTS = round(WRITE_SECONDS / EVERY_SECONDS)
KEYS = ("train/loss", "train/top1", "train/lr", "system/clips_per_second", "system/data_wait")


@dataclass
class Sends:
    """What the senders of one process did."""

    seconds: list[float] = field(default_factory=list)
    failed: int = 0
    points: int = 0
    ended_after: float = 0.0
    """Seconds after the last point until every sender had ended."""
    left_to_sync: int = 0
    """Runs whose last try took too long; `starlab sync` sends the rest."""


def simulate(root: Path, uri: str, experiment: str, first: int, count: int) -> Sends:
    """Run the writers and the senders of `count` runs."""
    done = Sends()
    original = sending.sync

    def timed(folder: RunFolder, uri: str | None = None) -> int:
        began = time.monotonic()
        try:
            sent = original(folder, uri)
        except Exception:
            done.failed += 1
            raise
        done.seconds.append(time.monotonic() - began)
        return sent

    sending.sync = timed
    folders, journals, senders = [], [], []
    for number in range(first, first + count):
        folder = RunFolder(root / f"run-{number:04d}")
        folder.write_json("spec.json", {"name": "many"})
        about = {"key": folder.path.name, "run_id": folder.path.name, "experiment": "many", "mlflow_experiment": experiment}
        folder.write_json(
            "run.json", about | {"status": "RUNNING", "tracking_uri": uri, "runs": str(root), "tags": {}, "parent": None}
        )
        folders.append(folder)
        journals.append(Journal(folder.path / FILE))
        senders.append(Sender(folder))
    for sender in senders:
        sender.__enter__()
        time.sleep(WRITE_SECONDS / 6 / count)  # trials do not start in one moment
    began, step = time.monotonic(), 0
    while time.monotonic() < began + WRITE_SECONDS:
        for journal in journals:
            journal.log(step, dict.fromkeys(KEYS, step / 7))
            done.points += len(KEYS)
        step += 1
        time.sleep(max(0.0, began + step * EVERY_SECONDS - time.monotonic()))
    last = time.monotonic()
    for journal, folder in zip(journals, folders, strict=True):
        journal.close()
        folder.write_json("run.json", folder.read_json("run.json") | {"status": "FINISHED"})
    with ThreadPoolExecutor(count) as pool:  # as at the end of a run: the last try, at once and for half a minute at most
        list(pool.map(lambda sender: sender.__exit__(), senders))
    done.ended_after = time.monotonic() - last
    done.left_to_sync = sum(not sending.is_sent(folder) for folder in folders)
    return done


def measure(runs: int, store: str | None, workers: int) -> dict[str, float]:
    """Simulate this number of runs against a server of their own."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        server, uri = start_server(root, store, workers)
        try:
            client = MlflowClient(uri)
            name_there = f"many {time.time()}"  # a database may have had a run of this before
            experiment = client.create_experiment(name_there)
            share = -(-runs // PROCESSES)
            with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
                parts = [
                    pool.submit(simulate, root, uri, name_there, at, min(share, runs - at)) for at in range(0, runs, share)
                ]
                shares = [part.result() for part in parts]
            left = [
                folder for folder in (RunFolder(path) for path in sorted(root.glob("run-*"))) if not sending.is_sent(folder)
            ]
            began = time.monotonic()
            for folder in left:
                try:
                    sending.sync(folder, uri)
                except Exception as error:  # the figures are worth more than the last of them
                    print(f"not sent: {folder.path.name}: {error}", flush=True)
            synced = time.monotonic() - began
            found, page = [], None
            while page is None or page.token:
                page = client.search_runs([experiment], max_results=500, page_token=page.token if page else None)
                found += list(page)
            whole = sum(all(len(client.get_metric_history(run.info.run_id, key)) == POINTS for key in KEYS) for run in found)
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
    seconds = sorted(second for share in shares for second in share.seconds)
    return {
        "runs": runs,
        "points": sum(share.points for share in shares),
        "sends": len(seconds),
        "failed": sum(share.failed for share in shares),
        "median_send_seconds": statistics.median(seconds),
        "worst_send_seconds": seconds[-1],
        "ended_after_seconds": max(share.ended_after for share in shares),
        "left_to_sync": sum(share.left_to_sync for share in shares),
        "sync_seconds": synced,
        "runs_found": len(found),
        "runs_with_all_points": whole,
    }


def main() -> None:
    """Measure, print and write runs/bench_many_runs.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--store", help="address of the server's database; default: SQLite")
    parser.add_argument("--workers", type=int, default=1, help="processes of the server")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_many_runs.json"))
    options = parser.parse_args()
    rows = []
    for runs in options.runs:
        rows.append(measure(runs, options.store, options.workers))
        print("  ".join(f"{name} {value:g}" for name, value in rows[-1].items()), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"cpus": os.cpu_count(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
