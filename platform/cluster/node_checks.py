"""What `starlab doctor --cluster` runs on each node of a cluster. Each function runs as a Ray task or actor there."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import ray
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from starlab.platform.cluster.network import use_interface_of_node
from starlab.platform.package import code_hash, package_root

_REACH_SECONDS = 10.0
_GPU_SECONDS = 90.0
_GPU_PROGRAM = """\
import json, torch
from starlab.platform.cluster.device import mismatch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
print(json.dumps([count, [problem for problem in map(mismatch, range(count)) if problem]]))
"""
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeReport:
    """What one node has."""

    host: str
    address: str
    versions: Mapping[str, str]
    """Python, packages, and the hash of starlab's code."""
    gpu_problems: Sequence[str]
    """Why this build of PyTorch cannot compute on a GPU of the node."""
    gpus: int
    cpus: int
    """Cores that this process may use."""
    disk_free_bytes: int
    """Where Ray's temporary files are."""
    shared_memory_free_bytes: int
    proxies: Mapping[str, str]
    """Variables that name a proxy, and those that name exceptions, as they are set."""


def describe_node(packages: Sequence[str]) -> NodeReport:
    """Describe the node that this runs on."""
    versions = {"Python": platform.python_version(), "starlab's code": code_hash(package_root())}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "none"
    gpus, problems = _look_at_gpus()
    temporary = ray._private.worker._global_node.get_session_dir_path()
    named = [name for one in (*_PROXIES, "no_proxy") for name in (one, one.upper())]
    return NodeReport(
        host=socket.gethostname(),
        address=ray.util.get_node_ip_address(),
        versions=versions,
        gpu_problems=problems,
        gpus=gpus,
        cpus=len(os.sched_getaffinity(0)),
        disk_free_bytes=shutil.disk_usage(temporary).free,
        shared_memory_free_bytes=shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0,
        proxies={name: os.environ[name] for name in named if os.environ.get(name)},
    )


def _look_at_gpus() -> tuple[int, list[str]]:
    """The number of this node's GPUs, and why PyTorch cannot compute on some."""
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return 0, []
    # Ray hides the GPUs from a task that asks for none, so another process looks.
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", _GPU_PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_GPU_SECONDS, check=False)
    if done.returncode != 0:
        return 0, [f"PyTorch does not start: {done.stderr.strip().splitlines()[-1:]}"]
    count, problems = json.loads(done.stdout)
    return count, problems


def tell_time() -> float:
    """This node's clock, in seconds."""
    return time.time()


def write_mark(folder: str, mark: str) -> str | None:
    """Write a file with the text `mark` and that name into a shared folder. Returns what went wrong; None if nothing did."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / mark).write_text(mark)
    except OSError as error:
        return f"{error.strerror or error}"
    return None


def missing_marks(folder: str, marks: Sequence[str], seconds: float) -> list[str]:
    """The marks that this node cannot read in the shared folder, looking again for so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        missing = [mark for mark in marks if not _has(Path(folder) / mark, mark)]
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(0.2)


def _has(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except OSError:
        return False


def reach(address: str) -> str | None:
    """Try to reach a server from this node. Returns what went wrong; None if it answers.

    Args:
        address: http://… is asked for /health, as MLflow's server answers it, with MLFLOW_TRACKING_USERNAME and
            MLFLOW_TRACKING_PASSWORD where they are set; of a database (postgresql://host/db) the port is opened.
    """
    parts = urlsplit(address)
    try:
        if parts.scheme in ("http", "https"):
            with urllib.request.urlopen(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/health", timeout=_REACH_SECONDS):
                return None
        port = parts.port or {"postgresql": 5432, "mysql": 3306}.get(parts.scheme.partition("+")[0], 0)
        with socket.create_connection((parts.hostname or "", port), timeout=_REACH_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return None if error.code in (401, 403) else f"it answers HTTP {error.code}"
    except (OSError, ValueError) as error:
        return str(error.reason if isinstance(error, urllib.error.URLError) else error) or type(error).__name__


def receive(block: NDArray[np.uint8]) -> float:
    """Checksum of a block that came through the object store."""
    return float(block.sum(dtype=np.float64))


@ray.remote(max_restarts=0)
class Rank:
    """One rank of a group over all nodes that measures an all-reduce."""

    def find_port(self) -> tuple[str, int]:
        """An address of this node where the ranks can meet."""
        with socket.create_server(("", 0)) as free:
            return ray.util.get_node_ip_address(), int(free.getsockname()[1])

    def measure(self, rank: int, world: int, meet: tuple[str, int], megabytes: int, seconds: float) -> float:
        """Seconds of one all-reduce of so many megabytes, the best of three after one that warms up."""
        from datetime import timedelta

        use_interface_of_node()
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        wait = timedelta(seconds=seconds)
        store = dist.TCPStore(meet[0], meet[1], world, rank == 0, timeout=wait)  # type: ignore[attr-defined]
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=wait)
        try:
            values = torch.ones(megabytes * 250_000, device=device)
            best = float("inf")
            for _ in range(4):
                dist.barrier()
                began = time.perf_counter()
                dist.all_reduce(values)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                best = min(best, time.perf_counter() - began)
        finally:
            dist.destroy_process_group()
        return best
