"""Runs a group of Ray Train workers: a training, also over nodes that go away, or an evaluation."""

from __future__ import annotations

import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError
from ray.train import FailureConfig, LoggingConfig, RunConfig, TrainingFailedError, UserCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from starlab.platform.cluster.connect import connect
from starlab.platform.cluster.controllers import ReusingTrainer
from starlab.platform.cluster.failures import explain, explain_process, is_lack_of_room
from starlab.platform.cluster.network import NodeAddressTorchConfig
from starlab.platform.cluster.placement import Placement, demand_of, place, worker_group
from starlab.platform.cluster.room import NoRoomError, could_hold, wait_for_room
from starlab.platform.cluster.spare_room import count_room
from starlab.platform.errors import RunFailedError
from starlab.platform.group_watch import watch_nodes, watch_room
from starlab.platform.preemption import RunPreemptedError
from starlab.platform.runs import events
from starlab.platform.runs.checkpoint import checkpoint_steps
from starlab.platform.runs.end_request import clear_request, read_request
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.lease import check_fence
from starlab.platform.runs.records import Outcome
from starlab.platform.worker.evaluate import evaluation_loop
from starlab.platform.worker.tasks import EvaluationTask, TrainTask
from starlab.platform.worker.train_loop import train_loop


def train_to_end(
    task: TrainTask,
    placement: Placement,
    callbacks: tuple[UserCallback, ...],
    next_fence: Callable[[], int] | None = None,
) -> None:
    """Train to the end, on other nodes if some go away. Workers that fail start again from the newest checkpoint.

    Args:
        task: The training.
        placement: Its share of the cluster.
        callbacks: Callbacks for Ray Train.
        next_fence: Returns a new fencing number for the workers that follow on failed ones, which may still be alive on a node
            that was cut off. None keeps the task's.

    Raises:
        RunFailedError: the workers failed more than `resources.max_failures` times without a new checkpoint, the cluster had
            no room for them within `resources.wait_for_room_seconds`, or the run stopped itself.
        RunPreemptedError: the run was asked to end, or this machine goes away.
        LeaseLostError: another process has taken the run over.
    """
    with watch_nodes(task):
        _train_to_end(task, placement, callbacks, next_fence)


def _train_to_end(
    task: TrainTask,
    placement: Placement,
    callbacks: tuple[UserCallback, ...],
    next_fence: Callable[[], int] | None,
) -> None:
    folder, resources = task.folder, task.spec.resources
    failures, reached, left, first = 0, _newest_step(folder), None, True
    while True:
        folder.remove(Outcome)
        _forget_resize(folder)
        try:
            _run_workers(train_loop, task, placement, callbacks, first=first)
        except _NoRoomForWorkersError as error:
            if left is None:
                raise
            raise RunPreemptedError(
                f"run {folder.path.name} ended at step {left.step} because {left.reason}; {left.kept} and the same command "
                f"goes on from there. {error.cause}"
            ) from None
        except _WorkersFailedError as error:
            newest, first = _newest_step(folder), False
            failures, reached = (1, newest) if newest > reached else (failures + 1, reached)
            _end_if_asked(folder)
            if failures > resources.max_failures:
                raise
            count = f"{failures} of {resources.max_failures} failures without a new checkpoint"
            task = replace(task, fence=next_fence()) if next_fence else task
            events.record(folder.path, "restarted", f"{error.cause}; the workers start again ({count})")
            continue
        outcome, first = folder.read(Outcome), False
        if outcome is None or outcome.kind != "preempted":
            break
        request = read_request(folder)
        if request and request.resize:
            continue
        left = outcome
        if request or (connect().local and not could_hold(demand_of(task.spec, placement))):
            raise RunPreemptedError(
                f"run {folder.path.name} ended at step {outcome.step} because {outcome.reason}; {outcome.kept} and the same "
                "command goes on from there",
                by=request.signal if request else signal.SIGTERM,
            )
    if outcome and outcome.kind == "stopped":
        raise RunFailedError(f"run {folder.path.name} stopped at step {outcome.step}: {outcome.reason}")
    check_fence(folder.path, task.fence)
    if outcome is None or folder.result is None:
        raise RunFailedError(
            f"run {folder.path.name} ended without a result: the workers do not see {folder.path}; "
            "the runs folder (--runs, STARLAB_RUNS) must be on storage that all nodes share"
        )


def evaluate_on_workers(task: EvaluationTask, placement: Placement, say: Callable[[str], None] = lambda _: None) -> None:
    """Predict the clips of an evaluation; rank 0 writes `predictions.parquet` to the task's target folder.

    Args:
        say: Called with a line for the user while the cluster has no room for the workers.

    Raises:
        RunFailedError: a worker failed, or the cluster had no room; names the cause.
    """
    _run_workers(evaluation_loop, task, placement, say=say)


class _WorkersFailedError(RunFailedError):
    """A worker failed, or there was no room for it; `cause` says why in one line."""

    def __init__(self, message: str, cause: str) -> None:
        super().__init__(f"{message}.\n{cause}")
        self.cause = cause


class _NoRoomForWorkersError(_WorkersFailedError):
    """The cluster had no room for the workers within the time allowed."""


def _run_workers(
    loop: Callable[[dict[str, Any]], None],
    task: TrainTask | EvaluationTask,
    placement: Placement,
    callbacks: tuple[UserCallback, ...] = (),
    say: Callable[[str], None] = lambda _: None,
    *,
    first: bool = True,
) -> None:
    """Run `loop` once on a group of workers. Waits while the cluster has no room for them, and says so.

    Unless this is the `first` group of a run, a node may be gone, also one that Ray still counts. So it waits for room first.
    """
    what, again = f"run {task.folder.path.name} failed", "it goes on from its newest checkpoint when started again"
    if isinstance(task, EvaluationTask):
        what, again = f"the evaluation of {task.folder.path.name} failed", "the run itself is as it was"
    has_room, deadline = first, None
    while True:
        try:
            if not has_room:
                deadline = deadline or time.monotonic() + task.spec.resources.wait_for_room_seconds
                _wait_for_room(task, placement, deadline, say)
            sized = _size(task, placement)
            with watch_room(task, sized) if isinstance(task, TrainTask) else nullcontext():
                _fit(loop, replace(task, limits=sized.limits), sized, callbacks)
        except NoRoomError as error:
            raise _NoRoomForWorkersError(f"{what}; {again}", str(error)) from None
        except TrainingFailedError as error:
            if not is_lack_of_room(error):
                raise _WorkersFailedError(f"{what}; {again}", explain(error)) from error
            has_room = False
        except RayActorError as error:
            raise _WorkersFailedError(f"{what}; {again}", f"Ray Train's controller: {explain_process(error)}") from error
        else:
            return


def _size(task: TrainTask | EvaluationTask, placement: Placement) -> Placement:
    """The placement of the next group. An elastic run takes as many workers as there is room for."""
    resources = task.spec.resources
    if isinstance(resources.workers, int):
        return placement
    most = place(task.spec, connect(), placement.share)
    there = count_room(demand_of(task.spec, most), most.workers or resources.max_workers)
    workers = max(there, resources.min_workers)
    if isinstance(task, TrainTask):
        line = f"{workers} of {resources.max_workers} start (resources.workers.max; {resources.min_workers} at least)"
        events.record(task.folder.path, "workers", line)
    # Of fewer workers each could have more CPUs, which need not be on one node.
    return replace(place(task.spec, connect(), placement.share, workers), cpus_per_worker=most.cpus_per_worker)


def _fit(
    loop: Callable[[dict[str, Any]], None],
    task: TrainTask | EvaluationTask,
    placement: Placement,
    callbacks: tuple[UserCallback, ...],
) -> None:
    is_training = isinstance(task, TrainTask)
    trainer = _Trainer if is_training else DataParallelTrainer  # Ctrl-C in an evaluation is Ray's, which aborts the workers
    with _ray_folder(task.folder, "train" if is_training else "evaluate") as ray_folder:
        trainer(
            loop,
            train_loop_config={"task": task},
            backend_config=NodeAddressTorchConfig(timeout_s=task.spec.resources.collective_seconds),
            scaling_config=worker_group(task.spec, placement),
            run_config=RunConfig(
                name=ray_folder.name,
                storage_path=str(ray_folder.parent),
                # Restarts are counted here: Ray Train counts failures over its whole life, not those without progress.
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
                logging_config=LoggingConfig(log_level="WARNING"),
                callbacks=list(callbacks),
            ),
        ).fit()


def _wait_for_room(
    task: TrainTask | EvaluationTask, placement: Placement, deadline: float, tell: Callable[[str], None]
) -> None:
    """Wait until the workers fit. For a task that queues, time in which others use the room does not count."""
    folder, said = task.folder, set[str]()

    def say(line: str) -> None:
        if line not in said:
            said.add(line)
            events.record(folder.path, "waiting", line)
            tell(line)

    queues = isinstance(task, TrainTask) and task.queues
    left = task.spec.resources.wait_for_room_seconds if queues else max(0.0, deadline - time.monotonic())
    wait_for_room(
        demand_of(task.spec, placement),
        timeout_seconds=left,
        say=say,
        queue=queues,
        check=lambda: _end_if_asked(folder) if isinstance(task, TrainTask) else None,
    )


def _end_if_asked(folder: RunFolder) -> None:
    """Raise `RunPreemptedError` if the run was asked to end while no worker was there to see it."""
    if (request := read_request(folder)) and not request.resize:
        raise RunPreemptedError(
            f"run {folder.path.name} ended because {request.reason}; the same command goes on from its newest checkpoint",
            by=request.signal,
        )


def _forget_resize(folder: RunFolder) -> None:
    """Remove the driver's own request for a larger group, which the next group would follow at once."""
    if (request := read_request(folder)) and request.resize:
        clear_request(folder)


def _newest_step(folder: RunFolder) -> int:
    return max(checkpoint_steps(folder.stored_checkpoints), default=-1)


class _Trainer(ReusingTrainer):
    """Leaves Ctrl-C to preemption.py, which asks for a checkpoint; Ray's own handler would abort the workers."""

    def _register_sigint_handler(self, controller: object) -> None:
        pass


@contextmanager
def _ray_folder(folder: RunFolder, kind: str) -> Iterator[Path]:
    """A new folder for Ray's own records of one group. Ray would resume from a folder that it has used before."""
    path = folder.path / "ray" / f"{kind}-{uuid.uuid4().hex[:8]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "train":  # only one process trains a run, so these are those of killed drivers
        for left in path.parent.glob("train-*"):
            shutil.rmtree(left, ignore_errors=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):  # another group of the run still uses it
            path.parent.rmdir()
