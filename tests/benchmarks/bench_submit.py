"""Where the time from `starlab submit` to the first step goes: `python tests/benchmarks/bench_submit.py`.

Starts a head with a token of its own by the packaged script, and submits the demo twice: as the first job of that head, which
also generates the data, and as the second. A table, and the same as JSON. Nothing here is a test: a busy machine moves every
figure. The log of a job arrives with up to a second of delay.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

from starlab.platform.runs.journal import FILE, read_points
from starlab.platform.runs.records import WorkerNodes

DEMO = ["train", "demo", "train.epochs=0.2", "train.evaluate_every_epochs=1", "train.log_every_steps=1"]
PARTS = (
    "checks, versions of the packages, upload",
    "job start: working folder, process, imports",
    "data: index; the first job generates it",
    "Ray joined, room, run's folder",
    "worker group: processes, imports, torch.distributed",
    "model, first batch, first step",
)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start_head(folder: Path, environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], str]:
    """Start a head with four logical CPUs; returns its process and the address of its dashboard."""
    gcs, dashboard, agent, client = free_ports(4)
    options = [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"]
    options += ["--node-ip-address=127.0.0.1", "--num-cpus=4", "--object-store-memory=200000000", f"--temp-dir={folder}/ray"]
    script = str(files("starlab.platform.cluster") / "on_premise.sh")
    log = (folder / "head.log").open("w")
    process = subprocess.Popen(
        ["bash", script, "head", *options], env=environment | {"STARLAB_PORT": str(gcs)}, stdout=log, stderr=log
    )
    address = f"http://127.0.0.1:{dashboard}"
    for _ in range(120):
        time.sleep(1)
        asked = [sys.executable, "-m", "starlab.platform.cli", "jobs", "--address", address]
        if subprocess.run(asked, env=environment, capture_output=True, check=False).returncode == 0:
            return process, address
    raise RuntimeError((folder / "head.log").read_text())


def submit(address: str, environment: dict[str, str], runs: Path, *overrides: str) -> list[float]:
    """Submit the demo and return the seconds of each part."""
    command = [sys.executable, "-m", "starlab.platform.cli", "submit", "--address", address, "--", *DEMO, *overrides]
    known, marks = set(runs.glob("demo-*")), [time.time()]
    said: list[str] = []
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        ends = ("Submitted ", "", "data ", "run ")  # how the line begins that ends each part; "" is the job's first line
        for line in process.stdout:
            said.append(line)
            at = len(marks) - 1
            if at < len(ends) and line.startswith(ends[at]):
                marks += [time.time()] * (2 if at == 1 and line.startswith(ends[2]) else 1)
    if process.returncode:
        raise RuntimeError("".join(said))
    [folder] = set(runs.glob("demo-*")) - known
    first_step = min(point.time_ms for point in read_points(folder / FILE) if point.key == "train/loss") / 1000
    marks += [(folder / WorkerNodes.FILE).stat().st_mtime, first_step]
    return [after - before for before, after in itertools.pairwise(marks)]


def main() -> None:
    """Measure, print and write runs/bench_submit.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_submit.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sub", dir="/tmp") as name:  # short: Ray's sockets lie deep below it
        folder, runs = Path(name), Path(name) / "runs"
        runs.mkdir()
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        environment |= {"HOME": name, "STARLAB_RUNS": str(runs), "OMP_NUM_THREADS": "1"}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        token = [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"]
        subprocess.run(token, env=environment, check=True, capture_output=True)
        (folder / ".ray" / "auth_token").chmod(0o600)
        head, address = start_head(folder, environment)
        try:
            columns = {"first job": submit(address, environment, runs)}
            columns["second job"] = submit(address, environment, runs, "train.seed=1")
        finally:
            head.terminate()
            head.wait()
    print(f"{'seconds':<54}" + "".join(f"{column:>12}" for column in columns))
    for at, part in enumerate(PARTS):
        print(f"{part:<54}" + "".join(f"{column[at]:12.1f}" for column in columns.values()))
    print(f"{'submit to first step':<54}" + "".join(f"{sum(column):12.1f}" for column in columns.values()))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = {name: dict(zip(PARTS, column, strict=True)) for name, column in columns.items()}
    options.out.write_text(json.dumps({"cpus": os.cpu_count(), "seconds": rows}, indent=1))


if __name__ == "__main__":
    main()
