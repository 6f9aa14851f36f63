"""The ledger of a search: every proposed point, the values of its runs after each epoch and at their end, in a database.

A point is known by the runs that its specs make, one for each seed. The same run is never trained twice: a point that is
proposed again is passed over, which costs nothing of the search's budget, and runs that an earlier call finished are taken up
from their folders, also those of a wider or narrower space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from starlab.experiments.sections import SearchConfig
from starlab.experiments.spec import SpecError
from starlab.platform.runs.metric_names import VAL_TOP1
from starlab.platform.runs.search_records import Trial
from starlab.platform.search.objectives import Objective, Outcome, mean_outcome, outcome_of
from starlab.platform.search.proposal import PointUnderWay, Proposal, by_seed, outcomes_by_seed
from starlab.platform.search.samplers import GRID, make_sampler, seed_of_call
from starlab.platform.search.space import Space, point_text
from starlab.platform.search.storage import open_study
from starlab.platform.search.takeup import EarlierPoint, earlier_points
from starlab.platform.search.trial_folders import TrialFolders

LEFT_OUT = "starlab.left_out"
"""Why a proposal was not tried."""
_FAILED, _OUTCOMES, _CURVES = "starlab.failed", "starlab.outcomes", "starlab.curves"
"""Why a proposal failed; the outcome, and the value by epoch, of each of its runs, by seed."""
_TRIES = 5
"""Proposals in a row that may be repeats or invalid. After them, a point that is new is drawn at random."""
_RANDOM_TRIES = 100
"""Random points in a row of which none is a valid experiment. After them, the space counts as used up."""


class Ledger:
    """The proposals of one search, stored as they are made."""

    def __init__(
        self,
        folders: TrialFolders,
        config: SearchConfig,
        objectives: tuple[Objective, ...],
        complain: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Open the ledger, made if there is none, take up what earlier calls finished, and queue what they left unfinished.

        Args:
            config: with the password of its storage; `folders` has none.
            complain: gets a line for each earlier run that cannot be read.
        """
        self._folders, self._objectives = folders, objectives
        self._space, self._seeds = Space(folders.spec.space), folders.spec.seeds
        self._study = open_study(folders, config, objectives)
        seed = seed_of_call(config.seed, len(self._study.trials))
        self._study.sampler = make_sampler(config.sampler, seed, self._space, len(objectives))
        self._trials = config.trials
        self._dice, self._in_order = np.random.default_rng(seed), config.sampler == GRID
        self._open: dict[int, PointUnderWay] = {}
        self._failures = 0
        self._finished = {point_text(self._space.values(trial.params)) for trial in self._complete()}
        self._tried = set(self._finished)
        self._queue(complain)

    def propose(self, complain: Callable[[str], None] = lambda _: None) -> Proposal | None:
        """Propose a run that is new to this search: the next seed of a point under way, or a new point's first one.

        Args:
            complain: gets a line for each point that is not a valid experiment.

        Returns:
            None where `search.trials` points are finished, under way or failed in this call, or the space is used up.
        """
        while True:
            for number, point in self._open.items():
                if point.waiting:
                    seed = point.waiting.pop(0)
                    point.running.add(seed)
                    return Proposal(number, self._folders.seeded(point.values, seed), seed)
            if self.is_spent or not self._new_point(complain):
                return None

    @property
    def is_spent(self) -> bool:
        """Whether the budget of points is used up: they are finished, under way, or have failed in this call."""
        return self._trials is not None and len(self._finished) + len(self._open) + self._failures >= self._trials

    def report(self, proposal: Proposal, epoch: int, value: float) -> None:
        """Store the value of the first objective of a run after an epoch."""
        point = self._open[proposal.number]
        point.curves.setdefault(proposal.seed, {})[epoch] = value
        trial_id = self._id(proposal.number)
        self._storage.set_trial_user_attr(trial_id, _CURVES, by_seed(point.curves))
        mean = np.mean([curve[epoch] for curve in point.curves.values() if epoch in curve])
        self._storage.set_trial_intermediate_value(trial_id, epoch, float(mean))

    def finish(self, proposal: Proposal, outcome: Outcome) -> None:
        """Store what a run reached. With its last run, the point has its final values: the means over its seeds."""
        self._open[proposal.number].outcomes[proposal.seed] = outcome
        self._store_outcomes(proposal.number)
        self._end_run(proposal)

    def fail(self, proposal: Proposal, reason: str) -> None:
        """Store that a run failed, and with it its point. The next call of the search proposes it again."""
        point = self._open[proposal.number]
        point.problem = point.problem or reason
        point.waiting.clear()
        self._end_run(proposal)

    def pause(self, proposal: Proposal) -> None:
        """Note that a run was asked to end. The next call of the search goes on with its point."""
        point = self._open[proposal.number]
        point.is_paused = True
        point.waiting.clear()
        self._end_run(proposal)

    def give_up(self, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Start no more runs of the point of this run. Returns the values of those that are under way."""
        wanted = point_text(self._folders.point(values))
        for point in self._open.values():
            if point_text(point.values) == wanted:
                point.waiting.clear()
                return [self._folders.seeded(point.values, seed) for seed in sorted(point.running)]
        return []

    def curves(self) -> dict[tuple[str, int], dict[int, float]]:
        """The first objective's value by epoch of every run so far, by the name of its point and its seed."""
        found: dict[tuple[str, int], dict[int, float]] = {}
        for trial in self._study.trials:
            stored = trial.user_attrs.get(_CURVES, {})
            if stored and self._space.is_whole(trial.params):
                name = self._folders.point_id(self._space.values(trial.params))
                for seed, curve in stored.items():
                    found.setdefault((name, int(seed)), {}).update({int(epoch): value for epoch, value in curve.items()})
        return found

    def trials(self) -> list[Trial]:
        """The finished points, the best by the first objective first; points of equal value by their run id."""
        rows = {}
        for trial in self._complete():
            outcomes = outcomes_by_seed(trial.user_attrs[_OUTCOMES])
            values, seeds = self._space.values(trial.params), [seed for seed in self._seeds if seed in outcomes]
            mean = mean_outcome([outcomes[seed] for seed in seeds], len(self._seeds))
            runs = tuple(self._folders.run_id(self._folders.seeded(values, seed)) for seed in seeds)
            rows[runs[0]] = Trial(
                run=runs[0],
                runs=runs,
                values=values,
                val_top1=mean.values[VAL_TOP1],
                objectives={objective.name: mean.values[objective.name] for objective in self._objectives},
                epochs=mean.epochs,
                whole=mean.whole,
            )
        first = self._objectives[0]
        return sorted(rows.values(), key=lambda row: (first.key(row.value_of(first.name)), row.run))

    def failed(self) -> dict[str, str]:
        """Why each point failed that has no value, by the id of its first run."""
        reasons = {}
        for trial in self._study.get_trials(states=(TrialState.FAIL,)):
            reason, values = trial.user_attrs.get(_FAILED), self._space.values(trial.params)
            if reason and point_text(values) not in self._finished:
                reasons[self._folders.point_id(values)] = str(reason)
        return reasons

    @property
    def _storage(self) -> optuna.storages.BaseStorage:
        return self._study._storage

    def _id(self, number: int) -> int:
        return int(self._storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number))

    def _complete(self) -> list[FrozenTrial]:
        return list(self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))

    def _queue(self, complain: Callable[[str], None]) -> None:
        """Store points that earlier calls finished, and queue those that they left unfinished, before new ones."""
        waiting = self._study.get_trials(states=(TrialState.WAITING,))
        queued = {point_text(self._space.values(trial.system_attrs["fixed_params"])) for trial in waiting}
        unfinished: list[dict[str, Any]] = []
        for point in earlier_points(self._folders, self._objectives, self._finished, complain):
            if self._is_done(point.outcomes):
                self._add_finished(point)
            else:
                unfinished.append(point.values)
        for trial in self._study.get_trials(states=(TrialState.RUNNING, TrialState.FAIL)):
            if trial.state == TrialState.RUNNING:
                self._study.tell(trial.number, state=TrialState.FAIL)
            if LEFT_OUT not in trial.user_attrs and self._space.is_whole(trial.params):
                unfinished.append(self._space.values(trial.params))
        for values in (*unfinished, *self._folders.spec.start_points):
            if (text := point_text(values)) not in self._tried | queued:
                self._study.enqueue_trial(self._space.params(values))
                queued.add(text)

    def _add_finished(self, point: EarlierPoint) -> None:
        values, mean = point.values, mean_outcome(list(point.outcomes.values()), len(self._seeds))
        if mean.problem:
            return
        trial = optuna.trial.create_trial(
            params=self._space.params(values),
            distributions={key: self._space.optuna(key) for key in values},
            values=[mean.values[objective.name] for objective in self._objectives],
            user_attrs={
                _OUTCOMES: by_seed({seed: asdict(outcome) for seed, outcome in point.outcomes.items()}),
                _CURVES: by_seed(point.curves),
            },
        )
        self._study.add_trial(trial)
        self._finished.add(point_text(values))
        self._tried.add(point_text(values))

    def _new_point(self, complain: Callable[[str], None]) -> bool:
        """Open a point that is new to this search. False where the space is used up."""
        for attempt in range(_TRIES):
            if self._space.size is not None and len(self._tried) >= self._space.size:
                return False
            queued = any(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))) if attempt == 0 else True
            if self._in_order and not queued:
                break
            if self._ask(complain):
                return True
        if self._space.size is None:
            return self._ask_at_random(complain)
        left = [values for values in self._space.points() if point_text(values) not in self._tried]
        if not self._in_order:  # the sampler repeats itself although there are other points
            left = [left[index] for index in self._dice.permutation(len(left))]
        for values in left:
            self._study.enqueue_trial(self._space.params(values))
            if self._ask(complain):
                return True
        return False

    def _ask_at_random(self, complain: Callable[[str], None]) -> bool:
        sampler = self._study.sampler
        self._study.sampler = make_sampler("random", int(self._dice.integers(2**31)), self._space, len(self._objectives))
        try:
            return any(self._ask(complain) for _ in range(_RANDOM_TRIES))
        finally:
            self._study.sampler = sampler

    def _ask(self, complain: Callable[[str], None]) -> bool:
        """Take the sampler's next point. False where it is a repeat or not a valid experiment, which is noted."""
        trial = self._study.ask()
        values, reason = self._space.suggest(trial), "a repeat"
        if (text := point_text(values)) not in self._tried:
            self._tried.add(text)
            try:
                found = {seed: self._earlier_outcome(values, seed) for seed in self._seeds}
            except SpecError as error:
                reason = str(error)
                complain(reason)
            else:
                outcomes = {seed: outcome for seed, outcome in found.items() if outcome}
                missing = [] if self._is_done(outcomes) else [seed for seed in self._seeds if seed not in outcomes]
                self._open[trial.number] = PointUnderWay(values, missing, outcomes=outcomes)
                if outcomes:
                    self._store_outcomes(trial.number)
                self._close_point(trial.number)
                return True
        trial.set_user_attr(LEFT_OUT, reason)
        self._study.tell(trial.number, state=TrialState.FAIL)
        return False

    def _earlier_outcome(self, values: Mapping[str, Any], seed: int) -> Outcome | None:
        spec = self._folders.spec.spec_of(self._folders.seeded(values, seed))
        return outcome_of(self._folders.of_spec(spec), spec, self._objectives)

    def _store_outcomes(self, number: int) -> None:
        outcomes = by_seed({seed: asdict(outcome) for seed, outcome in self._open[number].outcomes.items()})
        self._storage.set_trial_user_attr(self._id(number), _OUTCOMES, outcomes)

    def _end_run(self, proposal: Proposal) -> None:
        self._open[proposal.number].running.discard(proposal.seed)
        self._close_point(proposal.number)

    def _close_point(self, number: int) -> None:
        """Store the end of a point that has no run left to wait for. A paused one stays as it is in the database."""
        point = self._open[number]
        if point.running or point.waiting:
            return
        del self._open[number]
        self._failures += point.problem is not None or point.is_paused
        if point.problem:
            self._storage.set_trial_user_attr(self._id(number), _FAILED, point.problem)
            self._study.tell(number, state=TrialState.FAIL)
        elif not point.is_paused:
            self._finished.add(point_text(point.values))
            mean = mean_outcome(list(point.outcomes.values()), len(self._seeds))
            self._study.tell(number, [mean.values[objective.name] for objective in self._objectives])

    def _is_done(self, outcomes: Mapping[int, Outcome]) -> bool:
        """Whether a point needs no more runs: every seed has one, or one was ended early."""
        return len(outcomes) == len(self._seeds) or any(not outcome.whole for outcome in outcomes.values())
