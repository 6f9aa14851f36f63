"""What a training tells whoever waits for it, read from the run's journal: where it is, how fast, how long it will take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from starlab.platform import journal
from starlab.platform.job import TrainJob
from starlab.platform.journal import Point, read_points_with_ends


class Progress:
    """Follows a journal from a thread of the driver and says one line per epoch, and one in between when it is slow."""

    def __init__(self, job: TrainJob, say: Callable[[str], None], every_seconds: float = 15.0) -> None:
        self._path, self._say, self._every_seconds = job.folder.path / journal.FILE, say, every_seconds
        self._total_steps, self._epochs = job.total_steps, job.spec.train.epochs
        # What an earlier call wrote is old news.
        self._offset = self._path.stat().st_size if self._path.exists() else 0
        self._latest: dict[str, Point] = {}
        self._first: tuple[int, float] | None = None
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
        for point, end in read_points_with_ends(self._path, self._offset):
            self._offset = end
            self._latest[point.key] = point
            if self._first is None:
                self._first = (point.step, time.monotonic())
            if point.key == "val/loss" and "train/loss" in self._latest:  # the last point that the end of an epoch writes
                self._say(self._line(with_validation=True))
                self._said_at = time.monotonic()
        if "train/loss" in self._latest and time.monotonic() - self._said_at > self._every_seconds:
            self._say(self._line(with_validation=False))
            self._said_at = time.monotonic()

    def _line(self, with_validation: bool) -> str:
        value = {key: point.value for key, point in self._latest.items()}
        step = self._latest["train/loss"].step
        parts = [f"step {step:>5}/{self._total_steps}"]
        if with_validation:
            parts.insert(0, f"epoch {value['epoch']:>3.0f}/{self._epochs:g}")
            parts.append(
                f"loss {value['epoch/train_loss']:.3f}  train {value['epoch/train_top1']:.3f}  val {value['val/top1']:.3f}"
            )
        else:
            parts.append(f"loss {value['train/loss']:.3f}")
        parts.append(f"{value['system/clips_per_second']:.0f} clips/s  waiting for data {value['system/data_wait']:.0%}")
        if self._first and step > self._first[0]:
            seconds = (time.monotonic() - self._first[1]) / (step - self._first[0]) * (self._total_steps - step)
            parts.append(f"{_duration(seconds)} left")
        return "train    " + "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes}:{rest:02d}"
