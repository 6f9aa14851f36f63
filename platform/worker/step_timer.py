"""Measures the speed of the steps between two points of the curve, and their share of waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StepTimer:
    """Times an interval of steps. It starts when it is created, and `restart` begins the next interval."""

    def __init__(self, step: int) -> None:
        """Begin the first interval, with `step` steps done so far."""
        self.restart(step)

    def restart(self, step: int) -> None:
        """Begin a new interval, with `step` steps done so far."""
        self._began, self._waited, self._first_step = time.perf_counter(), 0.0, step

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside the `with` block as waiting for data."""
        asked = time.perf_counter()
        yield
        self._waited += time.perf_counter() - asked

    def steps_per_second(self, step: int) -> float:
        """Return the steps per second of the interval; 0 after a roll-back to before its beginning."""
        return max(0, step - self._first_step) / (time.perf_counter() - self._began)

    def waiting_share(self) -> float:
        """Return the share of the interval spent waiting for data, in [0, 1]."""
        return self._waited / (time.perf_counter() - self._began)
