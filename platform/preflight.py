"""Checks what a run needs before it starts: weights, a metric to select by, data, room in the cluster."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from starlab.experiments.spec import Spec
from starlab.pipelines.clip import ClipSource, DataError
from starlab.pipelines.datasets import differs_from_official
from starlab.pipelines.sources import open_source
from starlab.pipelines.splits import Parts, limit_parts, split_rows, thin_train
from starlab.platform.cluster.connect import Cluster, check_ray_can_start, connect
from starlab.platform.cluster.room import wait_for_room
from starlab.platform.errors import UserError
from starlab.platform.recipe.metrics import METRICS
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.records import FINGERPRINT, DamagedRecordError, Result, RunInfo

_REFUSAL_SECONDS = 0.2
"""How long Ray's start waits for a mistake in the data: a missing folder is found within this time."""


def check_spec(spec: Spec) -> None:
    """Check what the types of the spec cannot check, before anything is started.

    Raises:
        UserError: Ray could not write its files on this machine, the pre-trained weights are missing or damaged (the message
            says what to download and where to put it), the metric to select by does not exist, `train.extends` is set, a
            model would be told joints that it must do without, or nothing would be learned.
    """
    check_ray_can_start()
    check_joints(spec)
    check_losses(spec)
    if spec.train.extends is not None:
        raise UserError("train.extends cannot be set by hand; name the finished run instead: starlab train … --extend RUN")
    if spec.train.select_by not in METRICS:
        near = difflib.get_close_matches(spec.train.select_by, METRICS, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(METRICS)}"
        raise UserError(f"train.select_by is {spec.train.select_by!r}, which is not a metric; {hint}")
    if spec.model.weights == "kinetics400":
        from starlab.models.backbone import kinetics400_file  # imports torch, which takes seconds

        try:
            kinetics400_file(spec.model.weights_path)
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"model.{error}") from None


def check_losses(spec: Spec) -> None:
    """Refuse weights of the losses with which nothing would be learned, or the checkpoint chosen by what is not learned.

    Raises:
        UserError: `train.action_loss_weight` is not 1 where it is the only loss, or 0 where the joints are not learned either,
            or 0 where the accuracy picks the checkpoint.
    """
    weight, learned = spec.train.action_loss_weight, spec.model.pose == "learned"
    said = f"train.action_loss_weight is {weight:g}"
    if weight != 1 and not learned:
        raise UserError(
            f"{said}, but model.pose is {spec.model.pose!r}, so the loss of the actions is the only one; use 1 "
            "(train.lr sets the size of a step), or model.pose=learned"
        )
    if weight == 0 and spec.train.pose_loss_weight == 0:
        raise UserError(f"{said} and train.pose_loss_weight 0, so nothing would be learned; set one of them above 0")
    if weight == 0 and spec.data.select != "last":
        raise UserError(
            f"{said}, so no action is learned, and data.select={spec.data.select} would choose the checkpoint by how well "
            "actions are recognised; use data.select=last"
        )


def check_joints(spec: Spec) -> None:
    """Refuse settings by which a model would know joints better than it should.

    A spec is read without this check, so that what a run of an earlier version has is read as it is.

    Raises:
        UserError: A learned pose goes with mixed clips or with crops to the annotated people, or joints are made worse after
            the crop to them.
    """
    data, crop = spec.data, spec.data.person_crop
    if spec.model.pose == "learned" and spec.train.cutmix:
        raise UserError(
            f"train.cutmix is {spec.train.cutmix}, but model.pose=learned finds the joints of one clip, and a mixed clip has "
            "those of two; use train.cutmix=0"
        )
    if spec.model.pose == "learned" and crop is not None:
        raise UserError(
            f"data.person_crop is {crop}, which crops to the annotated joints, and model.pose=learned must find them by "
            "itself; use data.person_crop=null"
        )
    if crop is not None and (data.joint_jitter_px or data.joint_drop):
        raise UserError(
            f"data.person_crop is {crop}, which crops to the joints before data.joint_jitter_px ({data.joint_jitter_px:g}) and "
            f"data.joint_drop ({data.joint_drop:g}) make them worse, so the model would see them; use 0 for both, or a model "
            "that was trained with data.person_crop=null"
        )


def open_data(spec: Spec, runs: Path, say: Callable[[str], None]) -> tuple[ClipSource, Parts]:
    """Open the data set of a spec and split it into its parts; `say` gets a line about what was left out.

    Raises:
        DataError: the data set cannot be used, or a part that the spec needs is empty.
    """
    source = open_source(spec.data, runs, say)
    official = split_rows(source.clips, spec.data.validation_fraction, spec.data.split_seed)
    parts = split_parts(spec, source)
    for name in ("train", "test"):
        if not getattr(parts, name):
            raise DataError(f"{spec.data.dataset} has no {name} clip among its {len(source.clips)} readable ones")
    say(
        f"data     {spec.data.dataset}: {len(parts.train)} train, {len(parts.validation)} validation, {len(parts.test)} test "
        f"clips of {len(source.classes)} classes; fingerprint {source.fingerprint[:12]}"
    )
    held_out, in_all = len(official.validation), len(official.validation) + len(official.train)
    if difference := differs_from_official(spec.data.dataset, spec.data.protocol, in_all, len(official.test)):
        say(f"         {difference}")
    share, asked = held_out / in_all if in_all else 0.0, spec.data.validation_fraction
    if abs(share - asked) > 0.01 and not any(row.split == "validation" for row in source.clips):
        say(
            f"         validation is {share:.1%} of the official training part, {asked:.1%} asked: whole subjects or clips move"
        )
    if source.skipped:
        say(f"skipped  {len(source.skipped)} clips that cannot be used:")
        for skipped in source.skipped[:5]:
            say(f"         {skipped.clip_id}: {skipped.reason}")
        if len(source.skipped) > 5:
            say(f"         and {len(source.skipped) - 5} more, all in the run's skipped.json")
    return source, parts


def open_ahead(spec: Spec, runs: Path, *, fresh: bool, say: Callable[[str], None]) -> tuple[ClipSource, Parts] | None:
    """Check a spec and open its data for `trainer.train`, while Ray starts and the trainer is imported.

    Returns:
        The data and their parts. None if the run is finished already, or starts from weights that are looked up first.

    Raises:
        UserError: as `check_spec`.
        DataError: as `open_data`.
    """
    check_spec(spec)
    if spec.train.init_from is not None or (not fresh and is_finished(spec, runs)):
        return None
    return open_data_while_ray_starts(spec, runs, say, then=lambda: import_module("starlab.platform.trainer"))


def open_data_while_ray_starts(
    spec: Spec, runs: Path, say: Callable[[str], None], then: Callable[[], object] = lambda: None
) -> tuple[ClipSource, Parts]:
    """Open the data as `open_data` does, in a thread, while Ray and the controller of the first group of workers start.

    Args:
        then: Called in the thread once the data are open, such as imports that take seconds.

    Raises:
        DataError: as `open_data`. A mistake that shows at once is raised before Ray starts.
        UserError: RAY_ADDRESS does not name a cluster that can be joined.
    """
    opened: Future[tuple[ClipSource, Parts]] = Future()

    def open_in_thread() -> None:
        try:
            data = open_data(spec, runs, say)
            then()
            opened.set_result(data)
        except BaseException as error:  # raised again by `result`
            opened.set_exception(error)

    # A daemon, so that Ctrl-C ends the process. Ray starts in the main thread, because its daemons end with that thread.
    threading.Thread(target=open_in_thread, name="starlab-open-data", daemon=True).start()
    wait([opened], timeout=_REFUSAL_SECONDS)
    if not (opened.done() and opened.exception()):
        connect()
        from starlab.platform.cluster.controllers import start_ahead  # Ray Train takes a second to import

        start_ahead(streams=spec.data.decode == "cluster")
    return opened.result()


def is_complete(result: Result | None, *, is_trial: bool = False) -> bool:
    """Return whether a run needs no more training or test. A trial is not tested."""
    return result is not None and (result.test is not None or is_trial)


def is_finished(spec: Spec, runs: Path) -> bool:
    """Return whether a run of this spec is finished, as far as can be told before the data are open."""
    for file in runs.glob(f"{spec.name}-*/{RunInfo.FILE}"):
        folder = RunFolder(file.parent)
        with suppress(DamagedRecordError):
            same = folder.path.name == spec.run_id(folder.info.tags.get(FINGERPRINT, ""))
            if same and is_complete(folder.result):
                return True
    return False


def split_parts(spec: Spec, source: ClipSource) -> Parts:
    """Split the clips of an open data set into the parts that a spec trains on, selects by and tests on."""
    data = spec.data
    parts = split_rows(source.clips, data.validation_fraction, data.split_seed)
    parts = thin_train(parts, source.clips, data.train_fraction, data.split_seed)
    return limit_parts(parts, source.clips, data.limit, data.split_seed)


def join_cluster(spec: Spec, runs_at_once: int, say: Callable[[str], None]) -> Cluster:
    """Join the cluster, or start one on this machine. On a remote cluster, wait until it has room."""
    cluster = connect()
    if cluster.local:
        return cluster
    from starlab.platform.cluster.placement import demand_of  # imports torch

    demand = demand_of(spec, groups=runs_at_once)
    return wait_for_room(demand, timeout_seconds=spec.resources.wait_for_room_seconds, say=say)
