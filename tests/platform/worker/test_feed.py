"""Waiting for a batch with an eye on the rest of the world."""

import threading
from collections.abc import Generator

import pytest

from starlab.platform.worker.feed import Feed


def numbers(upto: int, dry: threading.Event, closed: threading.Event) -> Generator[int, None, None]:
    try:
        yield from range(upto)
        dry.wait(60)
        raise OSError("the stream broke")
    finally:
        closed.set()


def test_batches_come_in_order_then_none_while_the_stream_is_dry_and_then_its_failure() -> None:
    dry, closed = threading.Event(), threading.Event()
    feed = Feed(numbers(3, dry, closed))  # type: ignore[arg-type]
    assert [feed.next(lambda: False) for _ in range(3)] == [0, 1, 2]
    asked: list[int] = []
    assert feed.next(lambda: len(asked) > 1 or asked.append(1) is not None) is None
    assert len(asked) == 2
    dry.set()
    with pytest.raises(OSError, match="broke"):
        feed.next(lambda: False)


def test_a_closed_feed_closes_its_stream() -> None:
    dry, closed = threading.Event(), threading.Event()
    feed = Feed(numbers(1000, dry, closed))  # type: ignore[arg-type]
    assert feed.next(lambda: False) == 0
    feed.close()
    assert closed.wait(60)
