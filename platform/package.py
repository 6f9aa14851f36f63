"""The package itself: its files, their hash, and the copy of it that travels to a cluster.

The package is the checkout's files, or those of the installed wheel: whatever is running. Every question about "all of its
files" is answered here, so that none of them misses a folder.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOMS = ("platform", "models", "pipelines", "experiments")
"""The package's folders; the packages below them are found, not listed."""
_COMMIT_FILE = "commit.json"
_PATTERNS = ("*.py", "*.yaml", "py.typed")


def package_root() -> Path:
    """The folder that holds the rooms: the checkout, or `starlab/` in site-packages."""
    return Path(__file__).resolve().parent.parent


def package_files(root: Path) -> Iterator[Path]:
    """The files of the package below `root`, as paths relative to it: modules, experiments and typing marks, sorted."""
    for room in sorted(ROOMS):
        found = {path.relative_to(root) for pattern in _PATTERNS for path in (root / room).rglob(pattern)}
        yield from sorted(path for path in found if "__pycache__" not in path.parts)


def code_hash(root: Path) -> str:
    """SHA-256 (12 hex digits) over the names and bytes of the package's .py files below `root`."""
    digest = hashlib.sha256()
    for path in package_files(root):
        if path.suffix == ".py":
            digest.update(f"{path.as_posix()}\0".encode() + (root / path).read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def copy_package(destination: Path) -> None:
    """Write this package below `destination` as an importable `starlab/`, with the metadata that gives its version.

    The files travel, not a wheel: Ray installs a wheel with all its requirements (a second torch, and not V100's) and
    names it by its file name alone, so an edited checkout of the same version would run the old code.
    """
    root = package_root()
    for path in package_files(root):
        target = destination / "starlab" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, target)
    metadata = destination / f"starlab-{package_version()}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: starlab\nVersion: {package_version()}\n")
    metadata.with_name(_COMMIT_FILE).write_text(json.dumps(source_commit(root)))


def source_commit(root: Path) -> tuple[str | None, str]:
    """Commit of the package at `root` and whether it was edited since: "true", "false" or "unknown".

    A copy made by `copy_package` has those of the checkout that it was made from; elsewhere the commit is None.
    """
    for copied in root.parent.glob(f"starlab-*.dist-info/{_COMMIT_FILE}"):
        commit, dirty = json.loads(copied.read_text())
        return commit, dirty
    commit, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain")
    return commit, "unknown" if changes is None else str(bool(changes)).lower()


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command in this checkout; None outside one and in one that only contains an installed starlab."""
    if not (root / "pyproject.toml").is_file():
        return None
    try:
        answer = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def package_version() -> str:
    """The version of the installed starlab; "0" where it runs without being installed."""
    try:
        return importlib.metadata.version("starlab")
    except importlib.metadata.PackageNotFoundError:
        return "0"
