"""Runs the trials of a search with Ray Tune, until the budget is spent, the space is used up or the search is asked to end."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import ray
from optuna.exceptions import StorageInternalError
from ray import tune
from ray.exceptions import RayError
from ray.tune import Callback, TuneError
from ray.tune.experiment import Trial as TuneTrial
from sqlalchemy.exc import SQLAlchemyError

from starlab.experiments.credentials import without_password
from starlab.platform.cluster.failures import explain_process
from starlab.platform.errors import RunFailedError
from starlab.platform.preemption import RunPreemptedError, end_on_signal
from starlab.platform.runs.end_request import read_request, request_end
from starlab.platform.runs.records import EndRequest
from starlab.platform.search.budget import Budget
from starlab.platform.search.early_stopping import AskToEnd, make_rungs
from starlab.platform.search.ledger import Ledger
from starlab.platform.search.proposer import Proposer
from starlab.platform.search.trial import Study, run_trial
from starlab.platform.search.trial_folders import TrialFolders
from starlab.platform.search.trial_lines import TrialLines

_STARTS_AGAIN = 2
"""How often Tune starts a trial again whose process died or whose nodes went away; it goes on from its checkpoint."""
_NOT_STORED = (OSError, SQLAlchemyError, StorageInternalError)
"""What a full disk, or a database that does not answer, throws at the ledger, the budget and Tune's snapshots."""
_TUNE_HANDLES_NO_SIGNAL = "TUNE_DISABLE_SIGINT_HANDLER"


def run_trials(
    study: Study, ledger: Ledger, folders: TrialFolders, room: Callable[[], int], say: Callable[[str], None]
) -> None:
    """Run what the ledger proposes, up to `room()` runs at once.

    Raises:
        RunFailedError: Tune failed; names the cause.
        RunPreemptedError: SIGTERM or Ctrl-C asked the search to end; its trials have written checkpoints.
    """
    config, folder, objective = study.spec.search, study.folder, study.objectives[0]

    def ask(values: dict[str, Any], reason: str) -> None:
        for run in ledger.give_up(values):
            folders.ask_to_end(run, reason)

    scheduler = AskToEnd(make_rungs(study.spec, study.objectives), objective, folders.place, ask)
    scheduler.remember(ledger.curves())
    lines = TrialLines(_runs_left(study, ledger), objective, say, folders)
    lines.remember(ledger.curves())
    proposer, budget = Proposer(ledger, room, say), Budget(folder, study.spec)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, study=study), _beside_this_process()),
        # A trial's driver imports everything once: the next trial takes over its process.
        tune_config=tune.TuneConfig(search_alg=proposer, scheduler=scheduler, num_samples=-1, reuse_actors=True),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder.path / "ray"),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=_STARTS_AGAIN),
            callbacks=[lines, _EndTrials(folders, proposer, budget)],
        ),
    )
    grace_seconds = study.spec.base.resources.grace_seconds
    try:
        with _without_tunes_signal_handler(), _without_tunes_tracebacks(), end_on_signal(folder, grace_seconds):
            tuner.fit()
    # SystemError: a signal inside a call of Ray.
    except (TuneError, RayError, RunPreemptedError, KeyboardInterrupt, SystemError, *_NOT_STORED) as error:
        if read_request(folder) is None:
            if isinstance(error, (TuneError, RayError)):
                cause = explain_process(error)
                raise RunFailedError(f"search {folder.path.name} failed; the same command goes on. {cause}") from error
            if isinstance(error, _NOT_STORED):
                cause = without_password(" ".join(str(error).split()))
                raise RunFailedError(
                    f"search {folder.path.name} ended, because its folder or its database could not be written: {cause}. Once "
                    "they can, the same command goes on"
                ) from error
            raise
    finally:
        with suppress(OSError):  # a full disk
            budget.write()
    if budget.spent:
        say(f"search   {budget.spent}; with more, the same command goes on with trials that are under way")
    if request := read_request(folder):
        of = "" if config.trials is None else f" of {config.trials}"
        raise RunPreemptedError(
            f"search {folder.path.name} ended because {request.reason}; {len(ledger.trials())}{of} trials are "
            "finished, and the same command goes on with the others from their checkpoints",
            by=request.signal,
        )


def _runs_left(study: Study, ledger: Ledger) -> int | None:
    trials = study.spec.search.trials
    return None if trials is None else (trials - len(ledger.trials())) * len(study.spec.seeds)


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
    """Inside, Tune prints no traceback for a trial whose process died; `TrialLines` prints a line."""
    logger = logging.getLogger("ray.tune.execution.tune_controller")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


class _EndTrials(Callback):
    """Asks the trials to end when the search was asked to end, or has used up its hours."""

    def __init__(self, folders: TrialFolders, proposer: Proposer, budget: Budget) -> None:
        self._folders, self._proposer, self._budget = folders, proposer, budget

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Ask every running trial, again if need be: a trial that was just starting has cleared the first request."""
        running = [trial for trial in trials if trial.status == TuneTrial.RUNNING]
        self._budget.count(len(running))
        if asked := read_request(self._folders.search):
            request = replace(asked, reason=f"its search was asked to end: {asked.reason}")
        elif self._budget.spent:
            request = EndRequest(reason=f"its search ends: {self._budget.spent}", signal=signal.SIGTERM)
        else:
            return
        self._proposer.ending = True
        for trial in running:
            run = self._folders.at(trial.config)
            if read_request(run) is None:
                request_end(run, request)

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        return object, ()  # Tune pickles it into the search's folder, where a password that it reaches must not be
