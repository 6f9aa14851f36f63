"""The next batch, for one who must not wait for it blindly: a stream that runs dry is no reason to miss a request to end."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator

from starlab.pipelines.batch import Batch

_LOOK_UP_SECONDS = 0.2


class Feed:
    """Pulls batches out of a stream in a thread; one is ready while another is used."""

    def __init__(self, batches: Generator[Batch, None, None]) -> None:
        self._batches = batches
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._pull, name="starlab-feed", daemon=True)
        self._thread.start()

    def next(self, give_up: Callable[[], bool]) -> Batch | None:
        """The next batch; None when `give_up`, asked again and again while there is none, says so.

        Raises:
            Exception: whatever the stream raised.
        """
        while True:
            try:
                item = self._ready.get(timeout=_LOOK_UP_SECONDS)
            except queue.Empty:
                if give_up():
                    return None
                continue
            if isinstance(item, BaseException):
                raise item
            return item

    def close(self) -> None:
        """No more batches are wanted; the stream ends when it next comes to itself."""
        self._stop.set()

    def _pull(self) -> None:
        try:
            for batch in self._batches:
                if not self._offer(batch):
                    break
        except BaseException as error:  # handed to the consumer, who raises it
            self._offer(error)
        finally:
            self._batches.close()

    def _offer(self, item: Batch | BaseException) -> bool:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=_LOOK_UP_SECONDS)
                return True
        return False
