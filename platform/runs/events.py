"""Events of a run besides its metrics: one JSON line per event, printed for the user when it is written.

{"time": 1790000000.0, "kind": "bad_loss", "rank": 0, "step": 120, "says": "the loss was nan; the step was left out"}
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from starlab.platform.runs.background import Background
from starlab.platform.runs.jsonl import LineFollower, append_line, read_lines

FILE = "events.jsonl"
_READ_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a run."""

    time: float
    """Seconds since 1970."""
    kind: str
    """bad_loss, stuck, preempted, resumed, checkpoint_failed, checkpoint_passed_over, orphan_removed, journal_failed."""
    rank: int | None
    step: int | None
    says: str


def record(folder: Path, kind: str, says: str, *, rank: int | None = None, step: int | None = None) -> None:
    """Append an event to the run's file. On a full disk the event is lost and nothing fails."""
    with contextlib.suppress(OSError):
        append_line(folder / FILE, asdict(Event(time.time(), kind, rank, step, says)))


def read_events(folder: Path) -> list[Event]:
    """All events of a run, oldest first; incomplete lines are skipped."""
    return [event for line, _ in read_lines(folder / FILE) if (event := _event(line)) is not None]


class EventPrinter:
    """Prints new events of a run, from a thread of the driver."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._lines, self._say = LineFollower(folder / FILE), say
        self._reading = Background("starlab-events", self._read, _READ_SECONDS, last_call=True)

    def __enter__(self) -> Self:
        self._reading.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._reading.stop()

    def _read(self) -> None:
        for line in self._lines.new_lines():
            if (event := _event(line)) is not None:
                rank = "" if event.rank is None else f" rank {event.rank}"
                step = "" if event.step is None else f" step {event.step}"
                self._say(f"{'notice':<9}{event.kind}{rank}{step}: {event.says}")


def _event(line: Mapping[str, Any]) -> Event | None:
    try:
        return Event(**line)
    except TypeError:  # a line that is not an event
        return None
