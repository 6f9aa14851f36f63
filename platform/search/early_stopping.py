"""Early stopping by ASHA: a hopeless trial is asked to end itself, where Ray Tune would kill its process.

A killed trial takes its Ray Train controller with it, and the placement group that the controller made then keeps its CPUs and
GPUs until the whole search is over (Ray 2.60: a group outlives its creator while the job lives). On a small machine the next
trial would wait for them in vain. A trial that ends itself frees them, and closes its own MLflow run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler


class AskingASHA(ASHAScheduler):
    """Asynchronous successive halving over epochs, which calls `ask` once for each trial that should end."""

    def __init__(
        self, metric: str, epochs: int, grace_epochs: int, reduction: int, ask: Callable[[dict[str, Any], str], None]
    ) -> None:
        """`ask(values, reason)` gets a trial's point of the space; it is not called for a trial in its last epoch."""
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
        """Pass ASHA's verdict to the trial itself, and always tell Tune to continue."""
        if trial.trial_id in self._asked:
            return str(TrialScheduler.CONTINUE)
        verdict = super().on_trial_result(tune_controller, trial, result)
        if verdict == TrialScheduler.STOP and result["epoch"] < self._epochs:
            self._asked.add(trial.trial_id)
            self._ask(trial.config, f"ASHA: {self._metric} {result[self._metric]:.4f} after epoch {result['epoch']} is too low")
        return str(TrialScheduler.CONTINUE)
