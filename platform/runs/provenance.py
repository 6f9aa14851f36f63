"""Tags that every run carries: the code, the libraries and the machine that made it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from starlab.platform.package import code_hash, package_root

_PACKAGES = ("ray", "torch", "torchvision", "mlflow", "optuna", "pyarrow", "numpy")


def provenance() -> dict[str, str]:
    """Tags with the commit and dirty flag of the checkout that the code runs from, code hash, library versions and device."""
    root = package_root()
    tags = {
        "starlab.version": importlib.metadata.version("starlab"),
        "starlab.code": code_hash(root),
        "starlab.git_commit": _git(root, "rev-parse", "HEAD") or "not a git checkout",
        "starlab.git_dirty": {None: "unknown", "": "false"}.get(_git(root, "status", "--porcelain"), "true"),
        "starlab.python": platform.python_version(),
        "starlab.device": _device(),
    }
    return tags | {
        f"starlab.version.{package}": version for package, version in package_versions().items() if package in _PACKAGES
    }


def package_versions() -> dict[str, str]:
    """Version of starlab and of each library that a result depends on."""
    return {package: importlib.metadata.version(package) for package in ("starlab", *_PACKAGES)}


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command in this checkout; None outside one and in one that only contains an installed starlab."""
    if not (root / "pyproject.toml").is_file():
        return None
    try:
        answer = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _device() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return f"{os.cpu_count()} x {model}"
