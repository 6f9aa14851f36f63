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

    A step of the curve is an improvement. A search that goes on continues the curve.
    """

    def __init__(self, search: RunFolder, objective: Objective) -> None:
        self._search, self._objective = search, objective
        self._key = f"best/{objective.name.replace('/', '_')}"
        points = [point for point in read_points(search.path / FILE) if point.key == self._key]
        self._value = min((point.value for point in points), key=objective.key, default=math.nan)
        self._step = max((point.step for point in points), default=0)

    def update(self, run_id: str, values: Mapping[str, Any], value: float) -> None:
        """Record a trial's value if it is better than all before; NaN never is."""
        if not self._objective.key(value) < self._objective.key(self._value):
            return
        self._value, self._step = value, self._step + 1
        _log(self._search, self._step, {self._key: value})
        _name(self._search, run_id, values)


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
