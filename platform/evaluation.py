"""Evaluates a checkpoint of an existing run on a part of its data: `starlab evaluate`.

    artifacts/evaluations/test-step00000720-1/
      metrics.json  predictions.parquet  confusion.png

A run evaluates its test part once, at its end. Every further evaluation of it is possible, counted, and shown wherever the run
is: numbers chosen after several of them are no longer those of unseen data.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from starlab.experiments.spec import override_spec, spec_from_dict
from starlab.platform.attempt import evaluate_on_workers
from starlab.platform.cluster.placement import place
from starlab.platform.errors import RunFailedError, UserError
from starlab.platform.preflight import join_cluster, open_data
from starlab.platform.runs.checkpoint import checkpoint_steps, find_checkpoint
from starlab.platform.runs.folder import SPEC, RunFolder, find_runs, runs_folder
from starlab.platform.runs.records import Choices, EvaluationRecord, RunInfo, SearchSummary
from starlab.platform.tracking.sender import Sender
from starlab.platform.worker.predictions import read_predictions
from starlab.platform.worker.tasks import EvaluationTask

PARTS = ("test", "validation")
CHANGEABLE = (
    "data.store",
    "data.decode",
    "data.source",
    "data.test_views",
    "data.test_crop",
    "model.batch_norm",
    "resources",
)
"""Keys of a run's spec that an evaluation may change: where things are, the views of a clip, and how batch-norm gathers
statistics, which an evaluation does not do (so a run with "sync" can be evaluated without GPUs). Never what was trained."""


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """One evaluation of a part."""

    run_id: str
    part: str
    step: int
    """Of the checkpoint."""
    metrics: dict[str, float]
    """top1, top5, mean_class in [0, 1]; loss in nats."""
    per_class: dict[str, float]
    """Recall by class, in [0, 1], of the classes present."""
    clips: int
    look: int
    """The number of this evaluation among all of the run's test part, its own included; 0 for the validation part."""
    folder: Path
    tracking_problem: str | None


def evaluate_run(
    name: str,
    *,
    checkpoint: str = "best",
    part: str = "test",
    overrides: Sequence[str] = (),
    runs: str | Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> EvaluationResult:
    """Predict every clip of a part once with a checkpoint of the run `name`, and keep metrics and predictions in its folder.

    Args:
        checkpoint: "best" by the validation part, "last", or a step whose checkpoint is there.
        part: "test" or "validation".
        overrides: e.g. ["data.store=/elsewhere"]; see `CHANGEABLE`.

    Raises:
        UserError, SpecError, DataError: no such run, checkpoint or data, or other data than the run was trained on.
        RunFailedError: the workers did not finish.
    """
    if part not in PARTS:
        raise UserError(f"--part is {part!r}; it must be one of {', '.join(PARTS)}")
    root = runs_folder(runs)
    folder = _one_run(root, name)
    stored = spec_from_dict(folder.read_json(SPEC), str(folder.path / SPEC))
    spec = override_spec(stored, overrides, CHANGEABLE, folder.path.name)
    if any(override.startswith("resources.checkpoints=") for override in overrides):
        raise UserError(f"the checkpoints of {folder.path.name} are read where it wrote them: {folder.stored_checkpoints}")
    step = checkpoint_step(folder, checkpoint)
    source, parts = open_data(spec, root, say)
    trained_on = folder.info.tags["starlab.data_fingerprint"]
    if source.fingerprint != trained_on:
        raise UserError(
            f"run {folder.path.name} was trained on data with fingerprint {trained_on[:12]}, not {source.fingerprint[:12]} as "
            f"in {spec.data.store or 'the generated data set'}: name the same data, wherever they lie now, with data.store=…"
        )
    clips = parts.test if part == "test" else parts.validation
    if not clips:
        raise UserError(
            f"run {folder.path.name} has no {part} part: data.validation_fraction is {spec.data.validation_fraction}"
        )
    say(f"evaluate {folder.path.name}: checkpoint of step {step} on {len(clips)} {part} clips")
    placement = place(spec, join_cluster(spec, 1, say))
    task = EvaluationTask(
        spec=spec.without_password(),
        source=source,
        clips=clips,
        views=spec.data.test_views if part == "test" else (1, 1),
        folder=folder,
        step=step,
        precision=_precision(folder) or spec.train.precision,
        limits=placement.limits,
        target=_new_folder(folder, part, step),
    )
    try:
        evaluate_on_workers(task, placement)
    except BaseException:
        shutil.rmtree(task.target)  # an evaluation that failed has shown nothing
        raise
    return _finish(task, part)


def checkpoint_step(folder: RunFolder, checkpoint: str) -> int:
    """The step that "best", "last" or a number stands for.

    Raises:
        UserError: there is no such checkpoint, or the word is another.
    """
    if checkpoint.isdecimal():
        step = int(checkpoint)
    elif checkpoint in ("best", "last"):
        steps = _steps(folder)
        if not steps:
            raise UserError(f"run {folder.path.name} has no checkpoint yet in {folder.stored_checkpoints}")
        step = steps[-1] if checkpoint == "last" else _best_step(folder, steps[-1])
    else:
        raise UserError(f"--checkpoint is {checkpoint!r}; it must be best, last or the step of a checkpoint")
    try:
        find_checkpoint(folder.stored_checkpoints, step)
    except ValueError as error:
        there = ", ".join(map(str, _steps(folder)))
        raise UserError(f"{error}; there are steps {there or 'none'}") from None
    return step


def _steps(folder: RunFolder) -> list[int]:
    """Steps of the complete checkpoints, ascending. Nothing is set aside: the run may be writing one now."""
    return checkpoint_steps(folder.stored_checkpoints)


def _best_step(folder: RunFolder, last: int) -> int:
    if result := folder.result:
        return result.best_step
    best = find_checkpoint(folder.stored_checkpoints, last).state["best"].get("step")
    if best is None:
        raise UserError(f"run {folder.path.name} has not evaluated its validation part yet; use --checkpoint last")
    return int(best)


def _one_run(root: Path, name: str) -> RunFolder:
    folders = find_runs(root, name)
    if len(folders) > 1:
        listed = ", ".join(folder.path.name for folder in folders[-8:])
        raise UserError(f"'{name}' means {len(folders)} runs; name one of them: {listed}")
    if trials := folders[0].trials():
        summary = folders[0].read(SearchSummary)
        best = summary.best if summary else trials[0].path.name
        raise UserError(f"{folders[0].path.name} is a search of {len(trials)} trials; name one of them, e.g. {best}")
    return folders[0]


def _new_folder(folder: RunFolder, part: str, step: int) -> Path:
    for number in range(1, 10_000):
        target = folder.artifacts / "evaluations" / f"{part}-step{step:08d}-{number}"
        try:
            target.mkdir(parents=True)
        except FileExistsError:
            continue
        return target
    raise UserError(f"{folder.artifacts / 'evaluations'} is full")


def _precision(folder: RunFolder) -> str | None:
    """The precision that the run was trained with; None while it is unknown."""
    if (result := folder.result) and result.precision:
        return result.precision
    choices = folder.read(Choices)
    return choices.precision if choices else None


def _finish(task: EvaluationTask, part: str) -> EvaluationResult:
    from starlab.platform.reports.figures import confusion_figure  # matplotlib takes seconds to import

    if not (task.target / "predictions.parquet").is_file():
        raise RunFailedError(f"the workers do not see {task.target}; the runs folder must be on storage that all nodes share")
    _, evaluation, classes = read_predictions(task.target / "predictions.parquet")
    metrics, confusion = evaluation.metrics(), evaluation.confusion()
    per_class = {name: float(recall) for name, recall in zip(classes, evaluation.per_class(), strict=True) if recall == recall}
    confusion_figure(confusion, classes, part).savefig(task.target / "confusion.png", dpi=120)
    look = task.folder.looks_at_test() + 1 if part == "test" else 0
    record = EvaluationRecord(
        part=part,
        step=task.step,
        look_at_test=look,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        clips=len(evaluation.labels),
        unreadable=dict(evaluation.unreadable),
        metrics=metrics,
        per_class=per_class,
        confusion=confusion.tolist(),
        classes=tuple(classes),
    )
    RunFolder(task.target).write(record)
    looks = {"starlab.test_looks": str(task.folder.looks_at_test())}
    task.folder.update(RunInfo, lambda run: replace(run, tags={**run.tags, **looks}))
    sender = Sender(task.folder)
    sender.send_now()
    return EvaluationResult(
        run_id=task.folder.path.name,
        part=part,
        step=task.step,
        metrics=metrics,
        per_class=per_class,
        clips=len(evaluation.labels),
        look=look,
        folder=task.target,
        tracking_problem=sender.problem,
    )
