"""The section about classes: recall, differences between rows, and confusions, over the test clips of all seeds of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from starlab.platform.reports.charts import Words
from starlab.platform.reports.intervals import Interval, bars_chart, intervals_chart
from starlab.platform.reports.matrix import matrix_chart
from starlab.platform.reports.page import NamedTable, Section
from starlab.platform.reports.report_runs import ReportRun
from starlab.platform.reports.svg import Chart, Number, Table, percent

_MOST_DRAWN = 20
"""Most classes of a chart. A larger matrix has no room for its names, and with all classes of NTU a page would be megabytes."""
_MOST_MATRICES = 4
_MOST_DIFFERENCES = 6
_PAIRS = 8

Counts = NDArray[np.int64]


def classes_section(rows: Mapping[str, Sequence[ReportRun]], reference: str | None = None) -> Section:
    """Draw recall, confusions, and the differences of each row to the row `reference`, by default the first one."""
    summed = {row: _summed(members) for row, members in rows.items()}
    counts = {row: counted for row, counted in summed.items() if counted is not None}
    if not counts:
        return Section("Classes and confusions", absent="no run has evaluated its test part.")
    first = reference if reference in counts else next(iter(counts))
    names = rows[first][0].result.classes
    others = [row for row in counts if row != first and rows[row][0].result.classes == names]
    recalls = {row: _recall(counted) for row, counted in counts.items()}
    charts = [_recall_chart(first, names, recalls[first])]
    charts += [_difference_chart(row, first, names, recalls[row] - recalls[first]) for row in others[:_MOST_DIFFERENCES]]
    shown = [first, *others][:_MOST_MATRICES]
    charts += [_confusion_chart(row, names, counts[row]) for row in shown]
    tables = [_pairs_table(row, names, counts[row]) for row in shown]
    left_out = f" Confusions of the first {len(shown)} rows only." if len(shown) < len(counts) else ""
    lead = f"Test clips by true and predicted class, summed over the seeds of a row.{left_out}"
    return Section("Classes and confusions", lead, charts, [table for table in tables if table.table.rows])


def _summed(runs: Sequence[ReportRun]) -> Counts | None:
    """Sum the confusions of the seeds of a row; None if no seed has one."""
    found = [run.result.confusion for run in runs if run.result.confusion and run.result.classes == runs[0].result.classes]
    return np.array(found, np.int64).sum(axis=0) if found else None


def _recall(counts: Counts) -> NDArray[np.float64]:
    """Compute the recall of each class; NaN for a class without clips."""
    total = counts.sum(axis=1)
    recall: NDArray[np.float64] = np.divide(np.diag(counts), total, out=np.full(len(total), np.nan), where=total > 0)
    return recall


def _recall_chart(row: str, names: Sequence[str], recall: NDArray[np.float64]) -> Chart:
    order = [index for index in np.argsort(recall, kind="stable") if recall[index] == recall[index]]
    cut = f" Only the {_MOST_DRAWN} classes with the lowest recall are drawn." if len(order) > _MOST_DRAWN else ""
    description = f"Share of the test clips of each class that {row} recognises, the lowest first.{cut}"
    return bars_chart(
        Words("Recall of each class", description, "recall", "class"),
        [_point(names[index], recall[index]) for index in order[:_MOST_DRAWN]],
        top_value=1.0,
    )


def _difference_chart(row: str, reference: str, names: Sequence[str], difference: NDArray[np.float64]) -> Chart:
    order = [index for index in np.argsort(difference, kind="stable") if difference[index] == difference[index]]
    cut = ""
    if len(order) > _MOST_DRAWN:
        order = [*order[: _MOST_DRAWN // 2], *order[-_MOST_DRAWN // 2 :]]
        cut = f" Only the {_MOST_DRAWN} classes that differ most are drawn."
    description = (
        f"Recall of {row} minus recall of {reference}: right of the dashed line, {row} is better. A class has few clips, so "
        f"this describes the runs and proves nothing about single classes.{cut}"
    )
    words = Words(f"{row} against {reference}, by class", description, "difference in recall", "class")
    return intervals_chart(words, [_point(names[index], difference[index]) for index in order], zero=True)


def _confusion_chart(row: str, names: Sequence[str], counts: Counts) -> Chart:
    errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
    chosen = sorted(np.argsort(-errors, kind="stable")[:_MOST_DRAWN])
    cut = f" Only the {_MOST_DRAWN} classes with the most errors are drawn." if len(chosen) < len(names) else ""
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    cells = [[(float(share[i, j]), str(counts[i, j])) if counts[i, j] else None for j in chosen] for i in chosen]
    picked = [names[index] for index in chosen]
    description = f"Numbers of test clips; a row is a true class, and its shade is the share of the class.{cut}"
    return matrix_chart(Words(f"Confusions of {row}", description, "predicted", "true"), picked, picked, cells)


def _pairs_table(row: str, names: Sequence[str], counts: Counts) -> NamedTable:
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
    pairs = [divmod(int(index), len(names)) for index in order]
    total = np.maximum(1, counts.sum(axis=1))
    rows = tuple(
        (
            names[true],
            names[guess],
            Number(str(wrong[true, guess]), float(wrong[true, guess])),
            Number(percent(wrong[true, guess] / total[true]), wrong[true, guess] / total[true]),
        )
        for true, guess in pairs
        if wrong[true, guess]
    )
    return NamedTable(f"Most frequent confusions of {row}", Table(("true", "predicted", "clips", "share of the class"), rows))


def _point(name: str, value: float) -> Interval:
    return Interval(name, float(value), float(value), float(value))
