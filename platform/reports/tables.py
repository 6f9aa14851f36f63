"""Tables of runs side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlab.experiments.overrides import flatten
from starlab.platform.runs.folder import SPEC, RunFolder
from starlab.platform.runs.records import DamagedRecordError, Result
from starlab.platform.runs.search_records import SearchSummary


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    status: str
    spec: dict[str, Any] | None
    """By dotted key; None for a search, whose trials have specs of their own."""
    result: Result | None
    looks: int
    """Evaluations of the test part."""
    note: str = ""
    """What to add to the part that selected the best checkpoint."""


def comparison(
    folders: Sequence[RunFolder], complain: Callable[[str], None] = lambda _: None
) -> tuple[list[str], list[list[str]]]:
    """Compare runs by what differs in their specs and by what they reached. A search is followed by its trials, best first.

    Args:
        complain: gets a line for each run that is left out because a record of it is damaged.

    Returns:
        Column heads, and a row of texts per run.
    """
    found: list[_Row] = []
    for folder in folders:
        trials = [row for trial in folder.trials() if (row := _run_row(trial, complain))]
        row = _search_row(folder, trials, complain) if trials else _run_row(folder, complain)
        found += [*([row] if row else []), *sorted(trials, key=_best_first)]
    specs = [row.spec for row in found if row.spec is not None]
    keys = sorted({key for spec in specs for key in spec if key != "name"})
    differing = [key for key in keys if len({repr(spec.get(key)) for spec in specs}) > 1]
    heads = ["run", "status", *differing, "val top1", "test top1", "test mean class", "selected by"]
    rows = []
    for row in found:
        val, test = (row.result.val, row.result.test or {}) if row.result else ({}, {})
        reached = [_percent(val.get("top1")), _percent(test.get("top1")), _percent(test.get("mean_class"))]
        values = ["" if row.spec is None else str(row.spec.get(key, "")) for key in differing]
        selected = row.result.selected_by if row.result else ""
        selected = "test (optimistic)" if selected == "test" else selected
        selected += row.note + (", ended early" if row.result and row.result.ended_early else "")
        selected += f", {row.looks} looks at test" if row.looks > 1 else ""
        rows.append([row.name, row.status, *values, *reached, selected.removeprefix(", ")])
    return heads, rows


def _run_row(folder: RunFolder, complain: Callable[[str], None]) -> _Row | None:
    """The row of a run; None where a record is damaged."""
    try:
        spec, result = flatten(folder.read_json(SPEC)), folder.result
        return _Row(folder.path.name, folder.info.status, spec, result, folder.looks_at_test())
    except (DamagedRecordError, OSError) as error:
        complain(f"skipped  {error}")
        return None


def _search_row(folder: RunFolder, trials: Sequence[_Row], complain: Callable[[str], None]) -> _Row | None:
    """The row of a search, with the result of its best trial; None where a record is damaged."""
    try:
        status, summary = folder.info.status, folder.read(SearchSummary)
    except (DamagedRecordError, OSError) as error:
        complain(f"skipped  {error}")
        return None
    best = next((row.result for row in trials if summary and row.name == summary.best), None)
    looks = sum(row.looks for row in trials)
    return _Row(folder.path.name, status, None, best, looks, f", best of {len(trials)} trials")


def _best_first(row: _Row) -> tuple[float, str]:
    return (-row.result.val["top1"] if row.result else 1.0, row.name)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
