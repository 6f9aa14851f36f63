"""The package itself: its files, their hash, and the copy of it that travels to a cluster.

The package is the checkout's files, or those of the installed wheel: whatever is running. Every question about "all of its
files" is answered here, so that none of them misses a folder.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
from collections.abc import Iterator
from pathlib import Path

ROOMS = ("platform", "models", "pipelines", "experiments")
"""The package's folders; the packages below them are found, not listed."""
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


def package_version() -> str:
    """The version of the installed starlab; "0" where it runs without being installed."""
    try:
        return importlib.metadata.version("starlab")
    except importlib.metadata.PackageNotFoundError:
        return "0"
