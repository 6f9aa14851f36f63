"""A Ray head of its own, with token authentication, for the tests of `submit` and `connect`."""

from __future__ import annotations

import contextlib
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
        "TMPDIR": str(folder),
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
        while family := _family(process.pid, folder):
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            psutil.wait_procs(family, timeout=10)
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


def _family(pid: int, folder: Path) -> list[psutil.Process]:
    """The head's descendants, and who inherited its environment and lost its parent (some overwrite theirs)."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        start = psutil.Process(pid)
        found = [*start.children(recursive=True), start]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get("STARLAB_TEST_HEAD") == str(folder):
                found.append(process)
    return [process for process in found if _alive(process)]


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
