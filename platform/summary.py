"""The last lines of a training or a search: what it reached, and where to look."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import unquote

from starlab.platform.runs.metric_names import TEST, TEST_MEAN_CLASS, TEST_TOP1, VAL_TOP1
from starlab.platform.trainer import RunResult

if TYPE_CHECKING:  # Ray Tune and Optuna take a second and a half to import, before a training that does not need them
    from starlab.platform.evaluation import EvaluationResult
    from starlab.platform.search.search import SearchResult

_NO_ACTIONS = "not learned (train.action_loss_weight is 0)"
_SELECTED = {
    "validation": "validation",
    "test": "best checkpoint by the test part itself (optimistic)",
    "last": "last weights; validation",
}


def result_lines(result: RunResult) -> list[str]:
    """Test accuracy of each class and of all clips, the run's folder, the MLflow run and the command that shows it."""
    metrics = result.metrics
    done = "complete already" if result.was_complete else f"{result.seconds:.0f} s"
    if result.learned_actions:
        accuracy = [
            *(f"  {name:<26}{recall:7.1%}" for name, recall in result.per_class.items()),
            "",
            f"test top-1 {metrics[TEST_TOP1]:.3f}, mean class {metrics[TEST_MEAN_CLASS]:.3f}, {_selected(result)}  ({done})",
        ]
    else:
        accuracy = [f"actions    {_NO_ACTIONS}; start another run from it: train.init_from={result.run_id}  ({done})"]
    return [
        *accuracy,
        *_joint_lines(metrics, TEST),
        f"run        {result.folder}",
        *_replay_lines(result),
        *tracking_lines(result.run_id, result.mlflow_run_id, result.tracking_uri, result.tracking_problem),
    ]


def evaluation_lines(result: EvaluationResult) -> list[str]:
    """What an evaluation by hand reached, and how many looks at the test part there were."""
    metrics = result.metrics
    look = ""
    if result.look > 1:
        look = f"note       look {result.look} at this run's test part; it is recorded, and shown wherever the run is"
    return [
        *(f"  {name:<26}{recall:7.1%}" for name, recall in result.per_class.items()),
        "",
        f"{result.part} top-1 {metrics['top1']:.3f}, top-5 {metrics['top5']:.3f}, mean class {metrics['mean_class']:.3f} "
        f"({result.clips} clips, checkpoint of step {result.step})",
        *_joint_lines(metrics, ""),
        *([look] if look else []),
        *([] if result.learned_actions else [f"actions    {_NO_ACTIONS}: these accuracies are those of guessing"]),
        *(
            [f"MLflow     not up to date ({result.tracking_problem}); later: starlab sync {result.run_id}"]
            if result.tracking_problem
            else []
        ),
        f"results    {result.folder}",
    ]


def search_lines(result: SearchResult) -> list[str]:
    """Every trial, best first, then the best one's result."""
    from starlab.platform.search.space import values_text
    from starlab.platform.search.trial_lines import value_text

    rows, names = [], [objective.name for objective in result.objectives]
    head = "validation top-1" if names == [VAL_TOP1] else ", ".join(names)
    for trial in result.trials:
        reached = "to the end" if trial.whole else f"{trial.epochs:.0f} epochs"
        values = "  ".join(value_text(name, trial.value_of(name)) for name in names)
        mark = " *" if trial in result.pareto_front else "  " if result.pareto_front else ""
        rows.append(f"  {values}{mark}  {reached:<10}  {values_text(trial.values)}")
    best, seeds = result.best, len(result.trials[0].runs) if result.trials else 1
    means = f", means over {seeds} seeds" if seeds > 1 else ""
    look = f", look {result.looks_at_test} at the test part in this search" if result.looks_at_test > 1 else ""
    return [
        f"{head} of {_count(len(rows), len(result.failed))}{means} ({result.seconds:.0f} s):",
        *rows,
        *(["  * no other trial is as good in every objective and better in one"] if result.pareto_front else []),
        *(f"  failed            {run_id}: {reason}" for run_id, reason in sorted(result.failed.items())),
        *(["the same command tries the failed ones again"] if result.failed else []),
        "",
        f"best       {best.run_id}: test top-1 {best.metrics[TEST_TOP1]:.3f}{look}",
        f"search     {result.folder}",
        f"compare    starlab compare {result.folder.name}",
        *([f"report     {report}"] if (report := result.folder / "artifacts" / "report.html").is_file() else []),
        f"proposals  {result.dashboard}",
        *tracking_lines(result.folder.name, result.mlflow_run_id, best.tracking_uri, result.tracking_problem),
    ]


def _joint_lines(metrics: Mapping[str, float], prefix: str) -> list[str]:
    """How many of the annotated joints a model found that finds them itself; no line for another model."""
    shares = [
        f"{metrics[name]:.3f} within {name.removeprefix(prefix + 'pck_')}"
        for name in metrics
        if name.startswith(f"{prefix}pck_")
    ]
    return [f"joints     found {', '.join(shares)} of the person's box (PCK)"] if shares else []


def _selected(result: RunResult) -> str:
    if VAL_TOP1 not in result.metrics:
        return "last weights, nothing held out"
    return f"{_SELECTED[result.selected_by]} {result.metrics[VAL_TOP1]:.3f}"


def _count(finished: int, failed: int) -> str:
    return f"{finished} of {finished + failed} trials, {failed} failed" if failed else f"{finished} trials"


def _replay_lines(result: RunResult) -> list[str]:
    if not result.replayed_differently:
        return []
    return [
        f"note       {result.replayed_differently} points came out differently when they were computed again after a restart; "
        "the first values were kept, the others are in journal.differences.jsonl"
    ]


def tracking_lines(run_id: str, mlflow_run_id: str | None, uri: str, problem: str | None) -> list[str]:
    """The MLflow run and the command that shows it, or why MLflow is not up to date."""
    where = f"run {mlflow_run_id} in {uri}"
    if problem:
        return [f"MLflow     not up to date ({problem}); later: starlab sync {run_id}"]
    if uri.startswith("sqlite:") and uri.endswith("/mlflow.db"):
        runs = unquote(uri.removeprefix("sqlite:///").removesuffix("/mlflow.db"))
        return [f"MLflow     {where}", f"look at it starlab ui --runs {shlex.quote(runs)}"]
    look = uri if uri.startswith("http") else f"mlflow server --backend-store-uri {shlex.quote(uri)}"
    return [f"MLflow     {where}", f"look at it {look}"]
