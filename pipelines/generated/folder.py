"""A folder of generated data: complete or missing, marked as generated, and never written over other files."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Protocol

from starlab.pipelines.clip import DataError

MARKER = "SYNTHETIC.txt"
"""The file that marks a folder as generated and names the settings; written last."""
CHUNK_CLIPS = 8


def write_folder(root: Path, marker: str, write_clips: Callable[[Path, range], None], num_clips: int, workers: int) -> None:
    """Fill a folder, or keep an existing one with the same marker. It gets its name only when it is complete.

    Args:
        root: The folder.
        marker: Text of the marker file: what the folder is and the settings it was made from.
        write_clips: Writes the clips of the given numbers below a folder; picklable.
        num_clips: How many clips there are.
        workers: Processes, each a fresh interpreter (a script must guard its entry with `__name__`); 1 uses this process.

    Raises:
        ValueError: `workers` is below 1.
        DataError: `root` exists with another marker or without one.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    root = Path(root).absolute()
    if _is_written(root, marker):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        partial.chmod(0o755)
        chunks = [range(first, min(first + CHUNK_CLIPS, num_clips)) for first in range(0, num_clips, CHUNK_CLIPS)]
        if workers == 1:
            for chunk in chunks:
                write_clips(partial, chunk)
        else:
            with ProcessPoolExecutor(min(workers, len(chunks)), multiprocessing.get_context("spawn")) as pool:
                for _ in pool.map(write_clips, [partial] * len(chunks), chunks):
                    pass
        (partial / MARKER).write_text(marker)
        try:
            os.rename(partial, root)  # noqa: PTH104 (Path.rename says less about what it replaces: an empty folder)
        except OSError:
            # Another process was faster; its folder is kept if it is the same.
            if not _is_written(root, marker):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_written(root: Path, marker: str) -> bool:
    """Whether the folder is complete; False where it is missing or empty."""
    if root.exists() and not root.is_dir():
        raise DataError(f"{root} is not a folder: name another one for synthetic data")
    if not root.exists() or not any(root.iterdir()):
        return False
    if not (root / MARKER).is_file():
        raise DataError(f"{root} holds files that were not generated (no {MARKER}): name another folder for synthetic data")
    if (root / MARKER).read_text() != marker:
        raise DataError(
            f"{root} was generated with other settings, or by another version (see {root / MARKER}): delete it, or name "
            "another folder"
        )
    return True


class GeneratedFolder(Protocol):
    """The settings that every folder of generated people in Penn Action's format has."""

    @property
    def seed(self) -> int:
        """Seed of everything that is drawn."""

    @property
    def size_px(self) -> int:
        """Side of the square frames."""

    @property
    def min_frames(self) -> int:
        """Frames of the shortest clips."""

    @property
    def max_frames(self) -> int:
        """Frames of the longest clips."""

    @property
    def num_clips(self) -> int:
        """Clips of all classes and both parts."""


def check_settings(config: GeneratedFolder) -> None:
    """Check the settings of generated people.

    Raises:
        ValueError: a number of clips or subjects is below 1, or another setting is out of its range.
    """
    for name in ("train_subjects", "test_subjects", "train_clips_per_class", "test_clips_per_class"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    if config.seed < 0:
        raise ValueError(f"seed must be 0 or more, got {config.seed}")
    if not 32 <= config.size_px <= 1024:
        raise ValueError(f"size_px must be in [32, 1024], got {config.size_px}")
    if not 16 <= config.min_frames <= config.max_frames:
        raise ValueError(f"min_frames must be in [16, max_frames], got {config.min_frames} and {config.max_frames}")
    if config.num_clips > 9999:
        raise ValueError(f"Penn Action names clips by four digits: {config.num_clips} clips are more than 9999")
