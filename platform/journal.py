"""The run's own record of its metrics: one JSON line a point, on disk before anybody else hears of it.

The first write of a (key, step) wins: a step that is trained again after a crash reuses the stored value and time, so MLflow,
which drops exact repeats, holds every point once. A value that came out differently is counted.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

FILE = "journal.jsonl"
SYSTEM = "system/"
"""Prefix of what measures the machine and not the model: speeds, waits, memory."""


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one metric."""

    key: str
    """split/name, e.g. "train/loss"."""
    step: int
    """Optimizer steps done when it was measured."""
    value: float
    time_ms: int
    """Milliseconds since 1970, fixed when first written."""


class Journal:
    """Appends points to a file; one writer at a time (rank 0)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = {(point.key, point.step): point.value for point in read_points(path)}
        self.replayed_differently = 0
        """Points that a replay computed otherwise than the first time (those of `SYSTEM` aside: a clock never repeats)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)
        self._file = path.open("a", encoding="utf-8")
        self._synced_at = time.monotonic()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of one step that are not there yet. Reaches the disk within a second; `sync` at once."""
        now = time.time_ns() // 1_000_000
        for key, value in metrics.items():
            stored = self._known.get((key, step))
            if stored is None:
                self._known[key, step] = value
                self._file.write(json.dumps({"key": key, "step": step, "value": value, "time_ms": now}) + "\n")
            elif not key.startswith(SYSTEM) and stored != value and not (math.isnan(stored) and math.isnan(value)):
                self.replayed_differently += 1
        self._file.flush()
        if time.monotonic() - self._synced_at > 1.0:
            self.sync()

    def sync(self) -> None:
        """Put everything written so far on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced_at = time.monotonic()

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        self._file.close()


def read_points(path: Path, offset: int = 0) -> Iterator[Point]:
    """The complete points of a journal from byte `offset` on; a torn last line is left alone."""
    for point, _ in read_points_with_ends(path, offset):
        yield point


def read_points_with_ends(path: Path, offset: int = 0) -> Iterator[tuple[Point, int]]:
    """As `read_points`, each with the byte offset of its line's end: where a sender goes on."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield Point(**json.loads(line)), offset


def _cut_torn_line(path: Path) -> None:
    """A writer killed in mid-line leaves a tail without newline: nobody has read it, so it goes."""
    if not path.exists():
        return
    whole = max((end for _, end in read_points_with_ends(path)), default=0)
    if whole != path.stat().st_size:
        with path.open("r+b") as file:
            file.truncate(whole)
