"""Look at a part of the data again with a checkpoint of a run that is there: `starlab evaluate`.

    artifacts/evaluations/test-step00000720-1/
      metrics.json  predictions.parquet  confusion.png

A run looks at its test part once, at its end. Every further look is possible, counted, and said wherever the run is shown:
numbers chosen after several looks are no longer those of unseen data.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import RunConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from starlab.experiments.spec import Spec, override_spec, spec_from_dict
from starlab.models.star import StarTransformer, load_state
from starlab.pipelines.clip import ClipSource
from starlab.pipelines.stream import StreamLimits
from starlab.platform.cluster.allotment import Allotment, allot, worker_group
from starlab.platform.errors import RunFailedError, UserError
from starlab.platform.recipe.precision import AUTOCAST
from starlab.platform.recipe.ranks import Ranks
from starlab.platform.runs.checkpoint import checkpoint_steps, find_checkpoint
from starlab.platform.runs.folder import RunFolder, find_runs, runs_folder
from starlab.platform.serving.registry import model_tensors
from starlab.platform.tracking.sender import Sender
from starlab.platform.trainer import join_cluster, open_data
from starlab.platform.worker.evaluate import evaluate
from starlab.platform.worker.predictions import read_predictions, write_predictions

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
"""Keys of a run's spec that an evaluation may change: where things are, the views of a clip, and how batch-norm would gather
statistics, which an evaluation does not (a run with "sync" is evaluated without GPUs so). Never what was trained."""


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """One look at a part."""

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
    """The how-manieth look at the test part of this run, its own included; 0 for the validation part."""
    folder: Path
    tracking_problem: str | None


@dataclass(frozen=True, slots=True)
class _Job:
    """What every worker of an evaluation gets."""

    spec: Spec
    source: ClipSource
    clips: tuple[int, ...]
    views: tuple[int, int]
    """Of each clip, in time and in the picture."""
    folder: RunFolder
    step: int
    precision: str
    limits: StreamLimits
    target: Path


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
    stored = spec_from_dict(folder.read_json("spec.json"), str(folder.path / "spec.json"))
    spec = override_spec(stored, overrides, CHANGEABLE, folder.path.name)
    if any(override.startswith("resources.checkpoints=") for override in overrides):
        raise UserError(f"the checkpoints of {folder.path.name} are read where it wrote them: {folder.stored_checkpoints}")
    step = checkpoint_step(folder, checkpoint)
    source, parts = open_data(spec, root, say)
    trained_on = folder.read_json("run.json")["tags"]["starlab.data_fingerprint"]
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
    allotment = allot(spec, join_cluster(spec, 1, say))
    target = _new_folder(folder, part, step)
    precision = folder.read_json("result.json").get("precision") or folder.read_json("choices.json").get("precision")
    job = _Job(
        spec.without_password(),
        source,
        clips,
        spec.data.test_views if part == "test" else (1, 1),
        folder,
        step,
        precision or spec.train.precision,
        allotment.limits,
        target,
    )
    try:
        _run_workers(job, allotment)
    except BaseException:
        shutil.rmtree(target)  # an empty look is no look
        raise
    return _finish(job, part)


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
    best = folder.read_json("result.json").get("best_step")
    if best is None:
        best = find_checkpoint(folder.stored_checkpoints, last).state["best"].get("step")
    if best is None:
        raise UserError(f"run {folder.path.name} has not looked at its validation part yet; use --checkpoint last")
    return int(best)


def _one_run(root: Path, name: str) -> RunFolder:
    folders = find_runs(root, name)
    if len(folders) > 1:
        listed = ", ".join(folder.path.name for folder in folders[-8:])
        raise UserError(f"'{name}' means {len(folders)} runs; name one of them: {listed}")
    if trials := folders[0].trials():
        best = folders[0].read_json("search.json").get("best", trials[0].path.name)
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


def _run_workers(job: _Job, allotment: Allotment) -> None:
    with tempfile.TemporaryDirectory(prefix=".ray-", dir=job.folder.path) as place:  # for Ray's own records
        trainer = TorchTrainer(
            _loop,
            train_loop_config={"job": job},
            scaling_config=worker_group(job.spec, allotment),
            run_config=RunConfig(name=uuid.uuid4().hex[:8], storage_path=place),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise RunFailedError(f"the evaluation failed: {str(error).strip().splitlines()[-1]}") from error


def _loop(config: dict[str, _Job]) -> None:
    """One worker's share; rank 0 writes the predictions."""
    job, context = config["job"], ray.train.get_context()
    ranks = Ranks(context.get_world_rank(), context.get_world_size())
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(job.spec.resources.threads_per_worker)
    model = StarTransformer(replace(job.spec.model, weights="none"))  # they come from the checkpoint
    load_state(model, model_tensors(find_checkpoint(job.folder.stored_checkpoints, job.step)))
    evaluation = evaluate(
        model.to(device),
        job.source,
        job.spec.data,
        job.clips,
        times=job.views[0],
        places=job.views[1],
        ranks=ranks,
        device=device,
        limits=job.limits,
        batch=max(1, 2 * job.spec.train.global_batch // ranks.world),
        autocast=AUTOCAST[job.precision],
    )
    if ranks.rank == 0:
        write_predictions(job.target / "predictions.parquet", evaluation, job.source)


def _finish(job: _Job, part: str) -> EvaluationResult:
    from starlab.platform.reports.figures import confusion_figure  # matplotlib takes seconds to import

    if not (job.target / "predictions.parquet").is_file():
        raise RunFailedError(f"the workers do not see {job.target}; the runs folder must be on storage that all nodes share")
    _, evaluation, classes = read_predictions(job.target / "predictions.parquet")
    metrics, confusion = evaluation.metrics(), evaluation.confusion()
    per_class = {name: float(recall) for name, recall in zip(classes, evaluation.per_class(), strict=True) if recall == recall}
    confusion_figure(confusion, classes, part).savefig(job.target / "confusion.png", dpi=120)
    look = job.folder.looks_at_test() + 1 if part == "test" else 0
    about: dict[str, Any] = {
        "part": part,
        "step": job.step,
        "look_at_test": look,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "clips": len(evaluation.labels),
        "unreadable": dict(evaluation.unreadable),
        "metrics": metrics,
        "per_class": per_class,
        "confusion": confusion.tolist(),
        "classes": classes,
    }
    (job.target / "metrics.json").write_text(json.dumps(about, indent=1))
    run = job.folder.read_json("run.json")
    tags = {**run["tags"], "starlab.test_looks": str(job.folder.looks_at_test())}
    job.folder.write_json("run.json", {**run, "tags": tags})
    sender = Sender(job.folder)
    sender.send_now()
    return EvaluationResult(
        job.folder.path.name,
        part,
        job.step,
        metrics,
        per_class,
        len(evaluation.labels),
        look,
        job.target,
        sender.problem,
    )
