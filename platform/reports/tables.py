"""Tables of runs side by side."""

from __future__ import annotations

from collections.abc import Sequence

from starlab.experiments.spec import flatten
from starlab.platform.runs.folder import SPEC, RunFolder


def comparison(folders: Sequence[RunFolder]) -> tuple[list[str], list[list[str]]]:
    """Compare runs: what differs in their specs, then what they reached.

    Returns:
        Column heads, and a row of texts per run.
    """
    specs = [flatten(folder.read_json(SPEC)) for folder in folders]
    keys = sorted({key for spec in specs for key in spec if key != "name"})
    differing = [key for key in keys if len({repr(spec.get(key)) for spec in specs}) > 1]
    heads = ["run", "status", *differing, "val top1", "test top1", "test mean class", "selected by"]
    rows = []
    for folder, spec in zip(folders, specs, strict=True):
        result = folder.result
        val, test = (result.val, result.test or {}) if result else ({}, {})
        reached = [_percent(val.get("top1")), _percent(test.get("top1")), _percent(test.get("mean_class"))]
        selected = result.selected_by if result else ""
        selected = "test (optimistic)" if selected == "test" else selected
        looks = folder.looks_at_test()
        selected += f", {looks} looks at test" if looks > 1 else ""
        rows.append([folder.path.name, folder.info.status, *(str(spec.get(key, "")) for key in differing), *reached, selected])
    return heads, rows


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
