"""Runs the trials of a search with Ray Tune, until the budget is spent, the space is used up or the search is asked to end."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune import Callback, TuneError
from ray.tune.experiment import Trial as TuneTrial

from starlab.platform.cluster.failures import explain_process
from starlab.platform.errors import RunFailedError
from starlab.platform.preemption import RunPreemptedError, end_on_signal
from starlab.platform.runs.end_request import read_request, request_end
from starlab.platform.runs.records import DamagedRecordError
from starlab.platform.search.best_so_far import BestSoFar
from starlab.platform.search.early_stopping import AskingASHA
from starlab.platform.search.ledger import Ledger
from starlab.platform.search.proposer import Proposer
from starlab.platform.search.space import values_text
from starlab.platform.search.trial import EPOCHS, FAILED, METRIC, Study, run_trial
from starlab.platform.search.trial_folders import TrialFolders

_STARTS_AGAIN = 2
"""How often Tune starts a trial again whose process died or whose nodes went away; it goes on from its checkpoint."""
_TUNE_HANDLES_NO_SIGNAL = "TUNE_DISABLE_SIGINT_HANDLER"


def run_trials(
    study: Study, ledger: Ledger, folders: TrialFolders, left: int, concurrent: int, say: Callable[[str], None]
) -> None:
    """Run up to `left` trials that the ledger proposes, `concurrent` at once.

    Raises:
        RunFailedError: Tune failed; names the cause.
        RunPreemptedError: SIGTERM or Ctrl-C asked the search to end; its trials have written checkpoints.
    """
    config, folder = study.spec.search, study.folder
    epochs = max(1, int(study.spec.longest_epochs))
    scheduler = AskingASHA(METRIC, epochs, config.grace_epochs, config.reduction, folders.ask_to_end, folders.run_id)
    scheduler.remember(ledger.curves())
    proposer = Proposer(ledger, say)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, study=study), _beside_this_process()),
        tune_config=tune.TuneConfig(
            search_alg=proposer, scheduler=scheduler, num_samples=left, max_concurrent_trials=concurrent
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder.path / "ray"),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=_STARTS_AGAIN),
            callbacks=[_Reporter(left, say, folders), _EndTrials(folders, proposer)],
        ),
    )
    grace_seconds = study.spec.base.resources.grace_seconds
    try:
        with _without_tunes_signal_handler(), _without_tunes_tracebacks(), end_on_signal(folder, grace_seconds):
            tuner.fit()
    except (TuneError, RayError, RunPreemptedError, KeyboardInterrupt) as error:
        if read_request(folder) is None:
            if isinstance(error, TuneError | RayError):
                cause = explain_process(error)
                raise RunFailedError(f"search {folder.path.name} failed; the same command goes on. {cause}") from error
            raise
    if request := read_request(folder):
        raise RunPreemptedError(
            f"search {folder.path.name} ended because {request.reason}; {len(ledger.trials())} of {config.trials} trials are "
            "finished, and the same command goes on with the others from their checkpoints",
            by=request.signal,
        )


def _beside_this_process() -> dict[str, float]:
    """Resources of a trial's driver: on this process's node, where it is not lost while the search lives.

    It waits while its workers compute, so it takes no CPU; a cluster's head node has none to give.
    """
    return {"CPU": 0, f"node:{ray.util.get_node_ip_address()}": 0.001}


@contextmanager
def _without_tunes_signal_handler() -> Iterator[None]:
    """Inside, Tune leaves Ctrl-C alone. Its own handler ends the loop and returns as if all trials were done."""
    before = os.environ.get(_TUNE_HANDLES_NO_SIGNAL)
    os.environ[_TUNE_HANDLES_NO_SIGNAL] = "1"
    try:
        yield
    finally:
        del os.environ[_TUNE_HANDLES_NO_SIGNAL]
        if before is not None:
            os.environ[_TUNE_HANDLES_NO_SIGNAL] = before


@contextmanager
def _without_tunes_tracebacks() -> Iterator[None]:
    """Inside, Tune prints no traceback for a trial whose process died; `_Reporter` prints a line."""
    logger = logging.getLogger("ray.tune.execution.tune_controller")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


class _EndTrials(Callback):
    """Passes a request to end from the search's folder to the folders of its trials."""

    def __init__(self, folders: TrialFolders, proposer: Proposer) -> None:
        self._folders, self._proposer = folders, proposer

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Ask every running trial, again if need be: a trial that was just starting has cleared the first request."""
        request = read_request(self._folders.search)
        if request is None:
            return
        self._proposer.ending = True
        for trial in trials:
            if trial.status == TuneTrial.RUNNING:
                run = self._folders.at(trial.config)
                if read_request(run) is None:
                    request_end(run, replace(request, reason=f"its search was asked to end: {request.reason}"))


class _Reporter(Callback):
    """Prints a line per trial that starts or ends."""

    def __init__(self, trials: int, say: Callable[[str], None], folders: TrialFolders) -> None:
        self._trials, self._say, self._ended = trials, say, 0
        self._best = float("-inf")
        self._folders, self._best_so_far = folders, BestSoFar(folders.search)

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        """Record a new best value while the search runs. A full disk or a damaged record does not end the search."""
        if METRIC in result:
            with suppress(OSError, DamagedRecordError):
                self._best_so_far.update(self._folders.run_id(trial.config), trial.config, result[METRIC])

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Print the trial's point of the space."""
        self._say(f"trial    {trial.trial_id} starts: {values_text(trial.config)}")

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Print its value and the best so far."""
        last = trial.last_result or {}
        if FAILED in last:
            self._ended += 1
            self._say(f"trial    {trial.trial_id} failed: {last[FAILED]} ({self._ended}/{self._trials})")
        elif EPOCHS in last:
            self._ended += 1
            self._best = max(self._best, last[METRIC])
            reached = f"val {last[METRIC]:.3f}, best {self._best:.3f} ({self._ended}/{self._trials})"
            self._say(f"trial    {trial.trial_id} ends after epoch {last[EPOCHS]}: {reached}")
        else:
            self._say(f"trial    {trial.trial_id} pauses with a checkpoint")

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Print that its process failed, and that it goes on."""
        self._say(f"trial    {trial.trial_id} starts again from its newest checkpoint: its process failed")

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Print that its process failed for good, and where its files are; the search goes on."""
        self._ended += 1
        self._say(
            f"trial    {trial.trial_id} failed: its process was killed or crashed {_STARTS_AGAIN + 1} times; its files are in "
            f"{self._folders.at(trial.config).path} ({self._ended}/{self._trials})"
        )
