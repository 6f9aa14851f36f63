"""Refit: choose the number of epochs on the validation part, then train on train and validation together for that many.

The first run is an ordinary one that leaves the test part alone. The second holds nothing out, keeps the learning rate's
schedule of the first, stops after the chosen epoch, and is the only one that is tested.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from starlab.experiments.spec import Spec
from starlab.platform.errors import UserError
from starlab.platform.preflight import check_spec, join_cluster, open_data, split_parts
from starlab.platform.recipe.step_plan import StepPlan
from starlab.platform.runs.folder import RunFolder, runs_folder
from starlab.platform.runs.lease import Lease
from starlab.platform.runs.records import Result
from starlab.platform.serving.initial_weights import with_digest
from starlab.platform.tracking.abandoned import close_abandoned_everywhere
from starlab.platform.trainer import RunRequest, RunResult, run_training


def refit(
    spec: Spec,
    *,
    runs: str | Path | None = None,
    fresh: bool = False,
    say: Callable[[str], None] = lambda _: None,
    live: bool = False,
) -> RunResult:
    """Train `spec` with its validation part held out, then on all of train for the epochs that were best. Tests the second run.

    Each of the two is a run of its own, which the same call continues or reads.

    Args:
        spec: The experiment; `data.select` is "validation".
        runs, fresh, say, live: As in `trainer.train`.

    Raises:
        UserError: The spec does not select on the validation part, or learns no actions. Others as in `trainer.train`.
    """
    if not spec.train.learns_actions:
        raise UserError("train.action_loss_weight is 0, so no action is learned by which a refit could choose the epoch; use 1")
    if spec.data.select != "validation":
        raise UserError(
            f"data.select is {spec.data.select!r}, so there is no epoch to choose on the validation part; "
            "a refit needs data.select=validation"
        )
    root = runs_folder(runs)
    check_spec(spec)
    spec = with_digest(spec, root)
    source, parts = open_data(spec, root, say)
    close_abandoned_everywhere(root)
    with Lease.claim(root / spec.run_id(source.fingerprint), wait=say):  # as in `trainer.train`
        cluster = join_cluster(spec, 1, say)
    choosing = RunRequest(spec=spec, source=source, parts=parts, runs=root, cluster=cluster, fresh=fresh, is_trial=True)
    run_training(choosing, say=say, live=live)
    epoch = chosen_epoch(spec, choosing.folder, len(parts.train))
    say(f"refit    {choosing.folder.path.name} is best after epoch {epoch:g} of {spec.train.epochs:g}")
    if choosing.folder.looks_at_test():
        say("note     that run was tested before: the test of the refit is another look at the test part")
    whole = refit_spec(spec, epoch)
    request = RunRequest(
        spec=whole,
        source=source,
        parts=split_parts(whole, source),
        runs=root,
        cluster=cluster,
        fresh=fresh,
        tags={"starlab.refit_of": choosing.folder.path.name},
    )
    say(f"         training on {len(request.parts.train)} clips, {len(parts.validation)} of them held out before")
    return run_training(request, say=say, live=live)


def chosen_epoch(spec: Spec, folder: RunFolder, train_clips: int) -> float:
    """Number of epochs after which the finished run in `folder` was best on its validation part."""
    best = folder.require(Result).best_step
    steps = StepPlan(spec.train, train_clips)
    return min(float(steps.evaluations()[best]), spec.train.trained_epochs)


def refit_spec(spec: Spec, epoch: float) -> Spec:
    """The spec that trains on train and validation together, as `spec` does, and stops after `epoch`."""
    return replace(
        spec,
        data=replace(spec.data, validation_fraction=0.0, select="last"),
        train=replace(spec.train, stop_after_epochs=None if epoch >= spec.train.epochs else epoch),
    )
