"""Accuracy over one key of the spec: the number of layers (Fig. 5), the share of train, the noise on the joints of a test.

A line joins the rows that differ in this key and the seed only, so that nothing else can explain its shape.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from starlab.platform.reports.charts import Curve, Words, curves_chart
from starlab.platform.reports.grouping import is_compared
from starlab.platform.reports.page import Section
from starlab.platform.reports.report_runs import METRIC_NAMES, ReportRun, groups
from starlab.platform.reports.svg import short_number
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.records import EvaluationRecord

_DEPTH_KEYS = frozenset({"model.layers", "model.encoder_layers", "model.decoder_layers"})
_SHARE_KEYS = frozenset({"data.train_fraction", "train.epochs", "train.stop_after_epochs", "train.evaluate_every_epochs"})
"""Keys that change along a line over the share of train: with fewer clips, a run of as many steps has more epochs."""

Interval = tuple[float, float, float]
"""A difference in points, and the ends of its interval."""


class JointNoise(NamedTuple):
    """How much worse the joints of a test are than the annotated ones."""

    jitter_px: float = 0.0
    """Standard deviation of the noise on x and y, in pixels of the frame that the model sees."""
    drop: float = 0.0
    """Share of the joints that are missing, in [0, 1]."""

    def __str__(self) -> str:
        return f"joints moved by {self.jitter_px:g} px, {100 * self.drop:g} % missing"


@dataclass(slots=True)
class _Line:
    rows: dict[float, str] = field(default_factory=dict)
    values: dict[float, list[float]] = field(default_factory=dict)
    pairing: str = ""

    @property
    def name(self) -> str:
        """The name of its first row, without a share such as "10 %" where the line has several."""
        first = self.rows[min(self.rows)]
        return first if len(self.rows) == 1 else re.sub(r"\W*\b\d[\d.]*\s*%\W*", " ", first).strip() or first

    def means(self) -> dict[float, float]:
        return {x: math.fsum(values) / len(values) for x, values in sorted(self.values.items())}

    def curve(self, name: str) -> Curve:
        xs, means = sorted(self.values), self.means()
        several = any(len(values) > 1 for values in self.values.values())
        low, high = (tuple(edge(self.values[x]) for x in xs) if several else () for edge in (min, max))
        return Curve(name, tuple(xs), tuple(means[x] for x in xs), low, high)


def layers_section(
    runs: Sequence[ReportRun],
    metric: str,
    *,
    best_only: bool = False,
    against: Callable[[str], Mapping[str, Interval]] | None = None,
) -> Section:
    """Draw accuracy over the number of layers (Fig. 5), and say at which depth over-fitting begins.

    Args:
        best_only: Whether the runs differ in other settings, too, as trials of a search do. Then the best run of each depth is
            drawn, over all settings.
        against: Compares all rows with the row of this name: their differences by name.
    """
    if best_only:
        best = _Line()
        for run in runs:
            value = run.accuracy(metric)
            if run.depth is not None and value is not None:
                best.values[run.depth] = [max([value, *best.values.get(run.depth, [])])]
        curves = [best.curve("best trial")]
        how = "The best trial of each depth. Trials differ in other settings, too, so this is not the effect of depth alone."
    else:
        lines = [line for line in _lines(runs, metric, lambda run: run.depth, _DEPTH_KEYS) if len(line.values) > 1]
        by_pairing = len({line.pairing for line in lines}) == len(lines)
        curves = [line.curve(line.pairing if by_pairing else line.name) for line in lines]
        how = "Means over seeds; bands reach from the lowest to the highest seed."
    if not curves or max(len(curve.x) for curve in curves) < 2:
        return Section("Accuracy over layers", absent="no two rows differ in the number of layers only.")
    name = METRIC_NAMES[metric]
    words = Words("Accuracy over layers", f"{name} over the number of encoder layers. {how}", "layers", name)
    notes = []
    if against is not None and not best_only:
        for line, curve in zip(lines, curves, strict=True):
            sentence = overfitting_sentence(line.rows, line.means(), against)
            notes.append(f"{curve.name}: {sentence}" if len(lines) > 1 else sentence)
    chart = curves_chart(words, curves, form="%", whole_x=True)
    return Section("Accuracy over layers", "Figure 5 of the paper.", [chart], notes=notes)


def overfitting_sentence(
    rows: Mapping[float, str], means: Mapping[float, float], against: Callable[[str], Mapping[str, Interval]]
) -> str:
    """Say past which depth a deeper model is shown to be worse: the whole interval of its difference is below 0.

    Args:
        rows: Names of the rows by depth.
        means: Mean accuracy by depth.
        against: Compares all rows with the row of this name.
    """
    best = max(sorted(means), key=lambda depth: means[depth])
    deeper = [depth for depth in sorted(rows) if depth > best]
    if not deeper:
        return f"The deepest model, of {best:g} layers, has the highest mean, so over-fitting by depth is not seen."
    differences = against(rows[best])
    for depth in deeper:
        value, low, high = differences.get(rows[depth], (0.0, 0.0, 0.0))
        if high < 0:
            return (
                f"Over-fitting by depth begins past {best:g} layers: {depth:g} layers are worse by {-value:.1f} points "
                f"(95 % interval {-high:.1f} to {-low:.1f})."
            )
    return f"{best:g} layers are best. No deeper model is shown to be worse, up to {deeper[-1]:g} layers."


def train_share_section(runs: Sequence[ReportRun], metric: str) -> Section:
    """Draw accuracy over the share of the training part: a line for each recipe, a mark for a recipe with one share only."""
    lines = _lines(runs, metric, _percent_of_train, _SHARE_KEYS)
    if not any(len(line.values) > 1 for line in lines):
        return Section("Accuracy over the amount of data", absent="no two rows differ in the share of train only.")
    name = METRIC_NAMES[metric]
    words = Words(
        "Accuracy over the amount of data",
        f"{name} on the same test clips over the share of the training part. A smaller share is a part of a larger one. Means "
        "over seeds; bands reach from the lowest to the highest seed. A mark is a recipe that was trained on one share only.",
        "training clips used, %",
        name,
    )
    longest_first = sorted(lines, key=lambda line: -len(line.values))
    chart = curves_chart(words, [line.curve(line.name) for line in longest_first], form="%", whole_x=True)
    gains = [_gain(line, metric) for line in longest_first if len(line.values) > 1]
    return Section("Accuracy over the amount of data", " ".join(gains), [chart])


def worse_joints_sections(runs: Sequence[ReportRun], metric: str) -> list[Section]:
    """Draw accuracy over the noise on the joints of a test, and over the share of missing ones: a line for each row.

    The tests are those of `starlab evaluate NAME --worse-joints`. A row that takes no joints in a test has a level line at its
    test accuracy. The list is empty if no model was tested with worse joints.
    """
    rows: dict[str, dict[JointNoise, list[float]]] = {}
    level = set()
    for row, members in groups(runs).items():
        tests = [metrics_by_noise(run) for run in members]
        rows[row] = {noise: [test[noise][metric] for test in tests if noise in test] for test in tests for noise in test}
        if not any(uses_given_joints(run) for run in members):
            level.add(row)
    noises = sorted({noise for found in rows.values() for noise in found})
    charts = []
    for axis, along in (
        ("noise on the joints, px", {noise: noise.jitter_px for noise in noises if not noise.drop}),
        ("missing joints, %", {noise: round(100 * noise.drop, 3) for noise in noises if not noise.jitter_px}),
    ):
        if len(along) < 2:
            continue
        curves = []
        for row, found in rows.items():
            tested = {x: found.get(JointNoise() if row in level else noise, []) for noise, x in along.items()}
            line = _Line(values={x: values for x, values in tested.items() if values})
            curves += [line.curve(row)] if line.values else []
        charts.append(curves_chart(_worse_joints_words(axis, METRIC_NAMES[metric]), curves, form="%", whole_x=True))
    return [Section("Accuracy with worse joints", charts=charts)] if charts else []


def _worse_joints_words(axis: str, metric_name: str) -> Words:
    return Words(
        f"Accuracy over {axis.partition(',')[0]}",
        f"{metric_name} on the test part. Only the joints of the test change: every model was trained as its row says. A level "
        "line is a model that takes no joints in a test. Means over seeds; bands reach from the lowest to the highest seed.",
        axis,
        metric_name,
    )


def metrics_by_noise(run: ReportRun) -> dict[JointNoise, dict[str, float]]:
    """Return the metrics of each test of a run's best checkpoint by the noise on its joints, the latest test of each."""
    found = {}
    if run.result.test:
        own = JointNoise(*(float(run.settings.get(f"data.{key}") or 0.0) for key in ("joint_jitter_px", "joint_drop")))
        found[own if uses_given_joints(run) else JointNoise()] = run.result.test
    paths = (run.folder.artifacts / "evaluations").glob(f"test-*/{EvaluationRecord.FILE}")
    records = [record for path in paths if (record := RunFolder(path.parent).read(EvaluationRecord))]
    for record in sorted(records, key=lambda record: record.look_at_test):
        if record.joint_noise and record.step == run.result.best_step:
            found[JointNoise(*record.joint_noise)] = record.metrics
    return found


def uses_given_joints(run: ReportRun) -> bool:
    """Return whether the model of a run takes joints in a test."""
    return run.settings.get("model.modality") != "rgb" and run.settings.get("model.pose") != "learned"


def _gain(line: _Line, metric: str) -> str:
    means = line.means()
    low, high = min(means), max(means)
    return (
        f"{line.name}: {METRIC_NAMES[metric]} {100 * means[low]:.1f} % with {short_number(low)} % of train and "
        f"{100 * means[high]:.1f} % with {short_number(high)} %."
    )


def _percent_of_train(run: ReportRun) -> float | None:
    fraction = run.settings.get("data.train_fraction")
    return None if fraction is None else round(100 * float(fraction), 3)


def _lines(
    runs: Sequence[ReportRun], metric: str, x_of: Callable[[ReportRun], float | None], along: frozenset[str]
) -> list[_Line]:
    """Group runs into lines: equal settings, except for the keys `along` the line and those that no comparison counts."""
    found: dict[tuple[tuple[str, str], ...], _Line] = {}
    for run in runs:
        x, value = x_of(run), run.accuracy(metric)
        if x is None or value is None:
            continue
        settings = sorted(
            (key, repr(setting)) for key, setting in run.settings.items() if is_compared(key) and key not in along
        )
        line = found.setdefault(tuple(settings), _Line(pairing=run.pairing))
        line.rows[x] = run.row
        line.values.setdefault(x, []).append(value)
    return list(found.values())
