"""The parts of the benchmark, the time that each may take, and the JSON file that takes every row as soon as it is there."""

from __future__ import annotations

import gc
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]
"""One line of the report: "what", its figures, and "failed" or "skipped" with the reason where there are none."""

LEAST_SECONDS = 1.0
"""A part with less time than this is not started."""


class OutOfTimeError(BaseException):
    """The time of a part is over. No `Exception`, so that nothing between here and the part's loop takes it for its own."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the benchmark."""

    name: str
    share: float
    """Its share of the time, relative to the shares of the others."""
    rows: Callable[[], Iterator[Row]]
    """Measures; yields every row as soon as it is known."""


@dataclass(slots=True)
class Report:
    """The file: written when it is created and after every row, so that a run that is cut off loses one row at most."""

    path: Path
    head: Mapping[str, Any]
    """What the whole run has in common: card, versions, date."""
    parts: dict[str, Row] = field(default_factory=dict)
    summary: list[Row] = field(default_factory=list)

    def open(self, names: Sequence[str]) -> None:
        """List every part as not reached."""
        self.parts = {name: {"status": "not reached", "rows": []} for name in names}
        self.write()

    def rows(self, part: str) -> list[Row]:
        """The rows of a part that hold figures."""
        found = self.parts.get(part, {"rows": []})["rows"]
        return [row for row in found if "failed" not in row and "skipped" not in row]

    def add(self, part: str, row: Row) -> None:
        """Take a row, print it and write the file. A row with a number that is not finite counts as failed."""
        if bad := [key for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)]:
            row = {**row, **dict.fromkeys(bad), "failed": f"not finite: {', '.join(bad)}"}
        self.parts[part]["rows"].append(row)
        print(f"  {line(row)}", flush=True)
        self.write()

    def write(self) -> None:
        """Replace the file as a whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**self.head, "parts": self.parts, "summary": self.summary}, indent=1, ensure_ascii=False)
        partial = self.path.with_suffix(".partial")
        partial.write_text(text + "\n")
        partial.replace(self.path)


def run_parts(parts: Sequence[Part], report: Report, seconds: float) -> None:
    """Run the parts in order within `seconds`. A part that raises or runs out of time leaves its rows, and the next one starts.

    What a part leaves of its time goes to the parts after it, by their shares.
    """
    report.open([part.name for part in parts])
    end = time.monotonic() + seconds
    for index, part in enumerate(parts):
        entry = report.parts[part.name]
        start = time.monotonic()
        budget = (end - start) * part.share / sum(later.share for later in parts[index:])
        print(f"\n{part.name} (up to {max(0.0, budget):.0f} s)", flush=True)
        if budget < LEAST_SECONDS:
            entry["status"] = "skipped"
            entry["error"] = f"no time left of {seconds:.0f} s"
        else:
            entry["status"] = "done"
            try:
                with time_limit(budget):
                    for row in part.rows():
                        report.add(part.name, row)
            except OutOfTimeError:
                entry["status"], entry["error"] = "out of time", f"its {budget:.0f} s were over"
            except Exception as error:
                entry["status"], entry["error"] = "failed", reason(error)
            release()
        entry["seconds"] = round(time.monotonic() - start, 1)
        if "error" in entry:
            print(f"  {part.name}: {entry['status']}: {entry['error']}", flush=True)
        report.write()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTimeError inside once `seconds` are over, and again every 20 s in case a library swallows it."""

    def interrupt(*_: object) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, interrupt)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, 20.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def guarded(what: str, figures: Callable[[], Row]) -> Row:
    """A row of figures, or the reason why there are none; the device's memory is given back either way."""
    row: Row = {"what": what}
    try:
        row |= figures()
    except Exception as error:
        row["failed"] = reason(error)
    release()
    return row


def reason(error: Exception) -> str:
    """The kind of an error and the first line of its message."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of the device's memory"
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:300]}"


def release() -> None:
    """Forget compiled code and give unused memory back to the device."""
    if "torch._dynamo" in sys.modules:
        with suppress(Exception):  # an interrupted compilation may leave it in no state to be reset
            torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def line(row: Row) -> str:
    """A row as text; lists and nested figures stay in the file."""
    shown = [f"{key} {number(value)}" for key, value in row.items() if key != "what" and not isinstance(value, list | dict)]
    return f"{row['what']}: {', '.join(shown)}"


def number(value: object) -> str:
    """A figure as text, to four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
