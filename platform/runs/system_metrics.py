"""Records CPU, memory and GPU use of the driver's machine and of each worker's machine in the run's system journals.

The names are those of MLflow, so that its UI shows them under "System metrics". Names for a worker's machine include its node
number. A step is a sample, taken every few seconds.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Self

import psutil

from starlab.platform.runs.background import Background
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import NODE_FILES, SYSTEM_FILE, Journal
from starlab.platform.runs.jsonl import read_last_line
from starlab.platform.runs.metric_names import SYSTEM
from starlab.platform.runs.process import this_machine

_NVIDIA_SMI_SECONDS = 5.0


class SystemMetrics:
    """Samples this machine from a thread. A sample that fails does not disturb the run."""

    def __init__(self, run: Path, every_seconds: float = 10.0, node: int | None = None) -> None:
        """Prepare the sampling of this machine.

        Args:
            run: The run's folder.
            every_seconds: Interval between samples.
            node: Number of this machine among the workers' machines; None for the driver's machine.
        """
        self._path = run / (SYSTEM_FILE if node is None else NODE_FILES.replace("*", str(node)))
        self._prefix = SYSTEM if node is None else f"{SYSTEM}node_{node}/"
        self._journal: Journal | None = None
        self._sample = 0
        self._sampling = Background(
            "starlab-system-metrics", self._log_sample, every_seconds, first_seconds=min(1.0, every_seconds)
        )

    def __enter__(self) -> Self:
        psutil.cpu_percent()  # the first call only starts the measurement
        self._sampling.start()
        return self

    def __exit__(self, *_: object) -> None:
        ended = self._sampling.stop(timeout_seconds=2 * _NVIDIA_SMI_SECONDS)
        if ended and self._journal:
            with contextlib.suppress(OSError):
                self._journal.close()

    def _log_sample(self) -> None:
        if self._journal is None:  # opened in the thread, because a long journal takes a while to read
            last = read_last_line(self._path)
            self._sample = int(last["step"]) + 1 if last else 0
            self._journal = Journal(self._path, read=False)
        with contextlib.suppress(OSError):  # a full disk: this sample is written with the next one
            metrics = machine_metrics() | gpu_metrics()
            self._journal.log(self._sample, {self._prefix + key.removeprefix(SYSTEM): value for key, value in metrics.items()})
        self._sample += 1


def worker_metrics(run: RunFolder, node: int, local_rank: int) -> AbstractContextManager[object]:
    """Return the sampler for a worker's machine, or a null context.

    Only the first worker of a machine samples it, and only if the driver runs on another machine.
    """
    driver = run.info.driver
    if local_rank > 0 or (driver is not None and this_machine() == driver.machine):
        return nullcontext()
    return SystemMetrics(run.path, node=node)


def machine_metrics() -> dict[str, float]:
    """Return CPU (percent of all cores since the last call) and memory (MB and percent) of this machine."""
    memory = psutil.virtual_memory()
    return {
        f"{SYSTEM}cpu_utilization_percentage": psutil.cpu_percent(),
        f"{SYSTEM}system_memory_usage_megabytes": memory.used / 1e6,
        f"{SYSTEM}system_memory_usage_percentage": memory.percent,
    }


def gpu_metrics() -> dict[str, float]:
    """Return load (percent), memory (MB, percent) and power (watts) of each NVIDIA GPU. Empty without nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    wanted = "index,utilization.gpu,memory.used,memory.total,power.draw"
    command = [program, f"--query-gpu={wanted}", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    metrics: dict[str, float] = {}
    for line in output.splitlines():
        metrics |= _gpu_line(line)
    return metrics


def _gpu_line(line: str) -> Mapping[str, float]:
    """Parse the values of one GPU. A value that the card does not report ("[N/A]") is omitted."""
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
