"""The run's own record of its metrics: one JSON line a point, on disk before anybody else hears of it.

The first write of a (key, step) wins: a step that is trained again after a crash reuses the stored value and time, so MLflow,
which drops exact repeats, holds every point once. A value that came out differently is written beside the journal, and counted.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

FILE = "journal.jsonl"
SYSTEM_FILE = "journal.system.jsonl"
"""What the driver measures of its machine: a file of its own, because a journal has one writer."""
NODE_FILES = "journal.system.node-*.jsonl"
"""The same of the other machines that train, one file each."""
SYSTEM = "system/"
"""Prefix of what measures the machine and not the model: speeds, waits, memory."""
_SYNC_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one metric."""

    key: str
    """split/name, e.g. "train/loss"."""
    step: int
    """Optimizer steps done when it was measured."""
    value: float
    time_ms: int
    """Milliseconds since 1970, fixed when first written. No order depends on it: clocks jump."""


class Journal:
    """Appends points to a file; one writer at a time (rank 0). Training never waits for the disk, but in `sync`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = {(point.key, point.step): point.value for point in read_points(path)}
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._unwritten = b""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sync_often, name="starlab-journal", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of one step that are not there yet. They outlive this process at once, the machine in a second.

        Raises:
            OSError: the disk takes no more; the points are kept, and written with the next that can be.
        """
        now = time.time_ns() // 1_000_000
        lines = []
        for key, value in metrics.items():
            stored = self._known.get((key, step))
            if stored is None:
                self._known[key, step] = value
                lines.append(json.dumps({"key": key, "step": step, "value": value, "time_ms": now}) + "\n")
            elif not key.startswith(SYSTEM) and stored != value and not (math.isnan(stored) and math.isnan(value)):
                self._note_difference(key, step, stored, value)
        with self._lock:
            self._unwritten += "".join(lines).encode()
        self._write()

    def sync(self) -> None:
        """Put everything written so far on the disk; from any thread.

        Raises:
            OSError: it cannot be; nothing is lost while this process lives.
        """
        self._write()
        os.fsync(self._file)

    def close(self) -> None:
        """Sync and close; a second time does nothing.

        Raises:
            OSError: as `sync`.
        """
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        try:
            self.sync()
        finally:
            os.close(self._file)

    @property
    def num_bytes(self) -> int:
        """Length of the file once everything logged so far is in it."""
        with self._lock:
            return os.fstat(self._file).st_size + len(self._unwritten)

    def _write(self) -> None:
        with self._lock:
            while self._unwritten:  # a disk that fills up takes a part
                self._unwritten = self._unwritten[os.write(self._file, self._unwritten) :]

    def _sync_often(self) -> None:
        while not self._stop.wait(_SYNC_SECONDS):
            with contextlib.suppress(OSError):  # `sync` raises it, before a checkpoint relies on it
                os.fsync(self._file)

    def _note_difference(self, key: str, step: int, stored: float, value: float) -> None:
        line = json.dumps({"key": key, "step": step, "first": stored, "again": value}) + "\n"
        with contextlib.suppress(OSError), _differences_path(self._path).open("a", encoding="utf-8") as file:
            file.write(line)


def count_differences(path: Path) -> int:
    """Points of the journal at `path` that a replay computed otherwise than the first time, over all of the run's restarts.

    Those of `SYSTEM` aside: a clock never repeats. They are listed in `<name>.differences.jsonl` beside it.
    """
    beside = _differences_path(path)
    return beside.read_bytes().count(b"\n") if beside.exists() else 0


def journals(run: Path) -> list[Path]:
    """All journals of a run's folder, whether they are there yet or not."""
    return [run / FILE, run / SYSTEM_FILE, *sorted(run.glob(NODE_FILES))]


def count_points(path: Path) -> int:
    """Complete points of a journal."""
    return sum(1 for _ in read_points(path))


def read_points(path: Path, offset: int = 0) -> Iterator[Point]:
    """The complete points of a journal from byte `offset` on; a torn last line and damaged ones are left out."""
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
            point = _parse(line)
            if point is not None:
                yield point, offset


def _parse(line: bytes) -> Point | None:
    """None for a line that a bad block made unreadable: the points around it are still good."""
    try:
        raw = json.loads(line)
        return Point(str(raw["key"]), int(raw["step"]), float(raw["value"]), int(raw["time_ms"]))
    except (ValueError, TypeError, KeyError):
        return None


def _differences_path(path: Path) -> Path:
    return path.with_suffix(".differences.jsonl")


def _cut_torn_line(path: Path) -> None:
    """A writer killed in mid-line leaves a tail without newline: nobody has read it, so it goes."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
