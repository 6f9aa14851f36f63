"""From a spec to a trained, evaluated, recorded run: the driver's side of a training.

The driver opens the data, places the workers, follows the journal and keeps MLflow up to date; `worker/train_loop.py` trains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ray.train import UserCallback

from starlab.experiments.spec import Spec
from starlab.pipelines.clip import ClipSource
from starlab.pipelines.splits import Parts
from starlab.platform.attempt import train_to_end
from starlab.platform.cluster.connect import Cluster
from starlab.platform.cluster.placement import Placement, place
from starlab.platform.preemption import RunPreemptedError, end_on_signal
from starlab.platform.preflight import check_spec, join_cluster, open_data
from starlab.platform.runs.events import EventPrinter
from starlab.platform.runs.folder import RunFolder, runs_folder
from starlab.platform.runs.journal import FILE, count_differences
from starlab.platform.runs.lease import Lease
from starlab.platform.runs.lifecycle import close_run, open_run
from starlab.platform.runs.metric_names import TEST, VAL
from starlab.platform.runs.records import MlflowState, Result
from starlab.platform.runs.system_metrics import SystemMetrics
from starlab.platform.serving.registry import write_best_model
from starlab.platform.tracking.abandoned import close_abandoned_everywhere
from starlab.platform.tracking.live_view import LiveView
from starlab.platform.tracking.progress import Progress
from starlab.platform.tracking.sender import Sender
from starlab.platform.worker.tasks import TrainTask


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRequest:
    """A training with its data open and its cluster joined; a trial of a search is one of these."""

    spec: Spec
    source: ClipSource
    parts: Parts
    runs: Path
    """The folder of runs."""
    cluster: Cluster
    share: float = 1.0
    """The part of the cluster that this run may take."""
    parent: RunFolder | None = None
    """The search that the run belongs to."""
    is_trial: bool = False
    """End with the selection part, early if asked to; a later request without it adds the evaluation of the test part."""
    fresh: bool = False
    """Set an earlier run of this spec aside and start again."""
    callbacks: tuple[UserCallback, ...] = ()
    """Ray Train's, for example one that carries metrics to Tune."""

    @property
    def folder(self) -> RunFolder:
        """Where the run is kept."""
        place = self.runs if self.parent is None else self.parent.path / "trials"
        return RunFolder(place / self.spec.run_id(self.source.fingerprint))


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run."""

    run_id: str
    folder: Path
    metrics: dict[str, float]
    """"val/top1", "test/top1", … in [0, 1]; losses in nats."""
    per_class: dict[str, float]
    """Recall on the test part, in [0, 1]; empty where it was not evaluated."""
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
    """Points of the curve that were computed again after a restart with another value; 0 where resume is exact."""


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
        fresh: set an earlier run of this spec aside and start again.
        say: gets lines for the user.
        live: show a view that changes in place, on a terminal, instead of a line per epoch.

    Raises:
        DataError: the data set cannot be used.
        UserError: the pre-trained weights are not there, or the cluster cannot hold the run.
        RunTakenError: another process trains this run.
        RunFailedError: training did not finish; what it reached is kept and the same call goes on from there.
        RunPreemptedError: the same, because it was asked to end.
    """
    root = runs_folder(runs)
    check_spec(spec)
    source, parts = open_data(spec, root, say)
    for abandoned in close_abandoned_everywhere(root):
        say(f"closed   {abandoned.path.name}: its driver was gone")
    with Lease.claim(root / spec.run_id(source.fingerprint)):  # refuse a second process now, not when the cluster has room
        cluster = join_cluster(spec, 1, say)
    request = RunRequest(spec=spec, source=source, parts=parts, runs=root, cluster=cluster, fresh=fresh)
    return run_training(request, say=say, live=live)


def run_training(request: RunRequest, *, say: Callable[[str], None] = lambda _: None, live: bool = False) -> RunResult:
    """Train as `train` does, once the data are open and the cluster is joined."""
    began = datetime.now(UTC)
    spec, folder = request.spec, request.folder
    if request.fresh and folder.path.exists():
        with Lease.claim(folder.path):  # not while another process trains it
            kept = folder.set_aside()
        say(f"fresh    the earlier run is kept as {kept}")
    was_complete = _is_complete(folder.result, request)
    placement = place(spec, request.cluster, request.share)
    with Lease.claim(folder.path) as lease:
        open_run(folder, spec, request.source, request.runs, request.parent)
        resumed = not was_complete and bool(folder.stored_checkpoints.folders())
        state = "complete already" if was_complete else "goes on from its newest checkpoint" if resumed else "is new"
        say(f"run      {folder.path.name} {state}; {folder.path}")
        with Sender(folder, spec.tracking.address(request.runs)) as sender:
            try:
                if not was_complete:
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
            if not request.is_trial:
                write_best_model(folder)
            close_run(folder, "FINISHED")
    return _result(folder, (datetime.now(UTC) - began).total_seconds(), was_complete, sender.problem)


def _is_complete(result: Result | None, request: RunRequest) -> bool:
    return result is not None and (result.test is not None or request.is_trial)


def _train(request: RunRequest, placement: Placement, lease: Lease, say: Callable[[str], None], live: bool) -> None:
    spec, folder = request.spec, request.folder
    task = TrainTask(
        spec.without_password(),
        request.source,
        request.parts,
        folder,
        placement.limits,
        is_trial=request.is_trial,
        fence=lease.fence,
    )
    steps, epochs = task.steps.total_steps, float(spec.train.epochs)
    with (
        SystemMetrics(folder.path),
        LiveView(folder.path, steps, epochs) if live else Progress(folder.path, steps, epochs, say),
        EventPrinter(folder.path, say),
        end_on_signal(folder, spec.resources.grace_seconds),
    ):
        train_to_end(task, placement, request.callbacks)


def _result(folder: RunFolder, seconds: float, was_complete: bool, problem: str | None) -> RunResult:
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
    )
