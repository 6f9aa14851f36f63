"""What an ablation prints: its cells and their cost before it starts, and its table when all are done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from starlab.experiments.ablation import AblationSpec, select_rows
from starlab.pipelines.sources import generated_folder, is_generated
from starlab.platform.dry_run import amount, forecast
from starlab.platform.errors import UserError
from starlab.platform.reports.compare import compare
from starlab.platform.reports.formats import render
from starlab.platform.reports.report import FILE
from starlab.platform.reports.results import read_results
from starlab.platform.runs.folder import RunFolder, runs_folder
from starlab.platform.search.ablate import AblationResult, check_ablation, open_all_data, plan_cells
from starlab.platform.search.cells import count_states
from starlab.platform.serving.initial_weights import with_digests
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
    missing = sum(not _is_tested(RunFolder(result.runs / cell.folder)) for cell in result.record.cells)
    return [
        *table_lines(result.folder),
        *([f"{missing} of {len(result.record.cells)} cells have no result yet"] if missing else []),
        *(f"  failed   {run_id}: {reason}" for run_id, reason in sorted(result.failed.items())),
        *(["the same command tries the failed ones again"] if result.failed else []),
        "",
        f"ablation   {result.folder} ({result.trained} cells run in {result.seconds:.0f} s{looks})",
        f"compare    starlab compare {name}",
        *([f"report     {report}"] if (report := result.folder / "artifacts" / FILE).is_file() else []),
        *tracking_lines(name, result.mlflow_run_id, result.tracking_uri, result.tracking_problem),
    ]


def table_lines(folder: Path) -> list[str]:
    """The table, the verdicts and the notes that `starlab compare` prints of an ablation (docs/comparing.md)."""
    try:
        return render(compare(read_results([RunFolder(folder)])), "terminal").splitlines()
    except UserError as error:  # no cell has finished
        return [str(error)]


def forecast_lines(spec: AblationSpec, names: Sequence[str] = (), runs: str | Path | None = None) -> list[str]:
    """The cells of an ablation, which of them exist, and the cost of the others. Trains and generates nothing.

    Raises:
        DataError, UserError: As `ablate`.
    """
    root, rows = runs_folder(runs), select_rows(spec, names)
    check_ablation(spec)
    spec = with_digests(spec, root)
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


def _is_tested(folder: RunFolder) -> bool:
    result = folder.result
    return result is not None and result.test is not None
