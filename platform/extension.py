"""Trains a finished run longer: `starlab train EXPERIMENT --extend RUN`.

The longer run is a run of its own. It begins with the last checkpoint of the finished one, with its optimizer, its position in
the stream and its curve, as if it had been interrupted there. So with a constant learning rate it ends exactly where a single
run over all epochs would. The finished run stays as it is.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace

from starlab.experiments.spec import Spec, spec_from_dict
from starlab.pipelines.clip import ClipSource
from starlab.platform.errors import UserError
from starlab.platform.recipe.optimizer import learning_rate
from starlab.platform.recipe.step_plan import StepPlan
from starlab.platform.runs.checkpoint import Checkpoint, find_checkpoint, write_checkpoint
from starlab.platform.runs.folder import SPEC, RunFolder
from starlab.platform.runs.journal import FILE
from starlab.platform.runs.records import FINGERPRINT, Choices, Result
from starlab.platform.serving.initial_weights import digest_of
from starlab.platform.worker.calibration import FILE as VALIDATION

KEPT = (
    *("global_batch", "optimizer", "ema", "seed", "precision", "backbone_lr_scale", "init_digest", "init_lr_scale"),
    *("mixup", "cutmix", "action_loss_weight"),
)
"""Keys of `train` that must stay as they were: they decide the stream, or what the optimizer's state means."""
_PLACES = ("store", "source", "decode", "cache")


def extended_spec(spec: Spec, finished: RunFolder) -> Spec:
    """Return the spec of the longer run.

    Args:
        spec: The experiment with the new schedule, `train.epochs` counted from the very beginning.
        finished: The run to train longer.

    Raises:
        UserError: The run has not finished or ended early, its last checkpoint is gone, or the spec changes more than the
            schedule.
    """
    name, result = finished.path.name, finished.result
    if result is None:
        raise UserError(f"run {name} has not finished: its status is {finished.info.status}; --extend takes a finished run")
    if result.ended_early:
        raise UserError(f"run {name} was ended early by its search, after {result.steps} of {result.total_steps} steps")
    old = spec_from_dict(finished.read_json(SPEC), str(finished.path / SPEC))
    for section, one, other in (("data", old.data, spec.data), ("model", old.model, spec.model)):
        before, now = asdict(one), asdict(other)
        for key in before:
            if before[key] != now[key] and key not in _PLACES:
                raise UserError(
                    f"{section}.{key} is {now[key]!r}, but run {name} has {before[key]!r}; --extend cannot change it"
                )
    for key in KEPT:
        before, now = getattr(old.train, key), getattr(spec.train, key)
        if before != now:
            raise UserError(f"train.{key} is {now!r}, but run {name} has {before!r}; --extend cannot change it")
    if spec.train.trained_epochs <= old.train.trained_epochs:
        raise UserError(
            f"train.epochs is {spec.train.trained_epochs:g}, and run {name} was trained for {old.train.trained_epochs:g} "
            f"already; epochs count from its beginning: set e.g. train.epochs={2 * old.train.trained_epochs:g}"
        )
    return replace(spec, train=replace(spec.train, extends=digest_of(_last(finished, result).tensors)))


def extension_lines(spec: Spec, finished: RunFolder, source: ClipSource, train_clips: int) -> list[str]:
    """State the learning rate with which the longer run goes on, and whether its test part was seen before.

    Raises:
        UserError: The data are not those of the finished run.
    """
    result, trained_on = finished.require(Result), finished.info.tags.get(FINGERPRINT, source.fingerprint)
    if source.fingerprint != trained_on:
        raise UserError(
            f"run {finished.path.name} was trained on data with fingerprint {trained_on[:12]}, not {source.fingerprint[:12]}: "
            "name the current location of the same data with data.store=…"
        )
    old = spec_from_dict(finished.read_json(SPEC), str(finished.path / SPEC))
    ended = learning_rate(old.train, result.steps - 1, StepPlan(old.train, train_clips).schedule_steps)
    plan = StepPlan(spec.train, train_clips)
    begins = learning_rate(spec.train, result.steps, plan.schedule_steps)
    end = learning_rate(spec.train, plan.total_steps - 1, plan.schedule_steps)
    lines = [
        f"extend   {finished.path.name} ended at step {result.steps} with learning rate {ended:.2g}; it goes on to step "
        f"{plan.total_steps}, epoch {spec.train.trained_epochs:g}",
        f"         schedule {spec.train.schedule}, from {begins:.2g} to {end:.2g}",
    ]
    if finished.looks_at_test():
        lines.append("note     that run was tested before: the test of the longer one is another look at the test part")
    return lines


def seed_from(finished: RunFolder, folder: RunFolder, spec: Spec) -> None:
    """Give a new run the last checkpoint, the best one and the curve of a finished run."""
    result = finished.require(Result)
    last = _last(finished, result)
    numbers = {**last.state, "spec": spec.to_dict()}
    if result.best_step == last.step:  # the checkpoint was written before its evaluation
        numbers["best"] = {"step": float(last.step), **result.val}
    with (finished.path / FILE).open("rb") as journal:
        (folder.path / FILE).write_bytes(journal.read(last.state["journal_bytes"]))
    best = numbers["best"].get("step")
    if best is not None and int(best) != last.step:
        kept = find_checkpoint(finished.stored_checkpoints, int(best))
        write_checkpoint(folder.stored_checkpoints, kept.step, kept.tensors, kept.state)
    if (finished.artifacts / VALIDATION).is_file():
        folder.artifacts.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(finished.artifacts / VALIDATION, folder.artifacts / VALIDATION)
    if result.precision is not None:
        folder.write(Choices(precision=result.precision))
    write_checkpoint(folder.stored_checkpoints, last.step, last.tensors, numbers)


def _last(finished: RunFolder, result: Result) -> Checkpoint:
    try:
        return find_checkpoint(finished.stored_checkpoints, result.steps)
    except ValueError as error:
        raise UserError(f"run {finished.path.name} cannot be trained longer: {error}") from None
