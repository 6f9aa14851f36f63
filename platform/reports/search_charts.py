"""Charts of a search: parallel coordinates, a slice per searched key, importance, accuracy against cost.

Trials are drawn by what the search judges them by, its first objective.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlab.experiments.space import Distribution
from starlab.platform.reports.charts import Place, Words, scale_of, scatter_box, scatter_chart
from starlab.platform.reports.intervals import Interval, bars_chart
from starlab.platform.reports.report_runs import METRIC_NAMES
from starlab.platform.reports.scores import BOUNDED
from starlab.platform.reports.svg import (
    WIDTH_PX,
    BandScale,
    Cell,
    Chart,
    LinearScale,
    LogScale,
    Number,
    Scale,
    Table,
    line,
    padded,
    path,
    percent,
    short_number,
    shortened,
    text,
)
from starlab.platform.runs.search_records import Trial

_ABSENT_PX = 16.0
"""How far below an axis the line of a trial passes that has no value there."""


@dataclass(frozen=True, slots=True)
class Judge:
    """What the trials of a search are judged by, as charts and tables name and write it."""

    objective: str = "val/top1"
    """An objective of the search, as in `search.objectives`."""

    @property
    def title(self) -> str:
        """Its name for a reader: "validation top-1"."""
        part, _, metric = self.objective.rpartition("/")
        return f"validation {METRIC_NAMES.get(metric, metric)}" if part == "val" else self.objective.replace("_", " ")

    def value(self, trial: Trial) -> float:
        """The value of a trial; NaN if the trial has none."""
        return trial.value_of(self.objective)

    def words(self, trial: Trial) -> str:
        """The value of a trial in words: "93.4 %", "0.21"."""
        return percent(self.value(trial)) if self._is_share else short_number(self.value(trial))

    def cell(self, trial: Trial) -> Number:
        """The value of a trial in a table."""
        return Number(self.words(trial), self.value(trial))

    def scale(self, trials: Sequence[Trial], start: float, end: float) -> LinearScale:
        """An axis that holds the values of the trials."""
        values = [self.value(trial) for trial in trials]
        if self._is_share:
            return LinearScale(*padded(values, 0.0, 1.0), start, end, "%")
        return LinearScale(*padded(values), start, end)

    @property
    def _is_share(self) -> bool:
        return self.objective.removeprefix("val/") in BOUNDED


@dataclass(frozen=True, slots=True)
class Costed:
    """A point of the chart of accuracy against cost."""

    name: str
    cost: float
    accuracy: float
    """In [0, 1]."""


def parallel_chart(trials: Sequence[Trial], space: Mapping[str, Distribution], judge: Judge) -> Chart:
    """Draw one line per trial through its values and what it is judged by. `trials`: best first, at least one."""
    keys = sorted(space)
    width = max(WIDTH_PX, 120.0 * len(keys) + 120)
    left, right, top, bottom = 56.0, width - 64, 46.0, 250.0
    scales = [_scale(space[key], trials, key, bottom, top) for key in keys]
    judged = judge.scale(trials, bottom, top)
    places = [left + index * (right - left) / len(keys) for index in range(len(keys) + 1)]
    parts = []
    for rank, trial in reversed(list(enumerate(trials))):
        values = [
            scale(_position(space[key], trial.values[key])) if key in trial.values else bottom + _ABSENT_PX
            for key, scale in zip(keys, scales, strict=True)
        ]
        points = list(zip(places, [*values, judged(judge.value(trial))], strict=True))
        third = min(2, 3 * rank // max(1, len(trials)))
        kind = "line s1 best" if rank == 0 else f"line third{third}"
        parts.append(path(points, kind, f"{trial.run}: {judge.words(trial)}"))
    for index, (place, scale) in enumerate(zip(places, [*scales, judged], strict=True)):
        parts.append(line(place, top, place, bottom, "axis"))
        name = keys[index] if index < len(keys) else judge.title
        level = 14 if index % 2 == 0 else 30
        parts.append(text(place, level, name, "label", "middle" if 0 < index < len(keys) else "start" if index == 0 else "end"))
        for value, words in scale.ticks():
            parts.append(text(place + 6, scale(value) + 4, shortened(words, 12), "tick halo"))
    return Chart(
        "Every trial through its values",
        f"Each line is one of {len(trials)} trials; the best one, {trials[0].run}, is drawn in colour, and the better the "
        "third to which a trial belongs, the stronger its line. A line that passes below an axis has no value there.",
        width,
        bottom + 26,
        "".join(parts),
        trials_table(trials, keys, judge),
    )


def slice_chart(trials: Sequence[Trial], key: str, distribution: Distribution, judge: Judge) -> Chart:
    """Draw what every trial is judged by over one searched key; trials that ended early are hollow."""
    left, top, right, bottom = scatter_box()
    y = judge.scale(trials, bottom, top)
    places = [
        Place(
            _position(distribution, trial.values[key]),
            judge.value(trial),
            f"{trial.run}: {_text(trial.values[key])}, {judge.words(trial)}{'' if trial.whole else ', ended early'}",
            series=1 if rank == 0 else 0,
            hollow=not trial.whole,
        )
        for rank, trial in enumerate(trials)
    ]
    table = Table(
        (key, judge.title, "epochs"),
        tuple((_cell(trial.values[key]), judge.cell(trial), Number(str(trial.epochs), trial.epochs)) for trial in trials),
    )
    on = " on a logarithmic axis" if distribution.kind.startswith("log") else ""
    words = Words(
        key,
        f"{judge.title[0].upper()}{judge.title[1:]} over {key}{on}, a dot per trial. The best trial has another colour; hollow "
        "dots ended early.",
        key,
        judge.title,
    )
    return scatter_chart(words, places[::-1], _scale(distribution, trials, key, left, right), y, table)


def importance_chart(importance: Mapping[str, float], trials: int) -> Chart:
    """Draw the importance of every searched key (shares that sum to 1), the largest first."""
    ranked = sorted(importance.items(), key=lambda item: -item[1])
    words = Words(
        "Importance of each key",
        f"PED-ANOVA over {trials} trials: how much of the difference between all trials and the best tenth each key explains.",
        "importance",
        "key",
    )
    return bars_chart(words, [Interval(key, share, share, share) for key, share in ranked], top_value=1.0)


def pareto_chart(points: Sequence[Costed], cost_name: str, accuracy_name: str) -> Chart:
    """Draw accuracy against cost; a stepped line joins the points that no other one beats in both."""
    left, top, right, bottom = scatter_box()
    costs = [point.cost for point in points]
    x = scale_of(costs, left, right, log=max(costs) > 8 * min(costs) > 0)
    y = LinearScale(*padded([point.accuracy for point in points], 0.0, 1.0), bottom, top, "%")
    front = pareto_front(points)
    names = {point.name for point in front}
    steps: list[tuple[float, float]] = []
    for point in front:
        if steps:
            steps.append((x(point.cost), steps[-1][1]))
        steps.append((x(point.cost), y(point.accuracy)))
    steps.append((right, steps[-1][1]))
    places = [
        Place(
            point.cost,
            point.accuracy,
            f"{point.name}: {percent(point.accuracy)}, {short_number(point.cost)}",
            series=1 if point.name in names else 0,
            label=point.name if point.name in names and len(front) <= 6 else "",
        )
        for point in points
    ]
    rows = tuple(
        (point.name, Number(short_number(point.cost), point.cost), _share(point.accuracy), "yes" if point.name in names else "")
        for point in sorted(points, key=lambda point: point.cost)
    )
    description = (
        f"{accuracy_name} against {cost_name}. On the stepped line are the {len(front)} of {len(points)} that no other one "
        "beats in both."
    )
    words = Words(f"Accuracy against {cost_name.split(',')[0]}", description, cost_name, accuracy_name)
    return scatter_chart(
        words, places, x, y, Table(("name", cost_name, accuracy_name, "on the front"), rows), path(steps, "front")
    )


def pareto_front(points: Sequence[Costed]) -> list[Costed]:
    """Return the points that no other one beats in accuracy and cost, the cheapest first. Of equal points the first stays."""
    front: list[Costed] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def trials_table(trials: Sequence[Trial], keys: Sequence[str], judge: Judge) -> Table:
    """Return a row per trial with its values and all its objectives, in the order of the trials."""
    others = sorted({name for trial in trials for name in trial.objectives} - {judge.objective})
    rows = []
    for trial in trials:
        row: list[Cell] = [trial.run]
        row += [_cell(trial.values.get(key, "")) for key in keys]
        row += [judge.cell(trial), *(_number(trial.value_of(name)) for name in others)]
        row += [Number(str(trial.epochs), trial.epochs), "to the end" if trial.whole else "ended early"]
        rows.append(tuple(row))
    return Table(("trial", *keys, judge.title, *others, "epochs", "reached"), tuple(rows))


def _scale(distribution: Distribution, trials: Sequence[Trial], key: str, start: float, end: float) -> Scale:
    if distribution.kind == "choice":
        return BandScale(tuple(map(_text, distribution.values)), start, end)
    low, high = map(float, distribution.values)
    values = [
        float(trial.values[key]) for trial in trials if key in trial.values
    ]  # a search that was narrowed later has trials outside
    low, high = min(low, *values), max(high, *values)
    if distribution.kind.startswith("log"):
        return LogScale(low, high, start, end)
    return LinearScale(low, high, start, end, whole=distribution.kind == "int")


def _position(distribution: Distribution, value: object) -> float:
    if distribution.kind == "choice":
        return float(distribution.values.index(value)) if value in distribution.values else -0.5
    return float(value)  # type: ignore[arg-type]


def _text(value: object) -> str:
    return short_number(value) if isinstance(value, float) else str(value)


def _cell(value: object) -> Cell:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Number(_text(value), float(value)) if is_number else _text(value)  # type: ignore[arg-type]


def _number(value: float) -> Cell:
    return "" if math.isnan(value) else Number(short_number(value), value)


def _share(value: float) -> Number:
    return Number(percent(value), value)
