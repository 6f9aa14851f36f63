"""Items pulled ahead of time by a thread, and a way to wait for them that looks up at intervals."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

LOOK_UP_SECONDS = 0.2


class Prefetch(Generic[T]):
    """Runs a generator in a thread of its own, `ahead` items before they are asked for."""

    def __init__(self, items: Generator[T, None, None], ahead: int) -> None:
        self._items = items
        self._ready: queue.Queue[T | _End] = queue.Queue(maxsize=ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._pull, name="starlab-prefetch", daemon=True)

    def start(self) -> None:
        """Run the generator in the background."""
        self._thread.start()

    def poll(self) -> Generator[T | None, None, None]:
        """Yield the items in order, and None each time that none was ready within `LOOK_UP_SECONDS`.

        Raises:
            BaseException: whatever the generator raised, after the items before it.
        """
        while True:
            try:
                item = self._ready.get(timeout=LOOK_UP_SECONDS)
            except queue.Empty:
                yield None
                continue
            if isinstance(item, _End):
                if item.failure is not None:
                    raise item.failure
                return
            yield item

    def close(self) -> None:
        """End the thread, which closes the generator after its current item; items not taken are dropped."""
        self._stopped.set()

    def _pull(self) -> None:
        failure: BaseException | None = None
        try:
            for item in self._items:
                if not self._offer(item):
                    return
        except BaseException as error:  # raised again where the items are consumed
            failure = error
        finally:
            self._items.close()
        self._offer(_End(failure))

    def _offer(self, item: T | _End) -> bool:
        while not self._stopped.is_set():
            try:
                self._ready.put(item, timeout=LOOK_UP_SECONDS)
            except queue.Full:
                continue
            return True
        return False


class _End:
    """Follows the last item in the queue."""

    def __init__(self, failure: BaseException | None) -> None:
        self.failure = failure


class Waiting(Iterator[T]):
    """An iterator over a polled generator, which yields None while no item is ready."""

    def __init__(self, polled: Generator[T | None, None, None]) -> None:
        """Run the generator up to its first `yield`, which must be None: from then on closing it cleans up."""
        self._polled = polled
        next(polled)

    def __next__(self) -> T:
        """The next item; waits for it."""
        return next(item for item in self._polled if item is not None)

    def next(self, give_up: Callable[[], bool]) -> T | None:
        """The next item, or None once `give_up` returns True; it is asked each time that no item was ready.

        Raises:
            StopIteration: there are no more items.
            Exception: whatever the generator raised.
        """
        while (item := next(self._polled)) is None:
            if give_up():
                return None
        return item

    def close(self) -> None:
        """End the generator, and with it what it started. No item can be taken afterwards."""
        self._polled.close()
