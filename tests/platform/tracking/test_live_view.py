"""Tests the live view on a terminal that only records its output."""

import io
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from starlab.platform.runs.journal import FILE, SYSTEM_FILE, Journal
from starlab.platform.tracking import progress
from starlab.platform.tracking.live_view import LiveView, sparkline
from starlab.platform.tracking.progress import JournalFollower, Progress, Status, status_line


def curve(step: int) -> dict[str, float]:
    return {
        "train/loss": 1 / step,
        "train/top1": step / 100,
        "train/lr": 2e-4,
        "system/clips_per_second": 33.3,
        "system/data_wait": 0.05,
    }


END = {"epoch/train_loss": 0.5, "epoch/train_top1": 0.25, "val/top1": 0.75, "val/loss": 0.4, "epoch": 1.0}
"""What a worker writes at the end of an epoch, in its order."""


def terminal(width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=30, color_system=None)


def drawn(view: LiveView, width: int = 100) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    console.print(view.render())
    return cast(io.StringIO, console.file).getvalue()


def test_the_view_shows_the_progress_and_the_line_of_a_finished_epoch_remains(tmp_path: Path) -> None:
    said: list[str] = []
    view = LiveView(tmp_path, 100, 4, terminal(), said.append)
    assert "the workers start" in drawn(view)
    with view:
        journal = Journal(tmp_path / FILE)
        for step in (10, 20):
            journal.log(step, curve(step))
        journal.close()
        machine = Journal(tmp_path / SYSTEM_FILE)
        machine.log(0, {"system/system_memory_usage_megabytes": 8123.0, "system/gpu_1_memory_usage_megabytes": 30100.0})
        machine.close()
    view = drawn(view)
    for text in ("step 20/100", "0.8/4", "0.050", "0.200", "2.0e-04", "33 ", "5%", "8.1 GB, GPU 30.1 GB", "left"):
        assert text in view, text
    assert said == []
    with view_at(tmp_path, said):
        journal = Journal(tmp_path / FILE)
        journal.log(25, curve(25) | END)
        journal.close()
    assert len(said) == 1
    assert re.match(r"train +epoch +1/4  step +25/100  loss 0.500  train 0.250  val 0.750", said[0])


def view_at(folder: Path, said: list[str]) -> LiveView:
    return LiveView(folder, 100, 4, terminal(), said.append)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_view_fits_terminals_of_any_width(width: int, tmp_path: Path) -> None:
    view = LiveView(tmp_path, 1_000_000, 4, terminal(width), lambda _: None)
    with view:
        journal = Journal(tmp_path / FILE)
        for step in range(1, 50):
            journal.log(step, curve(step))
        journal.close()
    assert max(map(len, drawn(view, width).splitlines())) <= width


def test_points_of_an_earlier_call_are_not_printed_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / FILE)
    journal.log(10, curve(10) | END)
    said: list[str] = []
    with Progress(tmp_path, 100, 4, said.append, every_seconds=0):
        pass
    assert said == ["workers  starting"]
    done = threading.Event()
    with Progress(tmp_path, 100, 4, said.append):
        journal.log(20, curve(20) | END)
        done.set()
    assert len([line for line in said if line.startswith("train")]) == 1
    journal.close()


@pytest.mark.parametrize("live", [False, True])
def test_epochs_that_end_between_two_looks_have_a_line_each(live: bool, tmp_path: Path) -> None:
    said: list[str] = []
    with LiveView(tmp_path, 100, 4, terminal(), said.append) if live else Progress(tmp_path, 100, 4, said.append):
        journal = Journal(tmp_path / FILE)
        for epoch in (1, 2, 3):
            journal.log(10 * epoch, curve(10 * epoch) | END | {"val/top1": epoch / 4, "epoch": float(epoch)})
        journal.close()
    lines = [line for line in said if line.startswith("train")]
    assert [re.findall(r"epoch +(\d)/4 .*step +(\d+)/.*val ([\d.]+)", line) for line in lines] == [
        [("1", "10", "0.250")],
        [("2", "20", "0.500")],
        [("3", "30", "0.750")],
    ]


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=300), st.integers(1, 120))
def test_a_sparkline_fits_its_width_for_any_values(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) <= width
    assert set(line) <= set("▁▂▃▄▅▆▇█")


def test_a_sparkline_rises_and_falls_with_its_values() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([3.0] * 5, 9) == "▁▁▁▁▁"
    assert sparkline([0, 0, 7, 7], 2) == "▁█"


def test_a_run_without_a_further_step_says_for_how_long_instead_of_a_growing_time_left() -> None:
    value = {**curve(350), "epoch": 9.0, "val/top1": 0.5}
    moving = Status(350, 375, 9.3, 10.0, value, seconds_left=4.0, seconds_still=1.0)
    assert status_line(moving, epoch_ended=False).endswith("0:04 left")
    still = replace(moving, seconds_still=143.0)
    assert status_line(still, epoch_ended=False).endswith("no further step for 2:23")
    assert status_line(still, epoch_ended=True).endswith("0:04 left")  # of a line that is printed when the epoch has ended


def test_the_time_left_does_not_grow_while_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    follower, journal = JournalFollower(tmp_path, 100, 4), Journal(tmp_path / FILE)
    for step in (10, 20):
        clock[0] = float(step)
        journal.log(step, curve(step))
        assert list(follower.new_points())
    clock[0] = 500.0
    assert list(follower.new_points()) == []
    status = follower.status()
    assert status is not None
    assert status.seconds_left == pytest.approx(80)
    assert status.seconds_still == pytest.approx(480)
    journal.close()
