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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

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
    pid: int


@pytest.fixture(scope="session")
def ray_head() -> Iterator[Head]:
    """A head for the tests of `submit` and `connect`."""
    with run_head() as head:
        yield head


@pytest.fixture
def family_of() -> Callable[[Head], list[psutil.Process]]:
    """The processes of a head, by the head."""
    return lambda head: head_family(head.pid, head.folder)


@pytest.fixture
def tls_head(tmp_path: Path) -> Iterator[Head]:
    """A head whose gRPC is encrypted, with a certificate made as docs/security.md says."""
    files = {"RAY_TLS_SERVER_CERT": "node.crt", "RAY_TLS_SERVER_KEY": "node.key", "RAY_TLS_CA_CERT": "ca.crt"}
    text = (ROOT / "docs" / "security.md").read_text()
    commands = text.partition("<!-- certificates -->\n```\n")[2].partition("```")[0]
    assert commands
    subprocess.run(["bash", "-ec", commands], cwd=tmp_path, check=True, capture_output=True)
    with run_head({"RAY_USE_TLS": "1"} | {name: str(tmp_path / file) for name, file in files.items()}) as head:
        yield head


@contextlib.contextmanager
def run_head(more: Mapping[str, str] = MappingProxyType({})) -> Iterator[Head]:
    """Run a head with four logical CPUs, on ports and in a folder of its own; every process of it is gone afterwards."""
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
        "RAY_enable_metrics_collection": "false",  # as every deployment sets them
        "AUTOSCALER_METRIC_PORT": "-1",
        "DASHBOARD_METRIC_PORT": "-1",
        "RAY_idle_worker_killing_time_threshold_ms": "60000",
        "RAY_grpc_client_keepalive_timeout_ms": "15000",
        **more,
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
        yield Head(dashboard=url, gcs=f"127.0.0.1:{gcs}", token=token, token_path=token_path, folder=folder, pid=process.pid)
    finally:
        while family := head_family(process.pid, folder):
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


def head_family(pid: int, folder: Path) -> list[psutil.Process]:
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
