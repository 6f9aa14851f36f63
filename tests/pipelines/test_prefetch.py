"""Waiting for an item while looking up at intervals."""

import subprocess
import sys
import threading
from collections.abc import Generator

import pytest

from starlab.pipelines.prefetch import Prefetch, Waiting


def numbers(upto: int, dry: threading.Event, closed: threading.Event) -> Generator[int, None, None]:
    try:
        yield from range(upto)
        dry.wait(60)
        raise OSError("the stream broke")
    finally:
        closed.set()


def waiting(prefetch: Prefetch[int]) -> Waiting[int]:
    def polled() -> Generator[int | None, None, None]:
        prefetch.start()
        try:
            yield None
            yield from prefetch.poll()
        finally:
            prefetch.close()

    return Waiting(polled())


def test_items_come_in_order_then_none_while_the_generator_is_dry_and_then_its_failure() -> None:
    dry, closed = threading.Event(), threading.Event()
    feed = waiting(Prefetch(numbers(3, dry, closed), ahead=1))
    assert [feed.next(lambda: False) for _ in range(3)] == [0, 1, 2]
    asked: list[int] = []
    assert feed.next(lambda: len(asked) > 1 or asked.append(1) is not None) is None
    assert len(asked) == 2
    dry.set()
    with pytest.raises(OSError, match="broke"):
        feed.next(lambda: False)


def test_closing_before_the_end_closes_the_generator() -> None:
    dry, closed = threading.Event(), threading.Event()
    feed = waiting(Prefetch(numbers(1000, dry, closed), ahead=1))
    assert feed.next(lambda: False) == 0
    feed.close()
    assert closed.wait(60)


def test_what_was_never_asked_for_an_item_ends_too() -> None:
    closed = threading.Event()
    for drop in (Waiting.close, lambda feed: None):  # closed, or merely dropped
        closed.clear()
        drop(waiting(Prefetch(numbers(1000, threading.Event(), closed), ahead=1)))
        assert closed.wait(60)


def test_iterating_waits_for_each_item_and_ends_with_the_generator() -> None:
    def three() -> Generator[int, None, None]:
        yield from range(3)

    assert list(waiting(Prefetch(three(), ahead=5))) == [0, 1, 2]
    feed = waiting(Prefetch(three(), ahead=1))
    assert [next(feed), feed.next(lambda: False), next(feed), next(feed, None)] == [0, 1, 2, None]
    with pytest.raises(StopIteration):
        feed.next(lambda: False)


def test_a_batch_imports_numpy_alone_so_that_pure_torch_code_can_name_it() -> None:
    code = "import sys, starlab.pipelines.batch; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    loaded = {name.partition(".")[0] for name in said}
    assert not loaded & {"pyarrow", "av", "cv2", "simplejpeg", "scipy", "ray", "torch", "mlflow"}
    assert {name for name in said if name.startswith("starlab.")} <= {"starlab.pipelines", "starlab.pipelines.batch"}
