"""The driver's side of a training: from a spec to a trained, evaluated and recorded run.

The driver opens the data, places the workers, follows the journal and updates MLflow. `worker/train_loop.py` trains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ray.train import UserCallback

from starlab.experiments.spec import Spec
from starlab.pipelines.clip import ClipSource
from starlab.pipelines.splits import Parts
from starlab.platform.attempt import train_to_end
from starlab.platform.cluster.connect import Cluster
from starlab.platform.cluster.placement import Placement, place
from starlab.platform.extension import extended_spec, extension_lines, seed_from
from starlab.platform.preemption import RunPreemptedError, end_on_signal
from starlab.platform.preflight import check_spec, is_complete, is_finished, join_cluster, open_data, open_data_while_ray_starts
from starlab.platform.runs.events import EventPrinter
from starlab.platform.runs.folder import RunFolder, find_run, runs_folder
from starlab.platform.runs.journal import FILE, count_differences
from starlab.platform.runs.lease import Lease
from starlab.platform.runs.lifecycle import close_run, open_run
from starlab.platform.runs.metric_names import TEST, VAL
from starlab.platform.runs.records import MlflowState, Result, RunInfo
from starlab.platform.runs.system_metrics import SystemMetrics
from starlab.platform.serving.initial_weights import initial_lines, place_initial_weights, with_digest
from starlab.platform.serving.registry import write_best_model
from starlab.platform.tracking.abandoned import close_abandoned_everywhere
from starlab.platform.tracking.live_view import LiveView
from starlab.platform.tracking.progress import Progress
from starlab.platform.tracking.sender import Sender
from starlab.platform.worker.tasks import TrainTask

_SENDER_PATIENCE_SECONDS = 30.0
"""How long a run that has no point yet may be unknown to MLflow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRequest:
    """A training with its data open and its cluster connected, such as a single run or a trial of a search."""

    spec: Spec
    source: ClipSource
    parts: Parts
    runs: Path
    """Folder of runs."""
    cluster: Cluster | None
    """None for a run that is finished already: it is only read."""
    share: float = 1.0
    """Fraction of the cluster that this run may use."""
    parent: RunFolder | None = None
    """Search that the run belongs to."""
    is_trial: bool = False
    """Skip the test part, and end early if asked to. A later request without this flag evaluates the test part."""
    queues: bool = False
    """Wait as long as others use the room that the workers need. Otherwise only `resources.wait_for_room_seconds`."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags of the run besides those that every run has."""
    fresh: bool = False
    """Set aside an earlier run of this spec and start again."""
    extends: RunFolder | None = None
    """Finished run that this one trains longer."""
    callbacks: tuple[UserCallback, ...] = ()
    """Callbacks for Ray Train, for example one that reports metrics to Ray Tune."""

    @property
    def folder(self) -> RunFolder:
        """Folder of the run."""
        place = self.runs if self.parent is None else self.parent.path / "trials"
        return RunFolder(place / self.spec.run_id(self.source.fingerprint))


@dataclass(frozen=True, slots=True)
class RunResult:
    """Result of a finished run."""

    run_id: str
    folder: Path
    metrics: dict[str, float]
    """"val/top1", "test/top1", … in [0, 1]; losses in nats."""
    per_class: dict[str, float]
    """Recall by class on the test part, in [0, 1]; empty if it was not evaluated."""
    seconds: float
    """Duration of this call."""
    was_complete: bool
    """Whether the run was finished before this call, so that nothing was trained."""
    selected_by: str
    """Part that selected the best checkpoint: "validation" or "test"; "last" if the weights of the last step count."""
    tracking_uri: str
    mlflow_run_id: str | None
    """Id of the MLflow run; None if MLflow was not reached yet."""
    tracking_problem: str | None
    """Why MLflow is not up to date; None if it is."""
    replayed_differently: int
    """Number of points of the curve whose value differed when a restart computed them again; 0 if resume is exact."""
    learned_actions: bool
    """False if `train.action_loss_weight` is 0: its accuracies are those of guessing."""


def train(
    spec: Spec,
    *,
    runs: str | Path | None = None,
    fresh: bool = False,
    say: Callable[[str], None] = lambda _: None,
    live: bool = False,
    extend: str | None = None,
    opened: tuple[ClipSource, Parts] | None = None,
) -> RunResult:
    """Train `spec` to its end, or continue where an earlier call stopped. The result of a finished run is only read.

    Args:
        spec: The experiment. Specs with equal data, model and train sections are the same run.
        runs: Folder of runs; None uses STARLAB_RUNS, else ./runs. All nodes must see it under this path.
        fresh: Set aside an earlier run of this spec and start again.
        say: Called with each line of output for the user.
        live: Show a view that is updated in place, on a terminal, instead of a line per epoch.
        extend: Name of a finished run to train longer under the schedule of `spec`; see extension.py.
        opened: The data of `spec` and their parts from `preflight.open_ahead`, which has checked `spec`.

    Raises:
        DataError: The data set cannot be used.
        UserError: The pre-trained weights are missing, or the run does not fit on the cluster.
        RunTakenError: Another process is training this run.
        RunFailedError: Training did not finish. Its progress is kept and the same call continues from there.
        RunPreemptedError: Training was asked to end. Its progress is kept and the same call continues from there.
    """
    root = runs_folder(runs)
    if opened is None:
        check_spec(spec)
    spec = with_digest(spec, root)
    finished = find_run(root, extend, say) if extend is not None else None
    if finished is not None:
        spec = extended_spec(spec, finished)
    if opened is None:
        needs_ray = fresh or not is_finished(spec, root)
        opened = (open_data_while_ray_starts if needs_ray else open_data)(spec, root, say)
    source, parts = opened
    for line in extension_lines(spec, finished, source, len(parts.train)) if finished is not None else ():
        say(line)
    for abandoned in close_abandoned_everywhere(root):
        say(f"closed   {abandoned.path.name}: its driver had died")
    folder = RunFolder(root / spec.run_id(source.fingerprint))
    with Lease.claim(folder.path, wait=say):  # refuse a second process now, not when the cluster has room
        cluster = None if not fresh and is_complete(folder.result) else join_cluster(spec, 1, say)
    request = RunRequest(
        spec=spec,
        source=source,
        parts=parts,
        runs=root,
        cluster=cluster,
        extends=finished,
        tags={"starlab.extends": finished.path.name} if finished is not None else {},
        fresh=fresh,
    )
    return run_training(request, say=say, live=live)


def run_training(request: RunRequest, *, say: Callable[[str], None] = lambda _: None, live: bool = False) -> RunResult:
    """Train as `train` does, with the data already open and the cluster connected."""
    began = datetime.now(UTC)
    spec, folder = request.spec, request.folder
    if request.fresh and (folder.path / RunInfo.FILE).exists():
        with Lease.claim(folder.path):  # fails while another process trains the run
            kept = folder.set_aside()
        say(f"fresh    the earlier run is kept as {kept}")
    was_complete = is_complete(folder.result, is_trial=request.is_trial)
    placement = None if was_complete or request.cluster is None else place(spec, request.cluster, request.share)
    # An ablation does not wait for a cell: it trains others in the meantime.
    with Lease.claim(folder.path, wait=None if request.queues else say) as lease:
        open_run(folder, spec, request.source, request.runs, request.parent, tags=request.tags)
        resumed = not was_complete and bool(folder.stored_checkpoints.folders())
        state = "complete already" if was_complete else "continues from its newest checkpoint" if resumed else "is new"
        say(f"run      {folder.path.name} {state}; {folder.path}")
        if initial := place_initial_weights(folder, spec, request.runs):
            for line in initial_lines(initial, spec.train.init_lr_scale):
                say(line)
        if request.extends is not None and state == "is new":
            seed_from(request.extends, folder, spec)
        with Sender(folder, spec.tracking.address(request.runs), patience_seconds=_SENDER_PATIENCE_SECONDS) as sender:
            try:
                if placement is not None:
                    _train(request, placement, lease, say, live)
            except BaseException as error:
                if lease.holds():
                    if isinstance(error, RunPreemptedError):
                        close_run(folder, "KILLED", {"starlab.preempted": str(error)})
                    else:
                        close_run(folder, "FAILED")
                raise
            from starlab.platform.reports.figures import write_artifacts  # matplotlib takes seconds to import

            write_artifacts(folder)
            if calibration := folder.require(Result).calibration:
                say(calibration.line())
            if not request.is_trial:
                write_best_model(folder)
            close_run(folder, "FINISHED")
    seconds = (datetime.now(UTC) - began).total_seconds()
    return _result(folder, spec, seconds, was_complete, sender.problem)


def _train(request: RunRequest, placement: Placement, lease: Lease, say: Callable[[str], None], live: bool) -> None:
    spec, folder = request.spec, request.folder
    task = TrainTask(
        spec.without_password(),
        request.source,
        request.parts,
        folder,
        placement.limits,
        is_trial=request.is_trial,
        queues=request.queues or request.is_trial,
        fence=lease.fence,
    )
    steps, epochs = task.steps.total_steps, float(spec.train.trained_epochs)
    with (
        SystemMetrics(folder.path),
        LiveView(folder.path, steps, epochs) if live else Progress(folder.path, steps, epochs, say),
        EventPrinter(folder.path, say),
        end_on_signal(folder, spec.resources.grace_seconds),
    ):
        train_to_end(task, placement, request.callbacks, lease.advance)


def _result(folder: RunFolder, spec: Spec, seconds: float, was_complete: bool, problem: str | None) -> RunResult:
    result, tracked = folder.require(Result), folder.read(MlflowState)
    metrics = {f"{VAL}{name}": value for name, value in result.val.items()}
    metrics |= {f"{TEST}{name}": value for name, value in (result.test or {}).items()}
    rows = enumerate(zip(result.classes, result.confusion or [], strict=False))
    per_class = {name: row[index] / sum(row) for index, (name, row) in rows if sum(row)}
    return RunResult(
        run_id=folder.path.name,
        folder=folder.path,
        metrics=metrics,
        per_class=per_class,
        seconds=seconds,
        selected_by=result.selected_by,
        was_complete=was_complete,
        tracking_uri=folder.info.tracking_uri,
        mlflow_run_id=tracked.run_id if tracked else None,
        tracking_problem=problem,
        replayed_differently=count_differences(folder.path / FILE),
        learned_actions=spec.train.learns_actions,
    )
