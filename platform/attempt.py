"""One Ray Train run: a group of workers, placed by the spec's resources."""

from __future__ import annotations

import math
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray.train import FailureConfig, LoggingConfig, RunConfig, TrainingFailedError, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from starlab.platform.cluster.allotment import Allotment, worker_group
from starlab.platform.errors import RunFailedError
from starlab.platform.runs.folder import RunFolder
from starlab.platform.worker.job import TrainJob
from starlab.platform.worker.train_loop import train_loop


def attempt(job: TrainJob, allotment: Allotment, callbacks: tuple[UserCallback, ...]) -> None:
    """Train on a group of workers, which Ray starts again up to `resources.max_failures` times from the newest checkpoint.

    Returns when the run is over, was stopped, or was asked to end: its folder says which.

    Raises:
        RunFailedError: a worker failed once more than that; names the first failure.
    """
    spec, folder = job.spec, job.folder
    with _ray_folder(folder) as ray_folder:
        trainer = _Trainer(
            train_loop,
            train_loop_config={"job": job},
            # Longer than the watchdog waits: ranks that wait for a stuck one must not fail before it is found.
            torch_config=TorchConfig(timeout_s=math.ceil(spec.resources.stuck_after_seconds) + 120),
            scaling_config=worker_group(spec, allotment),
            run_config=RunConfig(
                name=ray_folder.name,
                storage_path=str(ray_folder.parent),
                failure_config=FailureConfig(max_failures=spec.resources.max_failures, controller_failure_limit=3),
                logging_config=LoggingConfig(log_level="WARNING"),
                callbacks=list(callbacks),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise RunFailedError(
                f"run {folder.path.name} failed; it goes on from its newest checkpoint when started again.\n{_cause(error)}"
            ) from error


class _Trainer(TorchTrainer):
    """Ctrl-C is answered by preemption.py, with a checkpoint; Ray's own handler would abort the workers."""

    def _register_sigint_handler(self, controller: object) -> None:
        pass


@contextmanager
def _ray_folder(folder: RunFolder) -> Iterator[Path]:
    """A folder for Ray's own records of one attempt. Never the same twice: Ray would take it for a run to resume."""
    path = folder.path / "ray" / uuid.uuid4().hex[:8]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield path
    finally:
        shutil.rmtree(path.parent, ignore_errors=True)


def _cause(error: BaseException) -> str:
    failures = getattr(error, "worker_failures", None)
    if failures:
        rank, first = sorted(failures.items())[0]
        return f"worker {rank}: {str(first).strip().splitlines()[-1]}"
    return str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)
