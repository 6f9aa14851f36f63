"""Tags that every run carries: the code, the libraries and the device that made it.

`run.json` has those of the run's first start, but the device of its last. `provenance.jsonl` in the run's folder has a line for
the first start, and for each later one that ran other code, other libraries or another device.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from starlab.platform.package import code_hash, package_root, source_commit
from starlab.platform.runs import events
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.jsonl import append_line, read_lines
from starlab.platform.runs.records import RunInfo

FILE = "provenance.jsonl"
DEVICE, CODE = "starlab.device", "starlab.code"
_PACKAGES = ("ray", "torch", "torchvision", "mlflow", "optuna", "pyarrow", "numpy")


def provenance() -> dict[str, str]:
    """Tags with the commit and dirty flag of the checkout that the code runs from, code hash, library versions and device."""
    root = package_root()
    commit, dirty = source_commit(root)
    tags = {
        "starlab.version": importlib.metadata.version("starlab"),
        CODE: code_hash(root),
        "starlab.git_commit": commit or "not a git checkout",
        "starlab.git_dirty": dirty,
        "starlab.python": platform.python_version(),
        DEVICE: device_name(),
    }
    return tags | {
        f"starlab.version.{package}": version for package, version in package_versions().items() if package in _PACKAGES
    }


def package_versions() -> dict[str, str]:
    """Version of starlab and of each library that a result depends on."""
    return {package: importlib.metadata.version(package) for package in ("starlab", *_PACKAGES)}


def note_start(folder: RunFolder, tags: Mapping[str, str]) -> None:
    """Append to the run's provenance what differs from the start before; called at every start with its tags.

    Tags that differ are events, too, so that the user sees that a run goes on under other code. Tags without a difference
    append nothing.
    """
    current: dict[str, str] = {}
    for line, _ in read_lines(folder.path / FILE):
        current |= line["tags"]
    new = {key: value for key, value in tags.items() if current.get(key) != value}
    if not new:
        return
    append_line(folder.path / FILE, {"time": datetime.now(UTC).isoformat(timespec="seconds"), "tags": new})
    changes = [f"{key.removeprefix('starlab.')} {current[key]} → {value}" for key, value in new.items() if key in current]
    if changes:
        events.record(folder.path, "changed", f"the run goes on with {', '.join(changes)}; see {FILE}")


def note_device(folder: RunFolder, workers: int, device: torch.device) -> None:
    """Record the device that trains, on rank 0: the driver's machine is often another one."""
    name = f"{workers} x {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device_name()
    note_start(folder, {DEVICE: name})
    folder.update(RunInfo, lambda run: replace(run, tags={**run.tags, DEVICE: name}))


def device_name() -> str:
    """The GPUs, or else the CPUs, of this machine: "4 x Tesla V100-SXM2-16GB"."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return f"{os.cpu_count()} x {model}"
