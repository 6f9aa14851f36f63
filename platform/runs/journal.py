"""Records the metrics of a run: one JSON line per point, written to disk before anything else reads it.

The first write of a (key, step) pair wins. A step that is trained again after a crash reuses the stored value and time, so
MLflow, which drops exact repeats, holds every point once. A value that differs on replay is written to a second file and
counted.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlab.platform.runs.background import Background
from starlab.platform.runs.jsonl import LineFollower, LineWriter, append_line, read_lines
from starlab.platform.runs.metric_names import SYSTEM

FILE = "journal.jsonl"
SYSTEM_FILE = "journal.system.jsonl"
"""Metrics of the driver's machine. They have their own file because a journal has exactly one writer."""
NODE_FILES = "journal.system.node-*.jsonl"
"""Metrics of each other machine that trains, one file per machine."""
_SYNC_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one metric."""

    key: str
    """Name of the metric, "part/name", e.g. "train/loss" (see metric_names.py)."""
    step: int
    """Optimizer steps done when it was measured."""
    value: float
    time_ms: int
    """Milliseconds since 1970, fixed when first written. Nothing is ordered by it, because clocks jump."""


class Journal:
    """Appends points to a file, with one writer at a time (rank 0). Training waits for the disk only in `sync`."""

    def __init__(self, path: Path, *, read: bool = True) -> None:
        """Open a journal to append to it.

        Args:
            path: File of the journal. It is created if it does not exist.
            read: Whether to read all points, because any of them may be logged again. With False, call `expect_replay`.
        """
        self._path = path
        self._known: dict[tuple[str, int], float] = {}
        self._lines = LineWriter(path)
        if read:
            self.expect_replay(0)
        self._syncing = Background("starlab-journal", self._try_to_sync, _SYNC_SECONDS).start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of one step that the journal does not hold yet.

        They survive the end of this process immediately, and a failure of the machine after about a second.

        Raises:
            OSError: The disk is full or failing. The points stay in memory and are written with the next ones.
        """
        now = time.time_ns() // 1_000_000
        lines = []
        for key, value in metrics.items():
            stored = self._known.get((key, step))
            if stored is None:
                self._known[key, step] = value
                lines.append({"key": key, "step": step, "value": value, "time_ms": now})
            elif not key.startswith(SYSTEM) and stored != value and not (math.isnan(stored) and math.isnan(value)):
                self._note_difference(key, step, stored, value)
        self._lines.write(lines)

    def expect_replay(self, offset: int) -> None:
        """Read the points from byte `offset` on, because their steps may be done again.

        Args:
            offset: The value of `num_bytes` at the checkpoint from which the training continues.
        """
        self._known |= {(point.key, point.step): point.value for point in read_points(self._path, offset)}

    def forget_before(self, step: int) -> None:
        """Free the memory of points before `step`, which no longer repeat once a checkpoint of `step` is complete."""
        self._known = {known: value for known, value in self._known.items() if known[1] >= step}

    def sync(self) -> None:
        """Flush everything logged so far to the disk. Safe to call from any thread.

        Raises:
            OSError: The disk is full or failing. The points stay in memory while this process lives.
        """
        self._lines.sync()

    def close(self) -> None:
        """Sync and close the journal. A second call does nothing.

        Raises:
            OSError: As for `sync`.
        """
        if not self._syncing.stopped:
            self._syncing.stop()
            self._lines.close()

    @property
    def num_bytes(self) -> int:
        """Length that the file has once everything logged so far is written."""
        return self._lines.num_bytes

    def _try_to_sync(self) -> None:
        with contextlib.suppress(OSError):  # raised again by `sync`, before a checkpoint relies on it
            self._lines.sync()

    def _note_difference(self, key: str, step: int, stored: float, value: float) -> None:
        with contextlib.suppress(OSError):
            append_line(_differences_path(self._path), {"key": key, "step": step, "first": stored, "again": value})


class PointFollower:
    """Reads the points that are added to a journal after the follower was created."""

    def __init__(self, path: Path) -> None:
        self._lines = LineFollower(path)

    def new_points(self) -> list[Point]:
        """Return the points written since the last call."""
        return [point for line in self._lines.new_lines() if (point := _point(line)) is not None]


def count_differences(path: Path) -> int:
    """Count the points of the journal at `path` that a replay computed differently, over all restarts of the run.

    Points under `SYSTEM` do not count, because measured times never repeat. `<name>.differences.jsonl`, beside the journal,
    lists the points.
    """
    beside = _differences_path(path)
    return beside.read_bytes().count(b"\n") if beside.exists() else 0


def journals(run: Path) -> list[Path]:
    """Return the paths of all journals of a run's folder. The first two may not exist yet."""
    return [run / FILE, run / SYSTEM_FILE, *sorted(run.glob(NODE_FILES))]


def count_points(path: Path) -> int:
    """Count the complete points of a journal."""
    return sum(1 for _ in read_points(path))


def read_points(path: Path, offset: int = 0) -> Iterator[Point]:
    """Yield the complete points of a journal from byte `offset` on."""
    for point, _ in read_points_with_ends(path, offset):
        yield point


def read_points_with_ends(path: Path, offset: int = 0) -> Iterator[tuple[Point, int]]:
    """Yield each point as `read_points` does, with the byte offset at which its line ends and a later read can continue."""
    for line, end in read_lines(path, offset):
        point = _point(line)
        if point is not None:
            yield point, end


def _point(line: Mapping[str, Any]) -> Point | None:
    """Parse a line. Returns None if it is not a point, for example because a bad disk block changed it."""
    try:
        return Point(str(line["key"]), int(line["step"]), float(line["value"]), int(line["time_ms"]))
    except (ValueError, TypeError, KeyError):
        return None


def _differences_path(path: Path) -> Path:
    return path.with_suffix(".differences.jsonl")
