"""Budgets of a search in hours and GPU-hours, counted over all of its calls. The ledger counts its trials."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlab.experiments.spec import SearchSpec
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.search_records import SearchUsage

_WRITE_SECONDS = 10.0
"""A killed search forgets at most so much of what it has used."""
_LONGEST_SECONDS = 60.0
"""Time between two counts that is believed: a machine may sleep in between."""


class Budget:
    """What a search has used, in `usage.json`, and whether that is all it may use."""

    def __init__(self, folder: RunFolder, spec: SearchSpec, clock: Callable[[], float] = time.monotonic) -> None:
        """Read what earlier calls have used."""
        self._folder, self._config, self._clock = folder, spec.search, clock
        self._gpus = spec.base.resources.max_workers * spec.base.resources.gpus_per_worker
        self.usage = folder.read(SearchUsage) or SearchUsage()
        self._counted = self._written = clock()

    def count(self, runs_under_way: int) -> None:
        """Add the time since the last call, and that time on the GPUs of the runs under way."""
        now = self._clock()
        seconds = min(now - self._counted, _LONGEST_SECONDS)
        self._counted = now
        gpu_seconds = seconds * runs_under_way * self._gpus
        self.usage = SearchUsage(seconds=self.usage.seconds + seconds, gpu_seconds=self.usage.gpu_seconds + gpu_seconds)
        if now - self._written >= _WRITE_SECONDS:
            self.write()

    def write(self) -> None:
        """Store what is used."""
        self._written = self._clock()
        self._folder.write(self.usage)

    @property
    def spent(self) -> str | None:
        """Which budget is used up, and how to give more; None while there is some left."""
        hours, gpu_hours = self._config.hours, self._config.gpu_hours
        if hours is not None and self.usage.seconds >= hours * 3600:
            return f"its {hours:g} hours (search.hours) are used up"
        if gpu_hours is not None and self.usage.gpu_seconds >= gpu_hours * 3600:
            return f"its {gpu_hours:g} GPU-hours (search.gpu_hours) are used up"
        return None
