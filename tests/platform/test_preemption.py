"""Signals to a driver: what they ask for, how long it may take, and that the caller's own alarm is left alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from starlab.platform.preemption import RunPreemptedError, end_on_signal
from starlab.platform.runs.end_request import read_request
from starlab.platform.runs.folder import RunFolder


@pytest.fixture
def alarm() -> Iterator[None]:
    """An alarm of the caller's, in a hundred seconds."""
    handler = signal.signal(signal.SIGALRM, lambda *_: None)
    timer = signal.setitimer(signal.ITIMER_REAL, 100)
    yield
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, *timer)


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("asked", [False, True])
def test_an_alarm_of_the_caller_is_kept_whether_or_not_a_signal_comes(tmp_path: Path, asked: bool) -> None:
    handler = signal.getsignal(signal.SIGALRM)
    with end_on_signal(RunFolder(tmp_path), grace_seconds=30):
        assert signal.getsignal(signal.SIGALRM) is handler
        if asked:
            os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGALRM) is not handler
            assert signal.getitimer(signal.ITIMER_REAL)[0] <= 30
            assert read_request(RunFolder(tmp_path)) is not None
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL)[0] > 60


def ask_and_wait(folder: Path) -> None:
    """Ask this process to end, and do not."""
    with end_on_signal(RunFolder(folder), grace_seconds=0.2):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)


@pytest.mark.usefixtures("alarm")
def test_a_run_that_does_not_end_within_the_grace_time_is_left_and_names_it(tmp_path: Path) -> None:
    with pytest.raises(RunPreemptedError, match=r"did not within 0\.2 s \(resources\.grace_seconds\)") as left:
        ask_and_wait(tmp_path)
    assert left.value.exit_code == 128 + signal.SIGTERM
    assert signal.getitimer(signal.ITIMER_REAL)[0] > 60


def test_handlers_of_the_caller_are_back_afterwards(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with end_on_signal(RunFolder(tmp_path), grace_seconds=30):
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
