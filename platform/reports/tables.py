"""Tables of runs side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlab.experiments.spec import flatten
from starlab.platform.runs.folder import SPEC, RunFolder
from starlab.platform.runs.records import DamagedRecordError


def comparison(
    folders: Sequence[RunFolder], complain: Callable[[str], None] = lambda _: None
) -> tuple[list[str], list[list[str]]]:
    """Compare runs: what differs in their specs, then what they reached.

    Args:
        complain: gets a line for each run that is left out because a record of it is damaged.

    Returns:
        Column heads, and a row of texts per run.
    """
    found = []
    for folder in folders:
        try:
            found.append((folder, flatten(folder.read_json(SPEC)), folder.info, folder.result, folder.looks_at_test()))
        except DamagedRecordError as error:
            complain(f"skipped  {error}")
    specs = [spec for _, spec, *_ in found]
    keys = sorted({key for spec in specs for key in spec if key != "name"})
    differing = [key for key in keys if len({repr(spec.get(key)) for spec in specs}) > 1]
    heads = ["run", "status", *differing, "val top1", "test top1", "test mean class", "selected by"]
    rows = []
    for folder, spec, info, result, looks in found:
        val, test = (result.val, result.test or {}) if result else ({}, {})
        reached = [_percent(val.get("top1")), _percent(test.get("top1")), _percent(test.get("mean_class"))]
        selected = result.selected_by if result else ""
        selected = "test (optimistic)" if selected == "test" else selected
        selected += f", {looks} looks at test" if looks > 1 else ""
        rows.append([folder.path.name, info.status, *(str(spec.get(key, "")) for key in differing), *reached, selected])
    return heads, rows


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
