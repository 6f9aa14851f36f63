"""CPU, memory and GPUs of the driver's machine and of each other that trains, in the run's system journals, and so in MLflow.

The names are MLflow's own, so that its page shows them under "System metrics"; a worker's machine has its node's number in
them. A step is a sample, one every few seconds.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import psutil

from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import NODE_FILES, SYSTEM, SYSTEM_FILE, Journal, read_points
from starlab.platform.runs.reaper import this_process

_NVIDIA_SMI_SECONDS = 5.0


class SystemMetrics:
    """Samples this machine from a thread; nothing it meets can disturb the run."""

    def __init__(self, run: Path, every_seconds: float = 10.0, node: int | None = None) -> None:
        """`run` is the run's folder, `node` this machine's number among the workers'; None is the driver's machine."""
        self._path = run / (SYSTEM_FILE if node is None else NODE_FILES.replace("*", str(node)))
        self._prefix = SYSTEM if node is None else f"{SYSTEM}node_{node}/"
        self._every_seconds = every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="starlab-system-metrics", daemon=True)

    def __enter__(self) -> SystemMetrics:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=2 * _NVIDIA_SMI_SECONDS)

    def _run(self) -> None:
        sample = max((point.step for point in read_points(self._path)), default=-1) + 1
        journal = Journal(self._path)
        psutil.cpu_percent()  # the first call only starts the measurement
        wait = min(1.0, self._every_seconds)
        while not self._stop.wait(wait):
            with contextlib.suppress(OSError):  # a full disk: the next sample takes this one along
                metrics = machine_metrics() | gpu_metrics()
                journal.log(sample, {self._prefix + key.removeprefix(SYSTEM): value for key, value in metrics.items()})
            sample, wait = sample + 1, self._every_seconds
        with contextlib.suppress(OSError):
            journal.close()


def worker_metrics(run: RunFolder, node: int, local_rank: int) -> AbstractContextManager[object]:
    """What a worker samples: its machine, if it is the first there and the driver, which samples its own, is elsewhere."""
    drivers = run.read_json("run.json")["driver"]["machine"]
    if local_rank > 0 or this_process()["machine"] == drivers:
        return nullcontext()
    return SystemMetrics(run.path, node=node)


def machine_metrics() -> dict[str, float]:
    """CPU (percent of all cores since the last call) and memory (MB and percent) of this machine."""
    memory = psutil.virtual_memory()
    return {
        f"{SYSTEM}cpu_utilization_percentage": psutil.cpu_percent(),
        f"{SYSTEM}system_memory_usage_megabytes": memory.used / 1e6,
        f"{SYSTEM}system_memory_usage_percentage": memory.percent,
    }


def gpu_metrics() -> dict[str, float]:
    """Load (percent) and memory (MB, percent) of each NVIDIA GPU that nvidia-smi names; nothing without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    wanted = "index,utilization.gpu,memory.used,memory.total,power.draw"
    command = [program, f"--query-gpu={wanted}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    metrics: dict[str, float] = {}
    for line in said.splitlines():
        metrics |= _gpu_line(line)
    return metrics


def _gpu_line(line: str) -> Mapping[str, float]:
    """One GPU's values; a value that the card does not tell ("[N/A]") is left out."""
    index, *texts = [text.strip() for text in line.split(",")]
    load, used, total, watts = (_number(text) for text in (*texts, "", "", "", "")[:4])
    named = {
        "utilization_percentage": load,
        "memory_usage_megabytes": None if used is None else used * 2**20 / 1e6,  # nvidia-smi counts in MiB
        "memory_usage_percentage": 100 * used / total if used is not None and total else None,
        "power_usage_watts": watts,
    }
    return {f"{SYSTEM}gpu_{index}_{name}": value for name, value in named.items() if value is not None}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
