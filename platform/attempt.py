"""Runs a group of Ray Train workers: a training, also over nodes that go away, or an evaluation."""

from __future__ import annotations

import math
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, LoggingConfig, RunConfig, TrainingFailedError, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from starlab.platform.cluster.placement import Placement, worker_group
from starlab.platform.errors import RunFailedError
from starlab.platform.preemption import RunPreemptedError, room_elsewhere
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.lease import check_fence
from starlab.platform.runs.records import EndRequest, Outcome
from starlab.platform.worker.evaluate import evaluation_loop
from starlab.platform.worker.tasks import EvaluationTask, TrainTask
from starlab.platform.worker.train_loop import train_loop


def train_to_end(task: TrainTask, placement: Placement, callbacks: tuple[UserCallback, ...]) -> None:
    """Train to the end, on other nodes if some go away. Workers that fail start again from the newest checkpoint.

    Raises:
        RunFailedError: a worker failed more than `resources.max_failures` times, or the run stopped itself.
        RunPreemptedError: the run was asked to end, or its nodes go away and the others have no room.
        LeaseLostError: another process has taken the run over.
    """
    folder, resources = task.folder, task.spec.resources
    while True:
        folder.remove(Outcome)
        _run_workers(train_loop, task, placement, callbacks, max_failures=resources.max_failures)
        outcome = folder.read(Outcome)
        if outcome is None or outcome.kind != "preempted":
            break
        request = folder.read(EndRequest)
        wanted = resources.workers * placement.cpus_per_worker, float(resources.workers * resources.gpus_per_worker)
        if request or not room_elsewhere(*wanted):
            raise RunPreemptedError(
                f"run {folder.path.name} ended at step {outcome.step} because {outcome.reason}; {outcome.kept} and the same "
                "command goes on from there",
                by=request.signal if request else signal.SIGTERM,
            )
    if outcome and outcome.kind == "stopped":
        raise RunFailedError(f"run {folder.path.name} stopped at step {outcome.step}: {outcome.reason}")
    check_fence(folder.path, task.fence)
    if folder.result is None:
        raise RunFailedError(
            f"run {folder.path.name} ended without a result: the workers do not see {folder.path}; "
            "the runs folder (--runs, STARLAB_RUNS) must be on storage that all nodes share"
        )


def evaluate_on_workers(task: EvaluationTask, placement: Placement) -> None:
    """Predict the clips of an evaluation; rank 0 writes `predictions.parquet` to the task's target folder.

    Raises:
        RunFailedError: a worker failed; names the failure.
    """
    _run_workers(evaluation_loop, task, placement)


def _run_workers(
    loop: Callable[[dict[str, Any]], None],
    task: TrainTask | EvaluationTask,
    placement: Placement,
    callbacks: tuple[UserCallback, ...] = (),
    max_failures: int = 0,
) -> None:
    """Run `loop` on a group of workers, which Ray starts again up to `max_failures` times."""
    resources = task.spec.resources
    with _ray_folder(task.folder) as ray_folder:
        trainer = _Trainer(
            loop,
            train_loop_config={"task": task},
            # Longer than the watchdog waits: ranks that wait for a stuck rank must not fail before it is found.
            torch_config=TorchConfig(timeout_s=math.ceil(resources.stuck_after_seconds) + 120),
            scaling_config=worker_group(task.spec, placement),
            run_config=RunConfig(
                name=ray_folder.name,
                storage_path=str(ray_folder.parent),
                failure_config=FailureConfig(max_failures=max_failures, controller_failure_limit=3),
                logging_config=LoggingConfig(log_level="WARNING"),
                callbacks=list(callbacks),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            what, again = f"run {task.folder.path.name} failed", "it goes on from its newest checkpoint when started again"
            if isinstance(task, EvaluationTask):
                what, again = f"the evaluation of {task.folder.path.name} failed", "the run itself is as it was"
            raise RunFailedError(f"{what}; {again}.\n{_cause(error)}") from error


class _Trainer(TorchTrainer):
    """Leaves Ctrl-C to preemption.py, which asks for a checkpoint; Ray's own handler would abort the workers."""

    def _register_sigint_handler(self, controller: object) -> None:
        pass


@contextmanager
def _ray_folder(folder: RunFolder) -> Iterator[Path]:
    """A new folder for Ray's own records of one group. Ray would resume from a folder that it has used before."""
    path = folder.path / "ray" / uuid.uuid4().hex[:8]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):  # another group of the run still uses it
            path.parent.rmdir()


def _cause(error: BaseException) -> str:
    failures = getattr(error, "worker_failures", None)
    if failures:
        rank, first = sorted(failures.items())[0]
        return f"worker {rank}: {str(first).strip().splitlines()[-1]}"
    return str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)
