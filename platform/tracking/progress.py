"""Reads the progress of a training from its journal and prints it: step, speed, time left, a line per epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from starlab.platform.runs import metric_names as names
from starlab.platform.runs.background import Background
from starlab.platform.runs.journal import FILE, Point, PointFollower

_READ_SECONDS = 0.5
_STILL_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Status:
    """Progress of a run."""

    step: int
    total_steps: int
    epoch: float
    """Number of epochs done, e.g. 0.8."""
    epochs: float
    """Number of epochs of the whole run."""
    value: dict[str, float]
    """Newest value of each metric in the journal."""
    seconds_left: float | None
    """Estimate from the speed since this process began to follow the run; None until the speed is known."""
    seconds_still: float = 0.0
    """Time since the newest point. An evaluation, a restart or a lost node takes longer than a few steps."""


class JournalFollower:
    """Follows the points that are added to a run's journal. Points of earlier calls of the run are ignored."""

    def __init__(self, run: Path, total_steps: int, epochs: float) -> None:
        """Follow the journal in the run's folder `run`. The whole run has `total_steps` steps and `epochs` epochs."""
        self._points = PointFollower(run / FILE)
        self._total_steps, self._epochs = total_steps, epochs
        self._latest: dict[str, Point] = {}
        self._first: tuple[int, float] | None = None
        self._newest_at = time.monotonic()

    def new_points(self) -> Iterator[Point]:
        """Return the points written since the last call, in order. `status` counts those that have been taken."""
        for point in self._points.new_points():
            self._newest_at = time.monotonic()
            self._latest[point.key] = point
            if self._first is None:
                self._first = (point.step, time.monotonic())
            yield point

    def status(self) -> Status | None:
        """Return the progress of the run, or None before its first point of the curve."""
        if names.TRAIN_LOSS not in self._latest:
            return None
        step, left = self._latest[names.TRAIN_LOSS].step, None
        if self._first and step > self._first[0]:
            left = (self._newest_at - self._first[1]) / (step - self._first[0]) * (self._total_steps - step)
        value = {key: point.value for key, point in self._latest.items()}
        return Status(
            step,
            self._total_steps,
            self._epochs * step / self._total_steps,
            self._epochs,
            value,
            left,
            time.monotonic() - self._newest_at,
        )


class Progress:
    """Prints a line per epoch from a thread of the driver, and further lines when an epoch is slow."""

    def __init__(
        self, run: Path, total_steps: int, epochs: float, say: Callable[[str], None], every_seconds: float = 15.0
    ) -> None:
        self._follower, self._say, self._every_seconds = JournalFollower(run, total_steps, epochs), say, every_seconds
        self._printed_at = time.monotonic()
        self._reading = Background("starlab-progress", self._read, _READ_SECONDS, last_call=True)

    def __enter__(self) -> Self:
        self._say("workers  starting")
        self._reading.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._reading.stop()

    def _read(self) -> None:
        for point in self._follower.new_points():
            if point.key == names.EPOCH:  # the last point that is written at the end of an epoch
                self._print(epoch_ended=True)
        if time.monotonic() - self._printed_at > self._every_seconds:
            self._print(epoch_ended=False)

    def _print(self, epoch_ended: bool) -> None:
        if status := self._follower.status():
            self._say(status_line(status, epoch_ended))
            self._printed_at = time.monotonic()


def status_line(status: Status, epoch_ended: bool) -> str:
    """Format the progress of a run as one line of a log."""
    value = status.value
    parts = [f"step {status.step:>5}/{status.total_steps}"]
    if epoch_ended:
        parts.insert(0, f"epoch {value[names.EPOCH]:>3.0f}/{status.epochs:g}")
        if names.EPOCH_TRAIN_LOSS in value:  # not where every step of the epoch was left out
            parts.append(f"loss {value[names.EPOCH_TRAIN_LOSS]:.3f}  train {value[names.EPOCH_TRAIN_TOP1]:.3f}")
        if names.VAL_TOP1 in value:
            parts.append(f"val {value[names.VAL_TOP1]:.3f}")
    else:
        parts.append(f"loss {value[names.TRAIN_LOSS]:.3f}")
    parts.append(f"{value[names.CLIPS_PER_SECOND]:.0f} clips/s  waiting for data {value[names.DATA_WAIT]:.0%}")
    if not epoch_ended and status.seconds_still > _STILL_SECONDS:
        parts.append(f"no further step for {duration(status.seconds_still)}")
    elif status.seconds_left is not None:
        parts.append(f"{duration(status.seconds_left)} left")
    return "train    " + "  ".join(parts)


def duration(seconds: float) -> str:
    """Format seconds: 75 as "1:15", 7500 as "2 h 05 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes}:{rest:02d}"
