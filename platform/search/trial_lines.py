"""Prints a line for each trial of a search that starts or ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial

from starlab.platform.runs.metric_names import VAL_TOP1
from starlab.platform.runs.records import DamagedRecordError
from starlab.platform.search.best_so_far import BestSoFar
from starlab.platform.search.objectives import Objective, Outcome
from starlab.platform.search.space import values_text
from starlab.platform.search.trial import FAILED, METRIC, OUTCOME
from starlab.platform.search.trial_folders import TrialFolders


class TrialLines(Callback):
    """Says what becomes of each trial, and the best value so far, which is recorded in the search's own curve too."""

    def __init__(self, runs: int | None, objective: Objective, say: Callable[[str], None], folders: TrialFolders) -> None:
        """Count to `runs`, the number of runs that may be left; None counts without an end."""
        self._of, self._objective, self._say, self._ended = f"/{runs}" if runs else "", objective, say, 0
        self._folders, self._best = folders, BestSoFar(folders.search, objective, len(folders.spec.seeds))

    def remember(self, curves: Mapping[tuple[str, int], Mapping[int, float]]) -> None:
        """Note what earlier calls of the search measured: value by epoch, by point and seed."""
        self._best.remember(curves)

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        """Record a new best value while the search runs. A full disk or a damaged record does not end the search."""
        if METRIC in result:
            with suppress(OSError, DamagedRecordError):
                self._best.update(self._folders.place(trial.config), self._folders.point(trial.config), result[METRIC])

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Print the trial's values."""
        self._say(f"trial    {trial.trial_id} starts: {values_text(trial.config)}")

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Print its value and the best so far."""
        last, name = trial.last_result or {}, self._objective.name
        if FAILED in last:
            self._say(f"trial    {trial.trial_id} failed: {last[FAILED]} ({self._count()})")
        elif OUTCOME in last:
            label = "val" if name == VAL_TOP1 else name
            # With several seeds the best is a mean, and there is none before all seeds of a point have a value.
            best = "" if math.isnan(self._best.value) else f", best {value_text(name, self._best.value)}"
            reached = f"{label} {value_text(name, last[METRIC])}{best} ({self._count()})"
            self._say(f"trial    {trial.trial_id} ends after epoch {Outcome.parse(last[OUTCOME]).epochs}: {reached}")
        else:
            self._say(f"trial    {trial.trial_id} pauses with a checkpoint")

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Print that its process failed, and that it goes on."""
        self._say(f"trial    {trial.trial_id} starts again from its newest checkpoint: its process failed")

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Print that its process failed for good, and where its files are; the search goes on."""
        self._say(
            f"trial    {trial.trial_id} failed: its process was killed or crashed again and again; its files are in "
            f"{self._folders.at(trial.config).path} ({self._count()})"
        )

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        return object, ()  # Tune pickles it into the search's folder, where a password that it reaches must not be

    def _count(self) -> str:
        self._ended += 1
        return f"{self._ended}{self._of}"


def value_text(objective: str, value: float) -> str:
    """The value of an objective for a line: three decimals for metrics, significant digits for large numbers."""
    return f"{value:.3f}" if objective.startswith("val/") else f"{value:.4g}"
