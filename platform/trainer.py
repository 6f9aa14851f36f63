"""From a spec to a trained, evaluated, recorded run: the driver's side of a training.

The driver opens the data, places the workers, watches the journal and keeps MLflow up to date; `train_loop.py` trains.
"""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ray.train import UserCallback

from starlab.experiments.credentials import without_password
from starlab.experiments.spec import Spec
from starlab.models.backbone import kinetics400_file
from starlab.pipelines.clip import ClipSource, DataError
from starlab.pipelines.sources import open_source
from starlab.pipelines.splits import Parts, limit_parts, split_rows
from starlab.platform import preemption
from starlab.platform.attempt import attempt
from starlab.platform.cluster.allotment import Allotment, allot
from starlab.platform.cluster.connect import Cluster, connect, wait_for_room
from starlab.platform.errors import RunFailedError, UserError
from starlab.platform.preemption import RunPreemptedError, heed_sigterm
from starlab.platform.runs.events import EventReader
from starlab.platform.runs.folder import RunFolder, runs_folder
from starlab.platform.runs.journal import FILE, count_differences
from starlab.platform.runs.lease import Lease, check_fence
from starlab.platform.runs.provenance import provenance
from starlab.platform.runs.reaper import close_abandoned_everywhere, this_process
from starlab.platform.runs.system_metrics import SystemMetrics
from starlab.platform.serving.registry import write_best_model
from starlab.platform.tracking.cockpit import Cockpit
from starlab.platform.tracking.progress import Progress
from starlab.platform.tracking.sender import Sender, tracking_uri
from starlab.platform.worker.job import TrainJob


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run."""

    run_id: str
    folder: Path
    metrics: dict[str, float]
    """"val/top1", "test/top1", … in [0, 1]; losses in nats."""
    per_class: dict[str, float]
    """Recall on the test part, in [0, 1]; empty where it was not looked at."""
    seconds: float
    """Of this call."""
    was_complete: bool
    """The run had been finished before; nothing was trained."""
    selected_by: str
    """Part that picked the best checkpoint: "validation", or "test" where the spec says so."""
    tracking_uri: str
    mlflow_run_id: str | None
    """None while MLflow has not been reached."""
    tracking_problem: str | None
    replayed_differently: int
    """Points of the curve that came out otherwise when they were computed again after a restart; 0 where resume is exact."""


def train(
    spec: Spec,
    *,
    runs: str | Path | None = None,
    fresh: bool = False,
    say: Callable[[str], None] = lambda _: None,
    live: bool = False,
) -> RunResult:
    """Train `spec` to its end, or go on where an earlier call stopped; a finished run is only read.

    Args:
        spec: the experiment; equal data, model and train sections are the same run.
        runs: folder of runs; None takes STARLAB_RUNS, else ./runs. All nodes must see it under this path.
        fresh: set an earlier run of this spec aside and start anew.
        say: is given lines for the user.
        live: show a view that changes in place, on a terminal, instead of a line per epoch.

    Raises:
        DataError: the data set cannot be used.
        UserError: the pre-trained weights are not there, or the cluster cannot hold the run.
        RunTakenError: another process trains this run.
        RunFailedError: training did not finish; what it reached is kept and the same call goes on from there.
        RunPreemptedError: the same, because it was asked to end.
    """
    root = runs_folder(runs)
    check_weights(spec)
    source, parts = open_data(spec, root, say)
    for abandoned in close_abandoned_everywhere(root):
        say(f"closed   {abandoned.path.name}: its driver was gone")
    cluster = join_cluster(spec, 1, say)
    return run_training(spec, source, parts, root, cluster, fresh=fresh, say=say, live=live)


def check_weights(spec: Spec) -> None:
    """Look for the pre-trained weights before anything is started for them.

    Raises:
        UserError: they are not there, or damaged; says what to download and where to put it.
    """
    if spec.model.weights == "kinetics400":
        try:
            kinetics400_file(spec.model.weights_path)
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"model.{error}") from None


def join_cluster(spec: Spec, runs_at_once: int, say: Callable[[str], None]) -> Cluster:
    """Join the cluster, or start one on this machine; one that grows by itself is waited for until it has room."""
    cluster = connect()
    if cluster.local:
        return cluster
    wanted = spec.resources
    return wait_for_room(
        wanted.workers * runs_at_once,
        cpus_per_worker=wanted.cpus_per_worker or 1.0,
        gpus_per_worker=wanted.gpus_per_worker,
        accelerator=wanted.accelerator if wanted.gpus_per_worker else None,
        say=say,
    )


def open_data(spec: Spec, runs: Path, say: Callable[[str], None]) -> tuple[ClipSource, Parts]:
    """The data set of a spec and its parts; says what was left out.

    Raises:
        DataError: the data set cannot be used, or a part that the spec needs is empty.
    """
    source = open_source(spec.data, runs, say)
    parts = split_rows(source.clips, spec.data.validation_fraction, spec.data.split_seed)
    parts = limit_parts(parts, source.clips, spec.data.limit, spec.data.split_seed)
    for name in ("train", "test"):
        if not getattr(parts, name):
            raise DataError(f"{spec.data.dataset} has no {name} clip among its {len(source.clips)} readable ones")
    say(
        f"data     {spec.data.dataset}: {len(parts.train)} train, {len(parts.validation)} validation, {len(parts.test)} test "
        f"clips of {len(source.classes)} classes; fingerprint {source.fingerprint[:12]}"
    )
    if source.skipped:
        say(f"skipped  {len(source.skipped)} clips that cannot be used:")
        for skipped in source.skipped[:5]:
            say(f"         {skipped.clip_id}: {skipped.reason}")
        if len(source.skipped) > 5:
            say(f"         and {len(source.skipped) - 5} more, all in the run's skipped.json")
    return source, parts


def run_training(
    spec: Spec,
    source: ClipSource,
    parts: Parts,
    runs: Path,
    cluster: Cluster,
    *,
    fresh: bool = False,
    say: Callable[[str], None] = lambda _: None,
    callbacks: tuple[UserCallback, ...] = (),
    parent: RunFolder | None = None,
    share: float = 1.0,
    look_at_test: bool = True,
    live: bool = False,
) -> RunResult:
    """`train` with the data open and the cluster joined; a trial of a search is one of these.

    Args:
        callbacks: Ray Train callbacks, e.g. one that carries metrics to Tune.
        parent: the search this run belongs to.
        share: the part of the cluster that this run may take.
        look_at_test: False ends with the validation part; a later call with True adds the look at the test part.
    """
    began = datetime.now(UTC)
    place = runs if parent is None else parent.path / "trials"
    folder = RunFolder(place / spec.run_id(source.fingerprint))
    if fresh and folder.path.exists():
        with Lease.claim(folder.path):  # not while somebody trains it
            kept = folder.set_aside()
        say(f"fresh    the earlier run is kept as {kept}")
    earlier = folder.read_json("result.json")
    was_complete = bool(earlier) and ("test" in earlier or not look_at_test)
    allotment = allot(spec, cluster, share)
    with Lease.claim(folder.path) as lease:
        open_run(folder, spec, source, runs, parent)
        resumed = not was_complete and bool(folder.stored_checkpoints.folders())
        state = "complete already" if was_complete else "goes on from its newest checkpoint" if resumed else "is new"
        say(f"run      {folder.path.name} {state}; {folder.path}")
        with Sender(folder, tracking_uri(spec.tracking.uri, runs)) as sender:
            try:
                if not was_complete:
                    job = TrainJob(spec.without_password(), source, parts, folder, allotment.limits, look_at_test, lease.fence)
                    with (
                        SystemMetrics(folder.path),
                        Cockpit(job) if live else Progress(job, say),
                        EventReader(folder.path, say),
                        heed_sigterm(folder, spec.resources.grace_seconds),
                    ):
                        _fit(job, allotment, callbacks)
            except BaseException as error:
                if lease.holds():
                    if isinstance(error, RunPreemptedError):
                        close_run(folder, "KILLED", {"starlab.preempted": str(error)})
                    else:
                        close_run(folder, "FAILED")
                raise
            from starlab.platform.reports.figures import (
                write_artifacts,
            )  # not before it is needed: matplotlib takes seconds to import

            write_artifacts(folder)
            if look_at_test:
                write_best_model(folder)
            close_run(folder, "FINISHED")
    return _result(folder, (datetime.now(UTC) - began).total_seconds(), was_complete, sender.problem)


def _fit(job: TrainJob, allotment: Allotment, callbacks: tuple[UserCallback, ...]) -> None:
    """Train to the end, over nodes that go away; a run that has nowhere to go on, or is asked to end, ends as preempted."""
    folder, resources = job.folder, job.spec.resources
    (folder.path / "stopped.json").unlink(missing_ok=True)
    while True:
        attempt(job, allotment, callbacks)
        preempted = folder.read_json(preemption.DONE)
        if not preempted:
            break
        asked = (folder.path / preemption.REQUEST).exists()
        wanted = resources.workers * allotment.cpus_per_worker, float(resources.workers * resources.gpus_per_worker)
        if asked or not preemption.room_elsewhere(*wanted):
            raise RunPreemptedError(
                f"run {folder.path.name} ended at step {preempted['step']} because {preempted['reason']}; "
                f"{preempted['kept']} and the same command goes on from there",
                by=folder.read_json(preemption.REQUEST).get("signal", signal.SIGTERM),
            )
        (folder.path / preemption.DONE).unlink()
    stopped = folder.read_json("stopped.json")
    if stopped:
        raise RunFailedError(f"run {folder.path.name} stopped at step {stopped['step']}: {stopped['reason']}")
    check_fence(folder.path, job.fence)
    if not folder.read_json("result.json"):
        raise RunFailedError(
            f"run {folder.path.name} ended without a result: the workers do not see {folder.path}; "
            "the runs folder (--runs, STARLAB_RUNS) must be on storage that all nodes share"
        )


def open_run(
    folder: RunFolder,
    spec: Spec,
    source: ClipSource,
    runs: Path,
    parent: RunFolder | None,
    resolved: dict[str, Any] | None = None,
) -> None:
    """Write down what is about to run, or that it goes on; `resolved` is what to store as its spec, if not `spec` itself."""
    earlier = folder.read_json("run.json")
    if not earlier:
        folder.write_json("spec.json", resolved or spec.to_dict())
        folder.write_json("skipped.json", {clip.clip_id: clip.reason for clip in source.skipped})
    tags = {
        **provenance(),
        "starlab.spec_hash": folder.path.name.rpartition("-")[2],
        "starlab.data_fingerprint": source.fingerprint,
        "starlab.selected_by": "test (optimistic)" if spec.data.select == "test" else "validation",
    }
    key = earlier.get("key") or uuid.uuid4().hex
    checkpoints = folder.place_checkpoints(spec.resources.checkpoints, key)
    if earlier and checkpoints not in (None, earlier["checkpoints"]):
        raise UserError(
            f"run {folder.path.name} keeps its checkpoints in {earlier['checkpoints'] or folder.checkpoints}, and "
            f"resources.checkpoints is {spec.resources.checkpoints!r}; leave it out to go on, or start anew with --fresh"
        )
    fixed = {
        "key": key,
        "created": datetime.now(UTC).isoformat(),
        "tags": tags,
        "checkpoints": checkpoints,
    }
    place = {
        "run_id": folder.path.name,
        "experiment": spec.name,
        "mlflow_experiment": spec.tracking.experiment or spec.name,
        "tracking_uri": without_password(tracking_uri(spec.tracking.uri, runs)),
        "runs": str(runs),
        "parent": str(parent.path) if parent else None,
        "status": "RUNNING",
        "driver": this_process(),
    }
    folder.write_json("run.json", {**fixed, **earlier, **place})


def close_run(folder: RunFolder, status: str, tags: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write down how it ended: FINISHED, FAILED or KILLED (preempted), MLflow's words, and what more to tag it with."""
    run = folder.read_json("run.json")
    early = {"starlab.ended_early": "true"} if folder.ended_early else {}
    if (looks := folder.looks_at_test()) > 1:  # by hand, before the run had ended
        early["starlab.test_looks"] = str(looks)
    folder.write_json("run.json", {**run, "status": status, "tags": {**run["tags"], **early, **tags}})


def _result(folder: RunFolder, seconds: float, was_complete: bool, problem: str | None) -> RunResult:
    result: dict[str, Any] = folder.read_json("result.json")
    metrics = {f"{part}/{name}": value for part in ("val", "test") for name, value in result.get(part, {}).items()}
    rows = enumerate(zip(result["classes"], result.get("confusion", []), strict=False))
    per_class = {name: row[index] / sum(row) for index, (name, row) in rows if sum(row)}
    return RunResult(
        run_id=folder.path.name,
        folder=folder.path,
        metrics=metrics,
        per_class=per_class,
        seconds=seconds,
        selected_by=result["selected_by"],
        was_complete=was_complete,
        tracking_uri=folder.read_json("run.json")["tracking_uri"],
        mlflow_run_id=folder.read_json("mlflow.json").get("run_id"),
        tracking_problem=problem,
        replayed_differently=count_differences(folder.path / FILE),
    )
