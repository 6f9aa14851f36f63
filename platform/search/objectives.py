"""Objectives of a search: what a point of the space is judged by, and which points no other one beats.

A new one is one entry of `OBJECTIVES`. The metrics of the validation part (recipe/metrics.py) are objectives without an entry.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from starlab.experiments.spec import SearchSpec, Spec
from starlab.models.cost import Cost, cost
from starlab.platform.errors import UserError
from starlab.platform.recipe.metrics import METRICS
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import FILE as JOURNAL
from starlab.platform.runs.journal import read_points
from starlab.platform.runs.metric_names import CLIPS_PER_SECOND, EPOCH, VAL, VAL_TOP1
from starlab.platform.runs.search_records import Trial

Measure = Callable[[RunFolder, Spec], float]


@dataclass(frozen=True, slots=True)
class Objective:
    """One thing that a point is judged by."""

    name: str
    higher_is_better: bool
    metric: str | None = None
    """Name in METRICS of a metric of the validation part, which is known after every evaluation; None for other objectives."""

    @property
    def direction(self) -> str:
        """Return "maximize" or "minimize"."""
        return "maximize" if self.higher_is_better else "minimize"

    def key(self, value: float) -> float:
        """A sort key for a value, the better the smaller. NaN is the worst."""
        return math.inf if math.isnan(value) else -value if self.higher_is_better else value

    def score(self, value: float) -> float:
        """The value, the better the larger. NaN stays NaN."""
        return value if self.higher_is_better else -value

    def measure(self, run: RunFolder, spec: Spec) -> float:
        """Measure a run that has a result."""
        result = run.result
        if self.metric is not None:
            return result.val[self.metric] if result else math.nan
        return OBJECTIVES[self.name][1](run, spec)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one run of a point reached."""

    values: dict[str, float]
    """Value of each objective, and of val/top1, by name."""
    epochs: int
    """Number of epochs reached."""
    whole: bool = True
    """Whether the run reached its last epoch."""

    @property
    def text(self) -> str:
        """The outcome as JSON: Tune takes nested values apart."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Outcome:
        """Read what `text` wrote."""
        return cls(**json.loads(text))

    @property
    def problem(self) -> str | None:
        """Why the values cannot be compared with others; None if they can."""
        bad = [name for name, value in self.values.items() if not math.isfinite(value)]
        return f"{', '.join(bad)} is not a finite number" if bad else None


def objectives_of(spec: SearchSpec) -> tuple[Objective, ...]:
    """The objectives of a search, the one that decides about the winner first.

    Raises:
        UserError: no run has such a metric; names the nearest one.
    """
    return tuple(_objective(name) for name in spec.search.objectives or (f"{VAL}{spec.base.train.select_by}",))


def outcome_of(run: RunFolder, spec: Spec, objectives: Sequence[Objective]) -> Outcome | None:
    """Read from the folder of a run what it reached; None while it has no result."""
    result = run.result
    if result is None:
        return None
    values = {VAL_TOP1: result.val["top1"]} | {objective.name: objective.measure(run, spec) for objective in objectives}
    return Outcome(values=values, epochs=epochs_reached(run), whole=not result.ended_early)


def curve_of(run: RunFolder, objective: Objective) -> dict[int, float]:
    """Read from a run's journal the value of an objective by epoch; empty for one that is known only at the end."""
    points = [point for point in read_points(run.path / JOURNAL) if point.key in (EPOCH, objective.name)]
    epochs = {point.step: int(point.value) for point in points if point.key == EPOCH}
    return {epochs[point.step]: point.value for point in points if point.key != EPOCH and point.step in epochs}


def mean_outcome(outcomes: Sequence[Outcome], num_seeds: int) -> Outcome:
    """The outcome of a point: means over its seeds. It is whole where all `num_seeds` runs are."""
    names = outcomes[0].values
    return Outcome(
        values={name: float(np.mean([outcome.values[name] for outcome in outcomes])) for name in names},
        epochs=min(outcome.epochs for outcome in outcomes),
        whole=len(outcomes) == num_seeds and all(outcome.whole for outcome in outcomes),
    )


def pareto_front(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """The whole trials that no other whole trial beats: as good in every objective, and better in one. Keeps the order."""
    whole = [trial for trial in trials if trial.whole]
    keys = [tuple(objective.key(trial.value_of(objective.name)) for objective in objectives) for trial in whole]

    def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))

    return [trial for trial, key in zip(whole, keys, strict=True) if not any(beats(other, key) for other in keys)]


def epochs_reached(run: RunFolder) -> int:
    """The last epoch that a run evaluated; 0 before its first."""
    if (result := run.result) and result.epochs is not None:
        return result.epochs
    return int(max((point.value for point in read_points(run.path / JOURNAL) if point.key == EPOCH), default=0))


def _model_cost(spec: Spec) -> Cost:
    return cost(spec.model, height=spec.data.size, width=spec.data.size)


def _clips_per_second(run: RunFolder, _: Spec) -> float:
    speeds = [point.value for point in read_points(run.path / JOURNAL) if point.key == CLIPS_PER_SECOND]
    return float(np.median(speeds)) if speeds else math.nan


OBJECTIVES: Mapping[str, tuple[bool, Measure]] = {
    "flops": (False, lambda _, spec: float(_model_cost(spec).forward_flops)),
    "parameters": (False, lambda _, spec: float(_model_cost(spec).parameters)),
    "clips_per_second": (True, _clips_per_second),
}
"""Whether higher is better, and how to measure, by name: FLOP of a clip's forward pass, the model's parameters, and the median
speed of training over all workers, which depends on the machine."""


def _objective(name: str) -> Objective:
    known = {f"{VAL}{metric}": metric for metric in METRICS}
    if name in known:
        return Objective(name, METRICS[known[name]].higher_is_better, known[name])
    if name in OBJECTIVES:
        return Objective(name, OBJECTIVES[name][0])
    if name.startswith("test/"):
        raise UserError(f"search.objectives names {name!r}: a search never chooses by the test part; use {VAL}{name[5:]}")
    names = [*known, *OBJECTIVES]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(names)}"
    raise UserError(f"search.objectives names {name!r}, which no run has; {hint}")
