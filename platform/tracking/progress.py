"""What a training tells whoever waits for it, read from the run's journal: where it is, how fast, how long it will take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlab.platform.runs import journal
from starlab.platform.runs.journal import Point, read_points_with_ends
from starlab.platform.worker.job import TrainJob


@dataclass(frozen=True, slots=True)
class Status:
    """Where a run is."""

    step: int
    total_steps: int
    epoch: float
    """Passes done."""
    epochs: float
    value: dict[str, float]
    """Newest value of each metric of the journal."""
    seconds_left: float | None
    """By the speed of this call; None until it is known."""


class JournalFollower:
    """Reads what a journal gained since the last look; what an earlier call of the run wrote is old news."""

    def __init__(self, job: TrainJob) -> None:
        self._path = job.folder.path / journal.FILE
        self._total_steps, self._epochs = job.total_steps, float(job.spec.train.epochs)
        self._offset = self._path.stat().st_size if self._path.exists() else 0
        self._latest: dict[str, Point] = {}
        self._first: tuple[int, float] | None = None

    def new_points(self) -> list[Point]:
        """The points written since the last call."""
        points = []
        for point, end in read_points_with_ends(self._path, self._offset):
            self._offset = end
            self._latest[point.key] = point
            if self._first is None:
                self._first = (point.step, time.monotonic())
            points.append(point)
        return points

    def status(self) -> Status | None:
        """Where the run is; None before its first point of the curve."""
        if "train/loss" not in self._latest:
            return None
        step, left = self._latest["train/loss"].step, None
        if self._first and step > self._first[0]:
            left = (time.monotonic() - self._first[1]) / (step - self._first[0]) * (self._total_steps - step)
        value = {key: point.value for key, point in self._latest.items()}
        return Status(step, self._total_steps, self._epochs * step / self._total_steps, self._epochs, value, left)


class Progress:
    """Follows a journal from a thread of the driver and says one line per epoch, and one in between when it is slow."""

    def __init__(self, job: TrainJob, say: Callable[[str], None], every_seconds: float = 15.0) -> None:
        self._follower, self._say, self._every_seconds = JournalFollower(job), say, every_seconds
        self._said_at = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="starlab-progress", daemon=True)

    def __enter__(self) -> Progress:
        self._say("workers  starting")
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
        keys = {point.key for point in self._follower.new_points()}
        status = self._follower.status()
        if status is None:
            return
        if "val/loss" in keys:  # the last point that the end of an epoch writes
            self._tell(status_line(status, with_validation=True))
        elif time.monotonic() - self._said_at > self._every_seconds:
            self._tell(status_line(status, with_validation=False))

    def _tell(self, line: str) -> None:
        self._say(line)
        self._said_at = time.monotonic()


def status_line(status: Status, with_validation: bool) -> str:
    """Where a run is, as one line of a log."""
    value = status.value
    parts = [f"step {status.step:>5}/{status.total_steps}"]
    if with_validation:
        parts.insert(0, f"epoch {value['epoch']:>3.0f}/{status.epochs:g}")
        parts.append(
            f"loss {value['epoch/train_loss']:.3f}  train {value['epoch/train_top1']:.3f}  val {value['val/top1']:.3f}"
        )
    else:
        parts.append(f"loss {value['train/loss']:.3f}")
    parts.append(f"{value['system/clips_per_second']:.0f} clips/s  waiting for data {value['system/data_wait']:.0%}")
    if status.seconds_left is not None:
        parts.append(f"{duration(status.seconds_left)} left")
    return "train    " + "  ".join(parts)


def duration(seconds: float) -> str:
    """75 → "1:15", 7500 → "2 h 05 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes}:{rest:02d}"
