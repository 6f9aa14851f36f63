"""Records in the search's own folder which trial is the best one so far, while the search runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import FILE, Journal, read_points
from starlab.platform.runs.metric_names import TEST, TEST_TOP1
from starlab.platform.runs.records import RunInfo
from starlab.platform.runs.search_records import Trial
from starlab.platform.search.objectives import Objective
from starlab.platform.search.space import values_text

BEST_TRIAL_TAG = "starlab.best_trial"


class BestSoFar:
    """A curve of the best value in the search's journal, and the best trial's name in its tags.

    A step of the curve is an improvement. A search that goes on continues the curve. Where a point has several seeds, its value
    is the mean over them of the best value of each run, and it has none before every seed has one.
    """

    def __init__(self, search: RunFolder, objective: Objective, num_seeds: int = 1) -> None:
        self._search, self._objective, self._num_seeds = search, objective, num_seeds
        self._by_seed: dict[str, dict[int, float]] = {}
        """The best value of each run, by its point and its seed."""
        self._key = f"best/{objective.name.replace('/', '_')}"
        points = [point for point in read_points(search.path / FILE) if point.key == self._key]
        self._value = min((point.value for point in points), key=objective.key, default=math.nan)
        self._step = max((point.step for point in points), default=0)

    @property
    def value(self) -> float:
        """The best value so far, also of earlier calls of the search; NaN before the first one."""
        return self._value

    def remember(self, curves: Mapping[tuple[str, int], Mapping[int, float]]) -> None:
        """Note what earlier calls of the search measured: value by epoch, by point and seed."""
        for (point, seed), curve in curves.items():
            for value in curve.values():
                self._note(point, seed, value)

    def update(self, place: tuple[str, int], values: Mapping[str, Any], value: float) -> None:
        """Record the value of a run if with it the point is better than all before; NaN never is.

        Args:
            place: The point's name, which is the id of its run with the first seed, and the seed of this run.
            values: The point.
            value: The value of this run.
        """
        mean = self._note(*place, value)
        if not self._objective.key(mean) < self._objective.key(self._value):
            return
        self._value, self._step = mean, self._step + 1
        _log(self._search, self._step, {self._key: mean})
        _name(self._search, place[0], values)

    def _note(self, point: str, seed: int, value: float) -> float:
        """Keep the best value of a run. Returns the point's mean over its seeds; NaN before all of them have a value."""
        runs = self._by_seed.setdefault(point, {})
        runs[seed] = min((runs.get(seed, math.nan), value), key=self._objective.key)
        return math.fsum(runs.values()) / len(runs) if len(runs) == self._num_seeds else math.nan


def record_winner(search: RunFolder, winner: Trial, test: Mapping[str, float]) -> None:
    """Record at the end of a search the trial that was chosen, and its metrics on the test part.

    It can be another trial than the best so far, because only a trial that reached its end is chosen.
    """
    earlier = [point for point in read_points(search.path / FILE) if point.key == TEST_TOP1]
    if not earlier or earlier[-1].value != test[TEST_TOP1]:
        _log(search, len(earlier) + 1, {key: value for key, value in test.items() if key.startswith(TEST)})
    _name(search, winner.run, winner.values)


def _name(search: RunFolder, run_id: str, values: Mapping[str, Any]) -> None:
    says = f"{run_id}: {values_text(values)}"
    search.update(RunInfo, lambda run: replace(run, tags={**run.tags, BEST_TRIAL_TAG: says}))


def _log(search: RunFolder, step: int, metrics: Mapping[str, float]) -> None:
    journal = Journal(search.path / FILE)
    try:
        journal.log(step, metrics)
    finally:
        journal.close()
