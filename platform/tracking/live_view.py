"""Shows a training on a terminal, in a view that is updated in place."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from starlab.platform.runs import metric_names as names
from starlab.platform.runs.background import Background
from starlab.platform.runs.journal import SYSTEM_FILE, Point, PointFollower
from starlab.platform.tracking.progress import JournalFollower, Status, duration, status_line

_BLOCKS = "▁▂▃▄▅▆▇█"
_CURVE_POINTS = 600
_READ_SECONDS = 0.5


class LiveView:
    """Follows a run's journal and draws its state. Lines printed in the meantime appear above the view."""

    def __init__(
        self,
        run: Path,
        total_steps: int,
        epochs: float,
        console: Console | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare the view of a run.

        Args:
            run: The run's folder.
            total_steps: Number of steps of the run.
            epochs: Number of epochs of the run.
            console: Where to draw; None draws on the terminal.
            say: Prints the line of each finished epoch; None prints it above the view.
        """
        self._follower = JournalFollower(run, total_steps, epochs)
        self._console = console or Console()
        self._say = say or (lambda line: self._console.print(line, markup=False, highlight=False))
        self._title = run.name
        self._memory = _Memory(run / SYSTEM_FILE)
        self._losses: list[float] = []
        self._began = time.monotonic()
        self._reading = Background("starlab-live-view", self._read, _READ_SECONDS, last_call=True)
        self._live = Live(console=self._console, refresh_per_second=2, transient=True, get_renderable=self.render)

    def __enter__(self) -> Self:
        self._live.start()
        self._reading.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._reading.stop()
        self._live.stop()

    def _read(self) -> None:
        for point in self._follower.new_points():
            if point.key == names.TRAIN_LOSS:
                self._losses.append(point.value)
            if point.key == names.EPOCH and (status := self._follower.status()):
                self._say(status_line(status, epoch_ended=True))  # this line remains when the view disappears
        del self._losses[:-_CURVE_POINTS]

    def render(self) -> RenderableType:
        """Build the current view."""
        status = self._follower.status()
        if status is None:
            seconds = time.monotonic() - self._began
            return Panel(Text(f"the workers start … {seconds:.0f} s"), title=self._title, title_align="left")
        return Panel(
            Group(_bars(status), Text(""), _numbers(status, self._memory.text()), Text(""), self._curve()),
            title=self._title,
            title_align="left",
        )

    def _curve(self) -> Text:
        return Text(f"loss  {sparkline(self._losses, max(10, self._console.width - 12))}", no_wrap=True)


def sparkline(values: list[float], width: int) -> str:
    """Draw a curve in one line of at most `width` characters. Each character shows the mean of an equal share of the values."""
    finite = [value for value in values if abs(value) < 1e300]  # sums and differences of larger values overflow
    if not finite:
        return ""
    columns = min(width, len(finite))
    shares = [finite[len(finite) * column // columns : len(finite) * (column + 1) // columns] for column in range(columns)]
    means = [sum(share) / len(share) for share in shares]
    low, high = min(means), max(means)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((mean - low) * scale)] for mean in means)


def _bars(status: Status) -> Table:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=5)
    table.add_column(ratio=1)
    table.add_column(justify="right", no_wrap=True)
    within = status.epoch % 1 if status.step < status.total_steps else 1.0
    left = "" if status.seconds_left is None else f"{duration(status.seconds_left)} left"
    table.add_row("run", _bar(status.step / status.total_steps), f"step {status.step:,}/{status.total_steps:,}  {left}")
    table.add_row("epoch", _bar(within), f"{status.epoch:.1f}/{status.epochs:g}")
    return table


def _bar(share: float) -> ProgressBar:
    return ProgressBar(total=1.0, completed=share)


def _numbers(status: Status, memory: str) -> Table:
    value = status.value
    table = Table.grid(padding=(0, 2))
    texts = [
        ("loss", f"{value[names.TRAIN_LOSS]:.3f}"),
        ("train top-1", f"{value[names.TRAIN_TOP1]:.3f}"),
        ("val top-1", f"{value[names.VAL_TOP1]:.3f}" if names.VAL_TOP1 in value else "–"),
        ("lr", f"{value[names.TRAIN_RATE]:.1e}"),
        ("clips/s", f"{value[names.CLIPS_PER_SECOND]:.0f}"),
        ("data wait", f"{value[names.DATA_WAIT]:.0%}"),
        ("memory", memory or "–"),
    ]
    table.add_row(*(Text(name, style="dim") for name, _ in texts))
    table.add_row(*(Text(text, style="bold") for _, text in texts))
    return table


class _Memory:
    """Reads the newest memory use of the machine and of its fullest GPU."""

    def __init__(self, path: Path) -> None:
        self._points = PointFollower(path)
        self._latest: dict[str, Point] = {}

    def text(self) -> str:
        """Return the memory use for display, e.g. "8.1 GB, GPU 30.1 GB"; empty before the first sample."""
        for point in self._points.new_points():
            self._latest[point.key] = point
        gpus = [point.value for key, point in self._latest.items() if "gpu_" in key and key.endswith(names.GPU_MEMORY_SUFFIX)]
        used = self._latest.get(names.MEMORY_MEGABYTES)
        parts = [f"{used.value / 1e3:.1f} GB"] if used else []
        parts += [f"GPU {max(gpus) / 1e3:.1f} GB"] if gpus else []
        return ", ".join(parts)
