from __future__ import annotations

import threading
import time

import pytest

from starlab.platform.runs.background import Background


def test_work_is_repeated_until_stop_and_not_after_it() -> None:
    calls = threading.Semaphore(0)
    with Background("test", lambda: calls.release(), 0.001) as background:  # noqa: PLW0108
        for _ in range(5):
            assert calls.acquire(timeout=30)
    assert background.stopped
    while calls.acquire(blocking=False):
        pass
    time.sleep(0.02)
    assert not calls.acquire(blocking=False)


def test_the_work_can_return_the_wait_before_its_next_call() -> None:
    called = threading.Event()

    def once() -> float:
        assert not called.is_set(), "it was called again before its wait was over"
        called.set()
        return 3600.0

    background = Background("test", once, 0.001).start()
    assert called.wait(30)
    time.sleep(0.05)
    assert background.stop(timeout_seconds=30)


def test_stop_returns_false_after_its_timeout_if_the_work_hangs() -> None:
    hanging, began = threading.Event(), threading.Event()

    def hang() -> None:
        began.set()
        hanging.wait(60)

    background = Background("test", hang, 0.0).start()
    assert began.wait(30)
    assert not background.stop(timeout_seconds=0.01)
    hanging.set()
    assert background.stop(timeout_seconds=30)


@pytest.mark.parametrize("last_call", [True, False])
def test_work_is_called_once_more_after_stop_if_requested(last_call: bool) -> None:
    calls: list[bool] = []
    background = Background("test", lambda: calls.append(background.stopped), 3600.0, last_call=last_call).start()
    background.stop()
    assert calls == [True] * last_call


def test_a_thread_that_was_never_started_can_be_stopped() -> None:
    assert Background("test", lambda: None, 1.0).stop()
