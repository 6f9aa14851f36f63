"""A Ray head of its own, with token authentication, for the tests of `submit` and `connect`."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Head:
    dashboard: str
    gcs: str
    token: str
    token_path: Path
    folder: Path


@pytest.fixture(scope="session")
def ray_head() -> Iterator[Head]:
    """Four logical CPUs on ports and in a folder of its own; every process of it is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="rh", dir="/tmp"))  # short: Ray's sockets lie deep below it
    token = secrets.token_hex(32)
    token_path = folder / "token"
    token_path.write_text(token)
    gcs, dashboard, agent, client = _free_ports(4)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
        "HOME": str(folder),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # the job's `python`
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "RAY_USAGE_STATS_ENABLED": "0",
        "STARLAB_TEST_HEAD": str(folder),
        "STARLAB_RUNS": str(folder / "runs-of-the-cluster"),
    }
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        "--num-cpus=4",
        "--num-gpus=0",
    ]
    command += ["--node-ip-address=127.0.0.1", f"--port={gcs}", f"--dashboard-port={dashboard}"]
    command += [
        f"--dashboard-agent-listen-port={agent}",
        f"--ray-client-server-port={client}",
        "--include-dashboard=true",
    ]
    command += ["--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={folder}", "--object-store-memory=200000000"]
    log = folder / "start.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=output, stderr=output, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{dashboard}"
        _wait_for(url, token, process, log)
        yield Head(dashboard=url, gcs=f"127.0.0.1:{gcs}", token=token, token_path=token_path, folder=folder)
    finally:
        for _ in range(50):  # a dying raylet may still be starting workers
            if not (left := _processes_of(folder)):
                break
            for one in left:
                one.kill()
            psutil.wait_procs(left, timeout=0.2)
        process.wait()
        shutil.rmtree(folder)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _wait_for(url: str, token: str, process: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(f"{url}/api/version", headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the Ray head did not start:\n{log.read_text()}")


def _processes_of(folder: Path) -> list[psutil.Process]:
    """Whoever inherited the head's environment, whatever process group or parent it has now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("STARLAB_TEST_HEAD") == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
