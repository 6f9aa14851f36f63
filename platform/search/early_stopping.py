"""Early stopping: a hopeless trial is asked to end itself, where Ray Tune would kill its process.

A killed trial takes its Ray Train controller with it, and the placement group that the controller made then keeps its CPUs and
GPUs until the whole search is over (Ray 2.60: a group outlives its creator while the job lives). On a small machine the next
trial would wait for them in vain. A trial that ends itself frees them, and closes its own MLflow run.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from starlab.experiments.spec import SearchSpec
from starlab.platform.errors import UserError
from starlab.platform.search.objectives import Objective

ASHA, HYPERBAND, NONE = "asha", "hyperband", "none"


@dataclass
class Rungs:
    """Asynchronous successive halving over epochs: at each rung one point in `reduction` goes on.

    A point with several seeds is compared by the mean over its first seeds, with the means of the other points over the same
    seeds. With several brackets (Hyperband), a share of the points is first judged at a later rung: some learn slowly.
    (Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2020; the shares are Optuna's HyperbandPruner's.)
    """

    epochs: int
    grace_epochs: int
    reduction: int
    seeds: Sequence[int] = (0,)
    brackets: int = 1
    _values: dict[tuple[int, str], dict[int, float]] = field(default_factory=dict)
    """Values by seed, by rung (epochs) and point."""

    def is_hopeless(self, point: str, seed: int, epoch: int, value: float) -> bool:
        """Note the value of a run after an epoch, the larger the better. Returns whether its point should end."""
        rung = self._rung(point, epoch)
        if rung is None or seed in self._values.setdefault((rung, point), {}):
            return False
        self._values[rung, point][seed] = value
        first = self._first_seeds(rung, point)
        if seed not in first:
            return False  # an earlier seed is not there yet
        others = [self._mean(rung, name, first) for at, name in self._values if at == rung and name != point]
        compared = [mean for mean in others if mean is not None and not math.isnan(mean)]
        mine = self._mean(rung, point, first)
        return bool(compared) and mine is not None and not mine >= np.nanpercentile(compared, (1 - 1 / self.reduction) * 100)

    def at(self, rung: int) -> dict[str, dict[int, float]]:
        """The values at a rung, by point and seed."""
        return {point: values for (place, point), values in self._values.items() if place == rung and values}

    def _rung(self, point: str, epoch: int) -> int | None:
        """The last rung that the point has reached; None before its first."""
        first = min(self.grace_epochs, self.epochs) * self.reduction ** self._bracket(point)
        if epoch < first:
            return None
        return int(first * self.reduction ** math.floor(math.log(epoch / first, self.reduction) + 1e-9))

    def _bracket(self, point: str) -> int:
        """Which bracket a point is in: always the same one, so that a search that goes on compares it with the same points."""
        count = self.brackets
        shares = [math.ceil(count * self.reduction ** (count - 1 - late) / (count - late)) for late in range(count)]
        ticket = zlib.crc32(point.encode()) % sum(shares)
        return next(late for late in range(count) if ticket < sum(shares[: late + 1]))

    def _first_seeds(self, rung: int, point: str) -> list[int]:
        there = self._values[rung, point]
        missing = next((index for index, seed in enumerate(self.seeds) if seed not in there), len(self.seeds))
        return list(self.seeds[:missing])

    def _mean(self, rung: int, point: str, seeds: Sequence[int]) -> float | None:
        there = self._values[rung, point]
        return float(np.mean([there[seed] for seed in seeds])) if all(seed in there for seed in seeds) else None


def make_rungs(spec: SearchSpec, objectives: Sequence[Objective]) -> Rungs | None:
    """The rungs of a search; None where nothing ends its trials early.

    Raises:
        UserError: early stopping is asked for where it could not be fair.
    """
    config, kind = spec.search, spec.search.early_stopping
    unfair = None
    if len(objectives) > 1:
        unfair = f"would end trials by {objectives[0].name} alone that are good by {objectives[1].name}"
    elif objectives[0].metric is None:
        unfair = f"needs an objective that is measured after every epoch, and {objectives[0].name} is not"
    if kind in (ASHA, HYPERBAND) and unfair:
        raise UserError(f"search.early_stopping is {kind!r}, which {unfair}; leave it out")
    if kind == NONE or unfair:
        return None
    epochs = max(1, int(spec.longest_epochs))
    brackets = 1
    if kind == HYPERBAND:
        brackets = max(1, math.floor(math.log(epochs / min(config.grace_epochs, epochs), config.reduction) + 1e-9) + 1)
    return Rungs(epochs, config.grace_epochs, config.reduction, spec.seeds, brackets)


class AskToEnd(FIFOScheduler):
    """Calls `ask` once for each point that should end; Tune itself is always told to continue."""

    def __init__(
        self,
        rungs: Rungs | None,
        objective: Objective,
        place: Callable[[Mapping[str, Any]], tuple[str, int]],
        ask: Callable[[dict[str, Any], str], None],
    ) -> None:
        """Judge by `rungs`; None never ends a trial.

        Args:
            objective: what trials report after every epoch, as "objective".
            place: from a trial's values to the name of its point and its seed, which stay the same when Tune or a later call
                of the search starts it again.
            ask: called with a trial's values and the reason; never for a trial in its last epoch.
        """
        super().__init__()
        self._rungs, self._objective, self._place, self._ask = rungs, objective, place, ask
        self._asked: set[str] = set()

    def remember(self, curves: Mapping[tuple[str, int], Mapping[int, float]]) -> None:
        """Fill the rungs with what earlier calls of the search measured: value by epoch, by point and seed."""
        if self._rungs:
            for (point, seed), curve in curves.items():
                for epoch, value in sorted(curve.items()):
                    self._rungs.is_hopeless(point, seed, epoch, self._objective.score(value))

    def on_trial_result(self, tune_controller: object, trial: Trial, result: dict[str, Any]) -> str:
        """Pass the verdict to the trial itself."""
        if self._rungs and "epoch" in result:
            (point, seed), epoch, value = self._place(trial.config), result["epoch"], result["objective"]
            hopeless = self._rungs.is_hopeless(point, seed, epoch, self._objective.score(value))
            if hopeless and point not in self._asked and epoch < self._rungs.epochs:
                self._asked.add(point)
                self._ask(
                    trial.config, f"{self._objective.name} {value:.4f} after epoch {epoch} is behind that of other trials"
                )
        return str(TrialScheduler.CONTINUE)

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        return object, ()  # Tune pickles it into the search's folder, where a password that it reaches must not be
