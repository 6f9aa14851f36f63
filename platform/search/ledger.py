"""The ledger of a search: `optuna.db`, which holds every proposed point, its value after each epoch and its final value.

A point is known by the run that its spec makes. The same run is never trained twice, so a sampler that repeats a point is
asked for another, and the repeat costs nothing of the search's budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from starlab.experiments.sections import SearchConfig
from starlab.experiments.spec import SpecError
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import FILE as JOURNAL
from starlab.platform.runs.journal import read_points
from starlab.platform.runs.metric_names import EPOCH
from starlab.platform.runs.search_records import Trial
from starlab.platform.search.samplers import make_sampler
from starlab.platform.search.space import Space
from starlab.platform.search.trial_folders import TrialFolders

FILE = "optuna.db"
_LEFT_OUT, _FAILED, _EPOCHS = "starlab.left_out", "starlab.failed", "starlab.epochs"
"""Attributes of a proposal: why it was not tried, why it failed, how many epochs it reached."""
_TRIES = 20
"""Proposals in a row that may be repeats or invalid. After them, a finite space is looked through for a point that is new."""


class Ledger:
    """The proposals of one search, stored as they are made."""

    def __init__(self, folders: TrialFolders, config: SearchConfig) -> None:
        """Open the ledger in the search's folder, made if there is none, and queue what earlier calls left unfinished."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._folders, self._space = folders, Space(folders.spec.space)
        path = folders.search.path
        storage = optuna.storages.RDBStorage(f"sqlite:///{path / FILE}")
        self._study = optuna.create_study(study_name=path.name, storage=storage, direction="maximize", load_if_exists=True)
        self._study.sampler = make_sampler(config.sampler, _seed(config.seed, len(self._study.trials)))
        self._taken, self._invalid = set(self._finished()), set[str]()
        self._queue_unfinished()

    def propose(self, complain: Callable[[str], None] = lambda _: None) -> tuple[int, dict[str, Any]] | None:
        """Propose a point whose run is new to this search. Returns its number and values; None where the space is used up.

        Args:
            complain: gets a line for each point that is not a valid experiment.
        """
        for _ in range(_TRIES):
            if self._space.size is not None and len(self._taken) + len(self._invalid) >= self._space.size:
                return None
            if new := self._ask(complain):
                return new
        for params in self._space.points():  # the sampler repeats itself although there are other points
            if str(params) not in self._invalid and self._is_new(params):
                self._study.enqueue_trial(params)
                if new := self._ask(complain):
                    return new
        return None

    def report(self, number: int, epoch: int, value: float) -> None:
        """Store the value of a proposal after an epoch."""
        self._storage.set_trial_intermediate_value(self._id(number), epoch, value)

    def finish(self, number: int, value: float, epochs: int) -> None:
        """Store the final value of a proposal and how many epochs it reached."""
        self._storage.set_trial_user_attr(self._id(number), _EPOCHS, epochs)
        self._study.tell(number, value)

    def fail(self, number: int, reason: str) -> None:
        """Store that a proposal failed. The next call of the search proposes it again."""
        self._storage.set_trial_user_attr(self._id(number), _FAILED, reason)
        self._study.tell(number, state=TrialState.FAIL)

    def curves(self) -> dict[str, dict[int, float]]:
        """Value by epoch of every proposal so far, by run id."""
        found: dict[str, dict[int, float]] = {}
        for trial in self._study.trials:
            if trial.intermediate_values:
                found.setdefault(self._run_id(trial.params), {}).update(trial.intermediate_values)
        return found

    def trials(self) -> list[Trial]:
        """The finished trials, best first; trials of equal value by their run id."""
        rows = []
        for run_id, trial in self._finished().items():
            values, epochs = self._space.values(trial.params), trial.user_attrs.get(_EPOCHS)
            run = self._folders.at(values)
            rows.append(
                Trial(
                    run=run_id,
                    values=values,
                    val_top1=float(trial.value or 0.0),
                    epochs=epochs_reached(run) if epochs is None else epochs,
                    whole=run.result is not None and not run.ended_early,
                )
            )
        return sorted(rows, key=lambda row: (-row.val_top1, row.run))

    def failed(self) -> dict[str, str]:
        """Why each trial failed that has no value, by run id."""
        reasons = {}
        for trial in self._study.get_trials(states=(TrialState.FAIL,)):
            if reason := trial.user_attrs.get(_FAILED):
                reasons[self._run_id(trial.params)] = str(reason)
        finished = self._finished()
        return {run_id: reason for run_id, reason in reasons.items() if run_id not in finished}

    def _run_id(self, params: Mapping[str, Any]) -> str:
        return self._folders.run_id(self._space.values(params))

    @property
    def _storage(self) -> optuna.storages.BaseStorage:
        return self._study._storage

    def _id(self, number: int) -> int:
        return int(self._storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number))

    def _finished(self) -> dict[str, optuna.trial.FrozenTrial]:
        complete = self._study.get_trials(states=(TrialState.COMPLETE,))
        return {self._run_id(trial.params): trial for trial in complete}

    def _queue_unfinished(self) -> None:
        """Queue the points of trials that were interrupted or failed; they are proposed before new ones."""
        waiting = self._study.get_trials(states=(TrialState.WAITING,))
        queued = {self._run_id(trial.system_attrs["fixed_params"]) for trial in waiting}
        for trial in self._study.get_trials(states=(TrialState.RUNNING, TrialState.FAIL)):
            if trial.state == TrialState.RUNNING:
                self._study.tell(trial.number, state=TrialState.FAIL)
            if _LEFT_OUT in trial.user_attrs or trial.params.keys() != self._folders.spec.space.keys():
                continue  # not tried, or killed between the suggestions of two values
            if (run_id := self._run_id(trial.params)) not in self._taken | queued:
                self._study.enqueue_trial(trial.params)
                queued.add(run_id)

    def _ask(self, complain: Callable[[str], None]) -> tuple[int, dict[str, Any]] | None:
        """Take the sampler's next proposal. None where it is a repeat or not a valid experiment, which is noted."""
        trial = self._study.ask()
        values, reason = self._space.suggest(trial), "a repeat"
        try:
            run_id = self._folders.run_id(values)
        except SpecError as error:
            reason = str(error)
            self._invalid.add(str(trial.params))
            complain(reason)
        else:
            if run_id not in self._taken:
                self._taken.add(run_id)
                return trial.number, values
        trial.set_user_attr(_LEFT_OUT, reason)
        self._study.tell(trial.number, state=TrialState.FAIL)
        return None

    def _is_new(self, params: Mapping[str, Any]) -> bool:
        try:
            return self._run_id(params) not in self._taken
        except SpecError:
            return True  # `_ask` says why it is not valid


def epochs_reached(run: RunFolder) -> int:
    """The last epoch that a run evaluated; 0 before its first."""
    if (result := run.result) and result.epochs is not None:
        return result.epochs
    return int(max((point.value for point in read_points(run.path / JOURNAL) if point.key == EPOCH), default=0))


def _seed(seed: int, proposals: int) -> int:
    """The sampler's seed: the search's own at its start, another one each time it goes on, so that it draws new points."""
    return seed if proposals == 0 else int(np.random.SeedSequence([seed, proposals]).generate_state(1)[0])
