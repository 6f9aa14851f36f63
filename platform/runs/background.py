"""Work that a thread repeats in the background until it is stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self


class Background:
    """Calls `work` every so many seconds from a daemon thread, between `start` and `stop` or inside a `with` block."""

    def __init__(
        self,
        name: str,
        work: Callable[[], float | None],
        every_seconds: float,
        *,
        first_seconds: float | None = None,
        last_call: bool = False,
    ) -> None:
        """Prepare the thread; nothing runs yet.

        Args:
            name: what the thread is called.
            work: may return the seconds to wait before its next call; None waits `every_seconds`.
            first_seconds: the wait before the first call, if it is another.
            last_call: call `work` once more when it is stopped.
        """
        self._work, self._every_seconds = work, every_seconds
        self._first_seconds = every_seconds if first_seconds is None else first_seconds
        self._last_call = last_call
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def stop(self, timeout_seconds: float | None = None) -> bool:
        """End the thread after the call that may be under way, and the last one. Returns False when the timeout ends first."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        wait = self._first_seconds
        while not self._stopping.wait(wait):
            said = self._work()
            wait = self._every_seconds if said is None else said
        if self._last_call:
            self._work()
