"""ASHA that asks. A hopeless trial of a search is told to end itself; Ray Tune would end its process.

A killed trial takes its Ray Train controller with it, and the placement group that the controller made then keeps its CPUs and
GPUs until the whole search is over (Ray 2.60: a group outlives its creator while the job lives). On a small machine the next
trial would wait for them in vain. A trial that ends itself gives everything back, and closes its own MLflow run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler


class AskingASHA(ASHAScheduler):
    """Asynchronous successive halving over epochs; `ask` is called once with the values of each trial that is to end."""

    def __init__(
        self, metric: str, epochs: int, grace_epochs: int, reduction: int, ask: Callable[[dict[str, Any], str], None]
    ) -> None:
        """`ask(values, reason)` gets a trial's point of the space; a trial in its last epoch is left alone."""
        super().__init__(
            time_attr="epoch",
            metric=metric,
            mode="max",
            max_t=epochs,
            grace_period=min(grace_epochs, epochs),
            reduction_factor=reduction,
        )
        self._epochs, self._ask = epochs, ask
        self._asked: set[str] = set()

    def on_trial_result(self, tune_controller: object, trial: Trial, result: dict[str, Any]) -> str:
        """Always lets Tune continue; ASHA's verdict goes to the trial itself."""
        if trial.trial_id in self._asked:
            return str(TrialScheduler.CONTINUE)
        verdict = super().on_trial_result(tune_controller, trial, result)
        if verdict == TrialScheduler.STOP and result["epoch"] < self._epochs:
            self._asked.add(trial.trial_id)
            self._ask(trial.config, f"ASHA: {self._metric} {result[self._metric]:.4f} after epoch {result['epoch']} is too low")
        return str(TrialScheduler.CONTINUE)
