"""Evaluates a checkpoint of an existing run on a part of its data: `starlab evaluate`.

    artifacts/evaluations/test-step00000720-1/
      metrics.json  predictions.parquet  confusion.png

A run evaluates its test part once, at its end. Further evaluations are possible. They are counted, and the count is shown with
the run, because results chosen after several looks at the test part are no longer results on unseen data.
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
from starlab.platform.preflight import check_joints, join_cluster, open_data
from starlab.platform.runs.checkpoint import checkpoint_steps, find_checkpoint
from starlab.platform.runs.folder import SPEC, RunFolder, find_run, runs_folder
from starlab.platform.runs.records import FINGERPRINT, Choices, EvaluationRecord, RunInfo
from starlab.platform.runs.search_records import AblationRecord, SearchSummary
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
    "data.joint_jitter_px",
    "data.joint_drop",
    "model.batch_norm",
    "resources",
)
"""Keys of a run's spec that an evaluation may change: the location of the data, the views of a clip, noise on its joints, the
resources, and how batch norm gathers statistics. An evaluation gathers none, so a run with "sync" can be evaluated on CPUs. No
other key can change, because the others define the trained model."""


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Result of one evaluation of a part."""

    run_id: str
    part: str
    step: int
    """Step of the checkpoint."""
    metrics: dict[str, float]
    """top1, top5, mean_class in [0, 1]; loss in nats."""
    per_class: dict[str, float]
    """Recall by class, in [0, 1], of the classes that have clips."""
    clips: int
    """Number of clips evaluated, without unreadable ones."""
    look: int
    """Position of this evaluation among all evaluations of the run's test part, from 1; 0 for the validation part."""
    folder: Path
    """Folder of this evaluation."""
    learned_actions: bool
    """False if the run learned the joints alone: its accuracies are those of guessing."""
    tracking_problem: str | None
    """Why MLflow is not up to date; None if it is."""


def evaluate_run(
    name: str,
    *,
    checkpoint: str = "best",
    part: str = "test",
    overrides: Sequence[str] = (),
    runs: str | Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> EvaluationResult:
    """Predict every clip of a part once with a checkpoint of a run, and store metrics and predictions in the run's folder.

    Args:
        name: Name of the run, or of an experiment with a single run.
        checkpoint: "best" by the selection metric, "last", or the step of an existing checkpoint.
        part: "test" or "validation".
        overrides: Changes to the run's spec, e.g. ["data.store=/elsewhere"]. See `CHANGEABLE`.
        runs: Folder of runs; None uses STARLAB_RUNS, else ./runs.
        say: Called with each line of output for the user.

    Raises:
        UserError, SpecError, DataError: The run, checkpoint or data do not exist, or the data differ from the training data.
        RunFailedError: The workers did not finish.
    """
    if part not in PARTS:
        raise UserError(f"--part is {part!r}; it must be one of {', '.join(PARTS)}")
    root = runs_folder(runs)
    folder = one_run(root, name, say)
    stored = spec_from_dict(folder.read_json(SPEC), str(folder.path / SPEC))
    spec = override_spec(stored, overrides, CHANGEABLE, folder.path.name)
    check_joints(spec)
    if any(override.startswith("resources.checkpoints=") for override in overrides):
        raise UserError(
            f"the checkpoints of {folder.path.name} are read from where the run wrote them: {folder.stored_checkpoints}"
        )
    step = checkpoint_step(folder, checkpoint)
    source, parts = open_data(spec, root, say)
    trained_on = folder.info.tags[FINGERPRINT]
    if source.fingerprint != trained_on:
        raise UserError(
            f"run {folder.path.name} was trained on data with fingerprint {trained_on[:12]}, not {source.fingerprint[:12]} as "
            f"in {spec.data.store or 'the generated data set'}: name the current location of the same data with data.store=…"
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
        evaluate_on_workers(task, placement, say)
    except BaseException:
        shutil.rmtree(task.target)  # a failed evaluation is not a look at the data
        raise
    return _finish(task, part)


def checkpoint_step(folder: RunFolder, checkpoint: str) -> int:
    """Resolve "best", "last" or a number to the step of a checkpoint.

    Raises:
        UserError: The checkpoint does not exist, or `checkpoint` is something else.
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
    """Return the steps of the complete checkpoints, ascending. Sets nothing aside, because the run may be writing one."""
    return checkpoint_steps(folder.stored_checkpoints)


def _best_step(folder: RunFolder, last: int) -> int:
    if result := folder.result:
        return result.best_step
    best = find_checkpoint(folder.stored_checkpoints, last).state["best"].get("step")
    if best is None:
        raise UserError(f"run {folder.path.name} has not evaluated its validation part yet; use --checkpoint last")
    return int(best)


def one_run(root: Path, name: str, say: Callable[[str], None]) -> RunFolder:
    """Find the one run that `name` means.

    Raises:
        UserError: There is none, there are several, or it is a search or an ablation.
    """
    folder = find_run(root, name, say)
    if ablation := folder.read(AblationRecord):
        cells = ablation.cells
        raise UserError(f"{folder.path.name} is an ablation of {len(cells)} cells; name one of them, e.g. {cells[0].run}")
    if trials := folder.trials():
        summary = folder.read(SearchSummary)
        best = summary.best if summary else trials[0].path.name
        raise UserError(f"{folder.path.name} is a search of {len(trials)} trials; name one of them, e.g. {best}")
    return folder


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
    """Return the precision that the run was trained with, or None if it is not known yet."""
    if (result := folder.result) and result.precision:
        return result.precision
    choices = folder.read(Choices)
    return choices.precision if choices else None


def _looks(folder: RunFolder) -> dict[str, str]:
    return {"starlab.test_looks": str(folder.looks_at_test())}


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
        joint_noise=(task.spec.data.joint_jitter_px, task.spec.data.joint_drop),
    )
    RunFolder(task.target).write(record)
    task.folder.update(RunInfo, lambda run: replace(run, tags={**run.tags, **_looks(task.folder)}))
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
        learned_actions=task.spec.train.learns_actions,
        tracking_problem=sender.problem,
    )
