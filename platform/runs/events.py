"""Events of a run besides its metrics: one JSON line per event, printed for the user when it is written.

events.jsonl is the driver's, events.rank-N.jsonl that of a rank and events.watchdog-N.jsonl that of its watchdog: each file has
one writer, because on NFS lines that two machines append to one file overwrite each other. Readers read all files, in the order
of the events' times.

{"time": 1790000000.0, "kind": "bad_loss", "rank": 0, "step": 120, "says": "the loss was nan; the step was left out"}
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from starlab.platform.runs.background import Background
from starlab.platform.runs.jsonl import append_line, read_lines

FILE = "events.jsonl"
_FILES = "events*.jsonl"
_READ_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a run."""

    time: float
    """Seconds since 1970."""
    kind: str
    """bad_loss, stuck, preempted, resumed, restarted, waiting, workers, node_silent, node_back, node_lost, changed,
    orphan_removed, journal_failed, checkpoint_failed, checkpoint_passed_over."""
    rank: int | None
    step: int | None
    says: str


def record(folder: Path, kind: str, says: str, *, rank: int | None = None, step: int | None = None) -> None:
    """Append an event to the file of the rank, or of the driver without one. On a full disk it is lost and nothing fails."""
    file = FILE if rank is None else f"events.rank-{rank}.jsonl"
    with contextlib.suppress(OSError):
        append_line(folder / file, asdict(Event(time.time(), kind, rank, step, says)))


def read_events(folder: Path) -> list[Event]:
    """All events of a run, oldest first; incomplete lines are skipped."""
    lines = (line for path in sorted(folder.glob(_FILES)) for line, _ in read_lines(path))
    return sorted((event for line in lines if (event := _event(line)) is not None), key=lambda event: event.time)


class EventPrinter:
    """Prints new events of a run, from a thread of the driver."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say
        self._offsets = {path: path.stat().st_size for path in folder.glob(_FILES)}
        self._reading = Background("starlab-events", self._read, _READ_SECONDS, last_call=True)

    def __enter__(self) -> Self:
        self._reading.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._reading.stop()

    def _read(self) -> None:
        lines = []
        for path in self._folder.glob(_FILES):
            for line, end in read_lines(path, self._offsets.get(path, 0)):
                lines.append(line)
                self._offsets[path] = end
        for event in sorted(filter(None, map(_event, lines)), key=lambda event: event.time):
            rank = "" if event.rank is None else f" rank {event.rank}"
            step = "" if event.step is None else f" step {event.step}"
            self._say(f"{'notice':<9}{event.kind}{rank}{step}: {event.says}")


def _event(line: Mapping[str, Any]) -> Event | None:
    known = {field.name: line.get(field.name) for field in fields(Event)}  # a newer starlab may write further keys
    return Event(**known) if {"time", "kind", "says"} <= line.keys() else None  # type: ignore[arg-type]
