"""The run's own record of its metrics: one JSON line a point, on disk before anything else reads it.

The first write of a (key, step) wins: a step that is trained again after a crash reuses the stored value and time, so MLflow,
which drops exact repeats, holds every point once. A value that came out differently is written beside the journal, and counted.
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
"""What the driver measures of its machine: a file of its own, because a journal has one writer."""
NODE_FILES = "journal.system.node-*.jsonl"
"""The same for the other machines that train, one file each."""
_SYNC_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one metric."""

    key: str
    """part/name, e.g. "train/loss"; see metric_names.py."""
    step: int
    """Optimizer steps done when it was measured."""
    value: float
    time_ms: int
    """Milliseconds since 1970, fixed when first written. No order depends on it: clocks jump."""


class Journal:
    """Appends points to a file; one writer at a time (rank 0). Training never waits for the disk, except in `sync`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = {(point.key, point.step): point.value for point in read_points(path)}
        self._lines = LineWriter(path)
        self._syncing = Background("starlab-journal", self._try_to_sync, _SYNC_SECONDS).start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of one step that are not there yet. They survive this process at once, the machine in a second.

        Raises:
            OSError: the disk takes no more; the points are kept, and written with the next ones that can be.
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

    def sync(self) -> None:
        """Put everything written so far on the disk; from any thread.

        Raises:
            OSError: it cannot be; nothing is lost while this process lives.
        """
        self._lines.sync()

    def close(self) -> None:
        """Sync and close; a second call does nothing.

        Raises:
            OSError: as `sync`.
        """
        if not self._syncing.stopped:
            self._syncing.stop()
            self._lines.close()

    @property
    def num_bytes(self) -> int:
        """Length of the file once everything logged so far is in it."""
        return self._lines.num_bytes

    def _try_to_sync(self) -> None:
        with contextlib.suppress(OSError):  # `sync` raises it, before a checkpoint relies on it
            self._lines.sync()

    def _note_difference(self, key: str, step: int, stored: float, value: float) -> None:
        with contextlib.suppress(OSError):
            append_line(_differences_path(self._path), {"key": key, "step": step, "first": stored, "again": value})


class PointFollower:
    """Reads the points that a journal gains after the follower was made."""

    def __init__(self, path: Path) -> None:
        self._lines = LineFollower(path)

    def new_points(self) -> list[Point]:
        """The points written since the last call."""
        return [point for line in self._lines.new_lines() if (point := _point(line)) is not None]


def count_differences(path: Path) -> int:
    """Points of the journal at `path` that a replay computed differently from the first time, over all restarts of the run.

    Points under `SYSTEM` do not count: a clock never repeats. The points are listed in `<name>.differences.jsonl` beside it.
    """
    beside = _differences_path(path)
    return beside.read_bytes().count(b"\n") if beside.exists() else 0


def journals(run: Path) -> list[Path]:
    """All journals of a run's folder, whether they exist yet or not."""
    return [run / FILE, run / SYSTEM_FILE, *sorted(run.glob(NODE_FILES))]


def count_points(path: Path) -> int:
    """Complete points of a journal."""
    return sum(1 for _ in read_points(path))


def read_points(path: Path, offset: int = 0) -> Iterator[Point]:
    """Yield the complete points of a journal from byte `offset` on."""
    for point, _ in read_points_with_ends(path, offset):
        yield point


def read_points_with_ends(path: Path, offset: int = 0) -> Iterator[tuple[Point, int]]:
    """Yield as `read_points`, each with the byte offset of its line's end: where a sender goes on."""
    for line, end in read_lines(path, offset):
        point = _point(line)
        if point is not None:
            yield point, end


def _point(line: Mapping[str, Any]) -> Point | None:
    """None for a line that is no point, such as one that a bad block changed."""
    try:
        return Point(str(line["key"]), int(line["step"]), float(line["value"]), int(line["time_ms"]))
    except (ValueError, TypeError, KeyError):
        return None


def _differences_path(path: Path) -> Path:
    return path.with_suffix(".differences.jsonl")
