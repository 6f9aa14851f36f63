"""The report of a run, a search or an ablation: one HTML file among its artifacts, which needs no network and no server."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from starlab.experiments.overrides import flatten
from starlab.experiments.space import Distribution
from starlab.platform.errors import UserError
from starlab.platform.reports.attention_section import attention_section, embedding_section
from starlab.platform.reports.class_section import classes_section
from starlab.platform.reports.compare import compare
from starlab.platform.reports.comparison import Comparison
from starlab.platform.reports.group_sections import (
    VerdictRow,
    pairing_section,
    pareto_section,
    verdict_section,
)
from starlab.platform.reports.line_sections import Interval, layers_section, train_share_section, worse_joints_sections
from starlab.platform.reports.page import NamedTable, Section, Summary, page
from starlab.platform.reports.report_runs import METRIC_NAMES, ReportRun, groups, read_run
from starlab.platform.reports.results import Results, read_results
from starlab.platform.reports.run_sections import cost_section, curves_section, provenance_section
from starlab.platform.reports.search_charts import Judge, importance_chart, parallel_chart, slice_chart, trials_table
from starlab.platform.reports.search_trials import first_objective, trials_of
from starlab.platform.reports.svg import percent, short_number, value_text
from starlab.platform.runs.folder import SPEC, RunFolder
from starlab.platform.runs.search_records import AblationRecord, SearchSummary, Trial

FILE = "report.html"
_MOST_DRAWN = 100
"""Trials of a search that are drawn and listed. With all of a long search, a page would be megabytes."""
_MOST_LISTED = 40
"""Trials whose curves, cost and origin are shown."""


def report(folder: RunFolder, complain: Callable[[str], None] = lambda _: None) -> Path:
    """Write `artifacts/report.html` of a run, a search or an ablation, and return its path.

    Args:
        complain: Called with a line for each run that is left out because a record of it is damaged.

    Raises:
        UserError: There is no result to report yet.
    """
    if record := folder.read(AblationRecord):
        summary, sections = _ablation(folder, record, complain)
    elif folder.read_json(SPEC).get("space") or folder.trials():
        summary, sections = _search(folder, complain)
    else:
        summary, sections = _run(folder, complain)
    folder.artifacts.mkdir(parents=True, exist_ok=True)
    draft = folder.artifacts / f".{FILE}"
    draft.write_text(page(summary, sections), encoding="utf-8")
    return draft.replace(folder.artifacts / FILE)


def report_at_end(folder: RunFolder, complain: Callable[[str], None]) -> None:
    """Write the report of a search or an ablation that ends. A report that cannot be written is a line and not a failure."""
    try:
        report(folder, complain)
    except (UserError, OSError) as error:
        complain(f"report   not written: {error}")


def _run(folder: RunFolder, complain: Callable[[str], None]) -> tuple[Summary, list[Section]]:
    run = read_run(folder, folder.path.name, None, complain)
    if run is None:
        raise UserError(f"{folder.path.name} has no result yet, so there is nothing to report; its training must end first")
    rows, result = {run.row: [run]}, run.result
    test, val = result.test, f" ({percent(result.val['top1'])})" if "top1" in result.val else ""
    reached = f"Validation top-1{val}. The test part was not evaluated."
    if test:
        clips = f", on {result.test_clips} clips" if result.test_clips else ""
        reached = f"Test top-1 {percent(test['top1'])}, mean class {percent(test['mean_class'])}{clips}."
    verdict = [
        reached,
        f"Checkpoint of step {result.best_step} of {result.total_steps}, selected by {result.selected_by}{val}. "
        f"{_looks(folder)}One run shows no spread: compare several seeds before you conclude.",
    ]
    sections = [
        curves_section([run]),
        classes_section(rows),
        *worse_joints_sections([run], "top1"),
        *attention_section(rows),
        embedding_section([run]),
        cost_section(rows),
        provenance_section([run], _commands(folder, "train"), run.settings),
    ]
    return Summary(folder.path.name, _kind(folder, "Run"), verdict, _facts([run])), sections


def _search(folder: RunFolder, complain: Callable[[str], None]) -> tuple[Summary, list[Section]]:
    raw = folder.read_json(SPEC)
    space = {key: Distribution.from_yaml(form) for key, form in raw.get("space", {}).items()}
    read = (read_run(trial, trial.path.name, None, complain) for trial in folder.trials())
    runs = {run.name: run for run in read if run}
    found = folder.read(SearchSummary)
    judge = Judge(next(iter(found.objectives)) if found else first_objective(raw))
    trials = [trial for trial in found.trials if trial.run in runs] if found else trials_of(runs, space, judge)
    trials = [trial for trial in trials if math.isfinite(judge.value(trial))]
    if not trials:
        raise UserError(f"no trial of {folder.path.name} has finished, so there is nothing to report")
    best, ordered = runs[trials[0].run], [runs[trial.run] for trial in trials]
    values = ", ".join(f"{key}={_short(value)}" for key, value in sorted(trials[0].values.items()))
    test = best.result.test
    verdict = [
        f"Best of {len(trials)} trials: {values}, {judge.title} {judge.words(trials[0])}"
        + (f", test top-1 {percent(test['top1'])}." if test else "."),
        f"{sum(trial.whole for trial in trials)} trials reached their last epoch. The best of many is chosen partly by luck: "
        f"its {judge.title} is optimistic. The other trials were not evaluated on the test part.",
    ]
    if found is None:
        verdict.append("The search has not ended; these are the trials that have.")
    rows = {best.name: [best]}
    whole = [runs[trial.run] for trial in trials if trial.whole]
    sections = [
        _search_charts(trials, space, found, judge),
        layers_section([_validated(run) for run in whole], "top1", best_only=True),
        pairing_section([_validated(run) for run in whole], "top1", best_only=True),
        pareto_section({run.name: [_validated(run)] for run in whole}, "top1"),
        curves_section(ordered[:_MOST_LISTED], best=best.name),
        classes_section(rows),
        *attention_section(rows),
        embedding_section([best]),
        cost_section({run.name: [run] for run in ordered[:_MOST_LISTED]}),
        provenance_section(ordered[:_MOST_LISTED], _commands(folder, "search"), flatten(raw)),
    ]
    return Summary(folder.path.name, _kind(folder, "Search"), verdict, _facts(ordered)), sections


def _search_charts(
    trials: Sequence[Trial], space: Mapping[str, Distribution], found: SearchSummary | None, judge: Judge
) -> Section:
    if not space:
        return Section("What the search tried", absent="the search has no space in its spec.")
    drawn = trials[:_MOST_DRAWN]
    charts = [parallel_chart(drawn, space, judge)]
    for key, kind in sorted(space.items()):
        having = [
            trial for trial in drawn if trial.values.get(key) is not None or (kind.kind == "choice" and key in trial.values)
        ]
        charts += [slice_chart(having, key, kind, judge)] if having else []
    importance = found.importance if found else {}
    if importance:
        charts.append(importance_chart(importance, len(trials)))
    lead = "" if importance else "Importance is left out: it needs a finished search of at least 10 trials."
    if len(drawn) < len(trials):
        lead = f"{lead} The best {len(drawn)} trials are drawn and listed; trials.csv among the artifacts has all.".strip()
    named = f"The best {len(drawn)} trials" if len(drawn) < len(trials) else f"All {len(trials)} trials, best first"
    table = NamedTable(named, trials_table(drawn, sorted(space), judge), folded=len(drawn) > 12)
    return Section("What the search tried", lead, charts=charts, tables=[table])


def _ablation(folder: RunFolder, record: AblationRecord, complain: Callable[[str], None]) -> tuple[Summary, list[Section]]:
    runs = _cells(folder, record, complain)
    if not runs:
        raise UserError(f"no cell of {folder.path.name} has finished, so there is nothing to report")
    results = read_results([folder], complain, costs=False)
    comparison = compare(results, metric=record.metric)
    metric, form = METRIC_NAMES.get(record.metric, record.metric), "%" if comparison.unit == "%" else "g"
    rows, verdicts = groups(runs), verdict_rows(comparison)
    missing = len(record.cells) - len(runs)
    notes = [*comparison.sentences, *(note[:1].upper() + note[1:] + "." for note in comparison.notes)]
    verdict = [f"Claim: {record.claim}", _counted(comparison)]
    if verdicts:
        best = verdicts[0]  # a comparison is sorted
        seeds = "1 seed" if len(best.values) == 1 else f"{len(best.values)} seeds"
        verdict.insert(0, f"{best.name} is best: {metric} {value_text(best.mean, form)} over {seeds}.")
    if missing:
        verdict.append(f"{missing} of {len(record.cells)} cells have no result yet.")
    sections = [
        verdict_section(verdicts, metric, comparison.base or record.reference, notes, form),
        *(_shapes(runs, record.metric, results) if form == "%" else []),
        curves_section(runs),
        *([pareto_section(rows, record.metric)] if form == "%" else []),
        classes_section(rows, record.reference),
        *attention_section(rows),
        embedding_section(runs),
        cost_section(rows),
        provenance_section(runs, _commands(folder, "ablate"), flatten(folder.read_json(SPEC))),
    ]
    return Summary(folder.path.name, _kind(folder, "Ablation"), verdict, _facts(runs)), sections


def _shapes(runs: Sequence[ReportRun], metric: str, results: Results) -> list[Section]:
    """The sections that show accuracy over a key of the spec."""

    def against(base: str) -> dict[str, Interval]:
        rows = compare(results, metric=metric, base=base).rows
        return {row.name: (row.difference.value, row.difference.low, row.difference.high) for row in rows if row.difference}

    share = train_share_section(runs, metric)
    return [
        layers_section(runs, metric, against=against),
        *([] if share.absent else [share]),
        *worse_joints_sections(runs, metric),
        pairing_section(runs, metric),
    ]


def verdict_rows(comparison: Comparison) -> list[VerdictRow]:
    """Turn the rows of a comparison into those of a page: percentages become shares."""
    scale = 0.01 if comparison.unit == "%" else 1.0
    found = []
    for row in comparison.rows:
        if row.mean is None:
            continue
        difference = row.difference
        ends = (difference.value, difference.low, difference.high) if difference else None
        found.append(
            VerdictRow(
                name=row.name,
                values=tuple(scale * value for value in row.by_seed),
                mean=row.mean * scale,
                sd=None if row.sd is None else row.sd * scale,
                low=None if row.low is None else row.low * scale,
                high=None if row.high is None else row.high * scale,
                paper=None if row.paper is None else row.paper * scale,
                difference=(ends[0] * scale, ends[1] * scale, ends[2] * scale) if ends else None,
                verdict=row.verdict,
            )
        )
    return found


def report_runs(folder: RunFolder, complain: Callable[[str], None]) -> tuple[list[ReportRun], str]:
    """Read the finished runs of an ablation or a search, or the run itself, and the metric by which they are compared."""
    if record := folder.read(AblationRecord):
        return _cells(folder, record, complain), record.metric
    trials = folder.trials()
    found = (read_run(run, run.path.name, None, complain) for run in (trials or [folder]))
    return [run for run in found if run], "top1"


def _cells(folder: RunFolder, record: AblationRecord, complain: Callable[[str], None]) -> list[ReportRun]:
    runs = []
    for cell in record.cells:
        place = RunFolder(folder.path.parent / cell.folder)
        run = read_run(place, cell.row, cell.seed, complain) if place.path.is_dir() else None
        runs += [run] if run else []
    return runs


def _counted(comparison: Comparison) -> str:
    """Count the verdicts, as in "4 rows against FZ/FB: 1 worse, 3 no difference shown"."""
    verdicts = [row.verdict for row in comparison.rows if row.difference]
    if not verdicts:
        return "No row can be compared with another one yet."
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
    rows = "1 row" if len(verdicts) == 1 else f"{len(verdicts)} rows"
    return f"{rows} against {comparison.base}: {counts}."


def _short(value: object) -> str:
    return short_number(value) if isinstance(value, float) else str(value)


def _validated(run: ReportRun) -> ReportRun:
    """The run judged on the validation part, as trials are, even if its test part was evaluated."""
    return replace(run, result=replace(run.result, test=None))


def _kind(folder: RunFolder, kind: str) -> str:
    info = folder.info
    return f"{kind} of {info.experiment}, {info.status.lower()}, created {info.created[:16].replace('T', ' ') or 'earlier'} UTC"


def _looks(folder: RunFolder) -> str:
    looks = folder.looks_at_test()
    return f"The test part was evaluated {looks} times. " if looks > 1 else ""


def _facts(runs: Sequence[ReportRun]) -> list[tuple[str, str]]:
    first = runs[0]
    shown = {
        "data": first.settings.get("data.dataset"),
        "runs": len(runs),
        "pairing": first.pairing if len({run.pairing for run in runs}) == 1 else "several",
        "epochs": first.settings.get("train.epochs"),
        "code": ", ".join(sorted({run.folder.info.tags.get("starlab.code", "?") for run in runs})[:3]),
    }
    return [(name, str(value)) for name, value in shown.items() if value is not None]


def _commands(folder: RunFolder, verb: str) -> list[str]:
    name, experiment = folder.path.name, folder.info.experiment
    return [f"starlab {verb} {experiment}", f"starlab compare {name}", f"starlab report {name}", f"starlab sync {name}"]
