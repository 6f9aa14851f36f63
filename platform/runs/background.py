"""Repeats a function in a background thread until it is stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self


class Background:
    """Calls `work` periodically from a daemon thread, between `start` and `stop` or inside a `with` block."""

    def __init__(
        self,
        name: str,
        work: Callable[[], float | None],
        every_seconds: float,
        *,
        first_seconds: float | None = None,
        last_call: bool = False,
    ) -> None:
        """Prepare the thread without starting it.

        Args:
            name: Name of the thread.
            work: Called in the thread. It may return the seconds to wait before its next call; None waits `every_seconds`.
            every_seconds: Wait between calls.
            first_seconds: Wait before the first call; None waits `every_seconds`.
            last_call: Call `work` once more when the thread is stopped.
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
        """Stop the thread once any current call, and the last one, return. Returns False if `timeout_seconds` end first."""
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
            next_wait = self._work()
            wait = self._every_seconds if next_wait is None else next_wait
        if self._last_call:
            self._work()
