"""Measures the steps between two points of the curve: how fast they were, and how long they waited for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StepTimer:
    """Starts when it is made; `restart` begins the next interval."""

    def __init__(self, step: int) -> None:
        """`step` counts the steps done so far."""
        self.restart(step)

    def restart(self, step: int) -> None:
        """Begin an interval at `step` steps done."""
        self._began, self._waited, self._first_step = time.perf_counter(), 0.0, step

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        asked = time.perf_counter()
        yield
        self._waited += time.perf_counter() - asked

    def steps_per_second(self, step: int) -> float:
        """Steps of the interval per second, 0 after a roll-back that went behind its beginning."""
        return max(0, step - self._first_step) / (time.perf_counter() - self._began)

    def waiting_share(self) -> float:
        """Share of the interval spent waiting for data, in [0, 1]."""
        return self._waited / (time.perf_counter() - self._began)
