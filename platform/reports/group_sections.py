"""Sections about several runs: the verdicts of an ablation, pairings of attentions, accuracy against cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from starlab.platform.reports.charts import Words
from starlab.platform.reports.intervals import Interval, intervals_chart
from starlab.platform.reports.matrix import matrix_chart
from starlab.platform.reports.page import NamedTable, Section
from starlab.platform.reports.report_runs import METRIC_NAMES, ReportRun, cost_of
from starlab.platform.reports.search_charts import Costed, pareto_chart
from starlab.platform.reports.svg import Cell, Number, Table, percent, value_text

_NOISE = 1.05
"""Costs whose ratio is below this differ by the noise of measuring a speed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerdictRow:
    """One row of a comparison. Numbers are shares in [0, 1], or nats for the loss."""

    name: str
    values: tuple[float, ...]
    """The metric of each seed."""
    mean: float
    sd: float | None = None
    """Standard deviation over seeds; None for a single seed."""
    low: float | None = None
    high: float | None = None
    """Interval of the mean; None if it cannot be computed."""
    paper: float | None = None
    difference: tuple[float, float, float] | None = None
    """Paired difference to the reference row, with the ends of its interval; None for the reference itself."""
    verdict: str = ""


def verdict_section(
    rows: Sequence[VerdictRow], metric: str, reference: str, notes: Sequence[str] = (), form: str = "%"
) -> Section:
    """Show mean, spread and interval of each row, and its paired difference to the reference with the verdict.

    `form` is "%" for shares and "g" for other values.
    """
    if not rows:
        return Section("Rows side by side", absent="no cell of the ablation has finished.")
    shown = [
        Interval(row.name, row.mean, _or(row.low, row.mean), _or(row.high, row.mean), row.values, row.paper) for row in rows
    ]
    many = any(len(row.values) > 1 for row in rows)
    diamonds = " A diamond is the paper's number." if any(row.paper is not None for row in rows) else ""
    dots = " Small dots are single seeds, the bar is the interval of the mean." if many else " One seed each, so no interval."
    charts = [
        intervals_chart(Words(f"{metric} of each row", f"{metric} on the test part.{dots}{diamonds}", metric, "row"), shown)
    ]
    differences = [
        Interval(row.name, *row.difference, says=row.verdict) for row in rows if row.name != reference and row.difference
    ]
    if differences:
        words = Words(
            f"Difference to {reference}",
            f"{metric} minus that of {reference}, paired by seed and test clip, with its interval. An interval that "
            "crosses the dashed line shows no difference.",
            f"difference in {metric}, points" if form == "%" else f"difference in {metric}",
            "row",
        )
        charts.append(intervals_chart(words, differences, zero=True, form="points" if form == "%" else form))
    table = NamedTable(f"{metric} by row", _verdict_table(rows, metric, form))
    return Section("Rows side by side", charts=charts, tables=[table], notes=notes)


def pairing_section(runs: Sequence[ReportRun], metric: str, *, best_only: bool = False) -> Section:
    """Draw the mean accuracy over the seeds of each pairing of encoder and decoder attention as a matrix (Table 4).

    Where the rows of an ablation have several depths, the matrix is of the depth with the most pairings.

    Args:
        best_only: Whether the runs differ in other settings, too, as trials of a search do. Then the best run counts.
    """
    if not best_only:
        pairings = {depth: len({run.pairing for run in runs if run.depth == depth}) for depth in {run.depth for run in runs}}
        runs = [run for run in runs if run.depth == max(pairings, key=lambda depth: (pairings[depth], -(depth or 0)))]
    found: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        value = run.accuracy(metric)
        if value is not None:
            pair = (str(run.settings.get("model.encoder") or "–"), str(run.settings.get("model.decoder") or "–"))
            found.setdefault(pair, []).append(value)
    encoders, decoders = (tuple(sorted({pair[side] for pair in found}, key=_in_the_papers_order)) for side in (0, 1))
    if len(found) < 2:
        return Section("Pairing of attentions", absent="all runs have the same pairing.")
    if not best_only and (mixed := _mixed(runs, lambda run: (run.pairing,))):
        return Section("Pairing of attentions", absent=f"{mixed} have the same pairing and differ in something else.")
    means = {pair: max(values) if best_only else sum(values) / len(values) for pair, values in found.items()}
    low, high = min(means.values()), max(means.values())
    cells: list[list[tuple[float, str] | None]] = []
    for encoder in encoders:
        row = [means.get((encoder, decoder)) for decoder in decoders]
        cells.append([None if mean is None else (_shade(mean, low, high), percent(mean)) for mean in row])
    counts = sorted({len(values) for values in found.values()})
    runs_each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    what = (
        f"Best {METRIC_NAMES[metric]} of the {runs_each} trials with each encoder and decoder pairing. Trials differ in other "
        "settings, too, so this is not the effect of the pairing alone"
        if best_only
        else f"Mean {METRIC_NAMES[metric]} of the runs with each encoder and decoder pairing, {runs_each} seeds per cell, "
        f"depth {runs[0].depth or 0:g}"
    )
    description = (
        f"{what}. Shades reach from the lowest ({percent(low)}) to the highest ({percent(high)}), which is framed; an empty "
        "cell was not run."
    )
    words = Words("Pairing of attentions", description, "decoder", "encoder")
    return Section(
        "Pairing of attentions", "Table 4 of the paper.", [matrix_chart(words, encoders, decoders, cells, best=True)]
    )


def _mixed(runs: Sequence[ReportRun], place: Callable[[ReportRun], tuple[object, ...]]) -> str:
    """Name rows that would be one point of a chart though they are not seeds of one row. Empty if there are none."""
    rows: dict[tuple[object, ...], dict[str, None]] = {}
    for run in runs:
        rows.setdefault(place(run), {})[run.row] = None
    return next((" and ".join(names) for names in rows.values() if len(names) > 1), "")


def pareto_section(rows: Mapping[str, Sequence[ReportRun]], metric: str) -> Section:
    """Draw accuracy against the model's FLOP and against the measured training speed."""
    flops, seconds = [], []
    for row, members in rows.items():
        values = [value for run in members if (value := run.accuracy(metric)) is not None]
        if not values:
            continue
        costs, mean = [cost_of(run) for run in members], sum(values) / len(values)
        if costs[0].flops:
            flops.append(Costed(row, costs[0].flops / 1e9, mean))
        speeds = [cost.clips_per_second for cost in costs if cost.clips_per_second]
        if speeds:
            seconds.append(Costed(row, 1000 * len(speeds) / sum(speeds), mean))
    charts = []
    for points, name in ((flops, "FLOP, GFLOP per clip"), (seconds, "training time, ms per clip")):
        prices = [point.cost for point in points]
        if points and max(prices) > _NOISE * min(prices):
            charts.append(pareto_chart(points, name, METRIC_NAMES[metric]))
    return Section("Accuracy against cost", charts=charts, absent="all rows cost about the same.")


def _verdict_table(rows: Sequence[VerdictRow], metric: str, form: str) -> Table:
    with_paper = any(row.paper is not None for row in rows)
    heads = (
        "row",
        "seeds",
        metric,
        "sd",
        "interval",
        *(("paper",) if with_paper else ()),
        "difference",
        "its interval",
        "verdict",
    )
    body: list[tuple[Cell, ...]] = []
    for row in rows:
        cells: list[Cell] = [
            row.name,
            Number(str(len(row.values)), len(row.values)),
            Number(value_text(row.mean, form), row.mean),
        ]
        cells.append("" if row.sd is None else Number(value_text(row.sd, form), row.sd))
        cells.append(
            "" if row.low is None or row.high is None else f"{value_text(row.low, form)} to {value_text(row.high, form)}"
        )
        if with_paper:
            cells.append("" if row.paper is None else Number(value_text(row.paper, form), row.paper))
        if row.difference is None:
            cells += ["", ""]
        else:
            mean, low, high = row.difference
            cells += [Number(_signed(mean, form), mean), f"{_signed(low, form)} to {_signed(high, form)}"]
        body.append((*cells, row.verdict))
    return Table(heads, tuple(body))


def _in_the_papers_order(pattern: str) -> list[int]:
    return ["FZB".find(letter) for letter in pattern]


def _signed(difference: float, form: str) -> str:
    return f"{100 * difference:+.1f}" if form == "%" else f"{difference:+.3g}"


def _shade(value: float, low: float, high: float) -> float:
    return 0.15 + 0.75 * (value - low) / (high - low) if high > low else 0.5


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
