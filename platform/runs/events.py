"""What happened to a run besides its metrics: one JSON line an event, said to the user when it happens.

{"time": 1790000000.0, "kind": "bad_loss", "rank": 0, "step": 120, "says": "the loss was nan; the step was left out"}
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "events.jsonl"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened."""

    time: float
    """Seconds since 1970."""
    kind: str
    """bad_loss, stuck, preempted, resumed, checkpoint_failed, checkpoint_passed_over, orphan_removed, journal_failed."""
    rank: int | None
    step: int | None
    says: str


def record(folder: Path, kind: str, says: str, *, rank: int | None = None, step: int | None = None) -> None:
    """Append an event to the run's; a full disk does not stop whoever tells of it."""
    event = Event(time.time(), kind, rank, step, says)
    with contextlib.suppress(OSError), (folder / FILE).open("ab+") as file:
        if file.tell() and file.seek(-1, os.SEEK_END) and file.read(1) != b"\n":
            file.write(b"\n")  # somebody's line was cut off: it is lost, this one is not
        file.write(json.dumps(asdict(event)).encode() + b"\n")


def read_events(folder: Path) -> list[Event]:
    """All events of a run, oldest first; torn lines are left out."""
    return [event for event, _ in _events_from(folder / FILE, 0)]


class EventReader:
    """Says new events of a run from a thread of the driver."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._path, self._say = folder / FILE, say
        self._offset = self._path.stat().st_size if self._path.exists() else 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="starlab-events", daemon=True)

    def __enter__(self) -> EventReader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.5):
            self._read()
        self._read()

    def _read(self) -> None:
        for event, end in _events_from(self._path, self._offset):
            self._offset = end
            where = "".join(
                [f" rank {event.rank}" * (event.rank is not None), f" step {event.step}" * (event.step is not None)]
            )
            self._say(f"{'notice':<9}{event.kind}{where}: {event.says}")


def _events_from(path: Path, offset: int) -> Iterator[tuple[Event, int]]:
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                event = Event(**json.loads(line))
            except (ValueError, TypeError):  # cut off by a full disk
                continue
            yield event, offset
