"""What an ablation prints: its cells and their cost before it starts, and its table when all are done."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from starlab.experiments.ablation import AblationSpec, select_rows
from starlab.pipelines.sources import generated_folder, is_generated
from starlab.platform.dry_run import amount, forecast
from starlab.platform.errors import UserError
from starlab.platform.reports.compare import compare
from starlab.platform.reports.report import FILE
from starlab.platform.reports.results import read_results
from starlab.platform.runs.folder import RunFolder, runs_folder
from starlab.platform.runs.search_records import AblationRecord
from starlab.platform.search.ablate import AblationResult, check_ablation, open_all_data, plan_cells
from starlab.platform.search.cells import count_states
from starlab.platform.summary import tracking_lines

_STATES = {
    "finished": "exists",
    "untested": "exists as a trial, which has not looked at the test part",
    "started": "would continue",
    "new": "would be trained",
}


def ablation_lines(result: AblationResult) -> list[str]:
    """The table, the cells that failed, and where the results are."""
    name = result.folder.name
    looks = f"; {result.looks_at_test} trials of searches looked at the test part" if result.looks_at_test else ""
    return [
        result.record.claim,
        *table_lines(result.record, result.runs),
        *(f"  {line}" for line in verdict_lines(result.folder)),
        *(f"  failed   {run_id}: {reason}" for run_id, reason in sorted(result.failed.items())),
        *(["the same command tries the failed ones again"] if result.failed else []),
        "",
        f"ablation   {result.folder} ({result.trained} cells run in {result.seconds:.0f} s{looks})",
        f"compare    starlab compare {name}",
        *([f"report     {report}"] if (report := result.folder / "artifacts" / FILE).is_file() else []),
        *tracking_lines(name, result.mlflow_run_id, result.tracking_uri, result.tracking_problem),
    ]


def verdict_lines(folder: Path) -> list[str]:
    """What can be said of each row against the reference, in a sentence each (docs/comparing.md)."""
    try:
        return list(compare(read_results([RunFolder(folder)], costs=False)).sentences)
    except UserError as error:  # no cell has finished
        return [str(error)]


def table_lines(record: AblationRecord, runs: Path) -> list[str]:
    """Mean and standard deviation over seeds of the metric in each row, beside the paper's number."""
    width = max(len(row.name) for row in record.rows) + 2
    scale, unit = (1.0, "") if record.metric == "loss" else (100.0, ", %")
    lines = [f"  {'row':<{width}}{record.metric + unit:>16}{'paper':>8}   seeds"]
    for row in record.rows:
        folders = [RunFolder(runs / cell.folder) for cell in record.cells if cell.row == row.name]
        values = [scale * value for value in (_metric(folder, record.metric) for folder in folders) if value is not None]
        paper = "" if row.paper is None else f"{row.paper:.1f}"
        spread = f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        text = spread or (f"{values[0]:.1f}" if values else "-")
        count = f"{len(values)} of {len(folders)}" if len(values) < len(folders) else f"{len(values)}"
        mark = "   reference" if row.name == record.reference else ""
        lines.append(f"  {row.name:<{width}}{text:>16}{paper:>8}   {count}{mark}")
    return lines


def forecast_lines(spec: AblationSpec, names: Sequence[str] = (), runs: str | Path | None = None) -> list[str]:
    """The cells of an ablation, which of them exist, and the cost of the others. Trains and generates nothing.

    Raises:
        DataError, UserError: As `ablate`.
    """
    root, rows = runs_folder(runs), select_rows(spec, names)
    check_ablation(spec)
    costs = {row.name: forecast(spec.spec_of(row, spec.seeds[0]), root) for row in rows}
    lines, problems = [f"claim      {spec.claim}"], [problem for cost in costs.values() for problem in cost.problems]
    sections = [spec.spec_of(row, spec.seeds[0]).data for row in spec.rows]
    if any(is_generated(data) and data.store is None and not generated_folder(data, root).exists() for data in sections):
        lines.append(f"cells      {len(rows) * len(spec.seeds)}, none of which exists: the data would be generated first")
        flops = sum(costs[row.name].flops for row in rows) * len(spec.seeds)
    else:
        plan = plan_cells(spec, open_all_data(spec, root, lambda line: lines.append(f"{line[:9]}  {line[9:]}")), root)
        cells = [cell for cell in plan.cells if cell.row in costs]
        counts = count_states(cells)
        lines.append(f"ablation   {plan.folder.path}")
        lines.append("cells      " + ", ".join(f"{count} {_STATES[state]}" for state, count in counts.items() if count))
        for cell in cells:
            other = "; trained by another version of the code" if cell.codes - {plan.code} else ""
            lines.append(f"  {cell.label:<24}{_STATES[cell.state]}{other}: {cell.folder.path.relative_to(root)}")
        flops = sum(costs[cell.row].flops for cell in cells if cell.state in ("started", "new"))
    lines += [
        *(f"  {name:<24}{amount(cost.flops)}FLOP and {cost.steps:,} steps a cell" for name, cost in costs.items()),
        f"cost       {amount(flops)}FLOP for what is left",
        f"as planned {spec.cost}",
        *(f"PROBLEM    {problem}" for problem in dict.fromkeys(problems)),
    ]
    return lines


def _metric(folder: RunFolder, metric: str) -> float | None:
    result = folder.result
    value = (result.test or {}).get(metric) if result else None
    return None if value is None or math.isnan(value) else value
