"""Lists and hashes the files of the starlab package, and copies them for a cluster.

The files are those of the checkout or of the installed wheel, whichever is running. All code that needs the complete list of
files uses this module, so that no folder is missed.
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
"""Top-level folders of the package. The packages below them are found automatically."""
_COMMIT_FILE = "commit.json"
_PATTERNS = ("*.py", "*.yaml", "*.sh", "*.css", "*.js", "*.html", "py.typed")


def package_root() -> Path:
    """Return the folder that contains the rooms: the checkout, or `starlab/` in site-packages."""
    return Path(__file__).resolve().parent.parent


def package_files(root: Path) -> Iterator[Path]:
    """Yield the package files below `root` as sorted relative paths: modules, experiments, styles, scripts, typing markers."""
    for room in sorted(ROOMS):
        found = {path.relative_to(root) for pattern in _PATTERNS for path in (root / room).rglob(pattern)}
        yield from sorted(path for path in found if "__pycache__" not in path.parts)


def code_hash(root: Path) -> str:
    """Compute a SHA-256 (its first 12 hex digits) over the names and contents of the package's .py files below `root`."""
    digest = hashlib.sha256()
    for path in package_files(root):
        if path.suffix == ".py":
            digest.update(f"{path.as_posix()}\0".encode() + (root / path).read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def copy_package(destination: Path) -> None:
    """Copy this package to `destination` as an importable `starlab/`, with the metadata that holds its version.

    The files are copied instead of building a wheel: Ray installs a wheel with all its requirements (a second torch, and not
    the V100 build) and identifies it by its file name alone, so an edited checkout of the same version would run old code.
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
    """Return the version of the installed starlab, or "0" if it runs without being installed."""
    try:
        return importlib.metadata.version("starlab")
    except importlib.metadata.PackageNotFoundError:
        return "0"
