"""Early stopping by ASHA: a hopeless trial is asked to end itself, where Ray Tune would kill its process.

A killed trial takes its Ray Train controller with it, and the placement group that the controller made then keeps its CPUs and
GPUs until the whole search is over (Ray 2.60: a group outlives its creator while the job lives). On a small machine the next
trial would wait for them in vain. A trial that ends itself frees them, and closes its own MLflow run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler


@dataclass(frozen=True, slots=True)
class _Run:
    """A trial under its run's id, which stays the same when Tune or a later call starts the trial again."""

    trial_id: str


class AskingASHA(ASHAScheduler):
    """Asynchronous successive halving over epochs, which calls `ask` once for each trial that should end."""

    def __init__(
        self,
        metric: str,
        epochs: int,
        grace_epochs: int,
        reduction: int,
        ask: Callable[[dict[str, Any], str], None],
        run_id: Callable[[dict[str, Any]], str],
    ) -> None:
        """Set up the rungs.

        Args:
            metric: what trials report, the larger the better.
            ask: called with a trial's point of the space and the reason; never for a trial in its last epoch.
            run_id: from a point of the space to its run's id.
        """
        super().__init__(
            time_attr="epoch",
            metric=metric,
            mode="max",
            max_t=epochs,
            grace_period=min(grace_epochs, epochs),
            reduction_factor=reduction,
        )
        self._epochs, self._ask, self._run_id = epochs, ask, run_id
        self._asked: set[str] = set()

    def remember(self, curves: Mapping[str, Mapping[int, float]]) -> None:
        """Fill the rungs with what earlier calls of the search measured: value by epoch, by run id."""
        for run_id, curve in curves.items():
            run = cast(Trial, _Run(run_id))
            super().on_trial_add(None, run)
            for epoch, value in sorted(curve.items()):
                super().on_trial_result(None, run, {"epoch": epoch, self._metric: value})

    def on_trial_add(self, tune_controller: object, trial: Trial) -> None:
        """Give the trial's run a place, unless it has one from an earlier call."""
        run = self._run(trial)
        if run.trial_id not in self._trial_info:
            super().on_trial_add(tune_controller, run)

    def on_trial_result(self, tune_controller: object, trial: Trial, result: dict[str, Any]) -> str:
        """Pass ASHA's verdict to the trial itself, and always tell Tune to continue."""
        run = self._run(trial)
        if run.trial_id in self._asked:
            return str(TrialScheduler.CONTINUE)
        verdict = super().on_trial_result(tune_controller, run, result)
        if verdict == TrialScheduler.STOP and result["epoch"] < self._epochs:
            self._asked.add(run.trial_id)
            self._ask(trial.config, f"ASHA: {self._metric} {result[self._metric]:.4f} after epoch {result['epoch']} is too low")
        return str(TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: object, trial: Trial, result: dict[str, Any]) -> None:
        """Keep the run's place in the rungs."""

    def on_trial_remove(self, tune_controller: object, trial: Trial) -> None:
        """Keep the run's place in the rungs."""

    def _run(self, trial: Trial) -> Trial:
        return cast(Trial, _Run(self._run_id(trial.config)))
