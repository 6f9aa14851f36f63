"""The run's arithmetic of steps and epochs: how long it is, where it evaluates, where it writes checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

from starlab.experiments.sections import TrainConfig


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Steps of a run over `train_clips` clips. A step number counts the steps done."""

    config: TrainConfig
    train_clips: int

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_of(self.config.epochs)

    def steps_of(self, epochs: float) -> int:
        """Steps that cover so many passes over the training clips; the last one may reach into the next pass."""
        return math.ceil(epochs * self.train_clips / self.config.global_batch)

    def epoch_ends(self) -> frozenset[int]:
        """Steps done at the end of each whole epoch but the last."""
        return frozenset(self.steps_of(epoch) for epoch in range(1, math.ceil(self.config.epochs)))

    def evaluations(self) -> dict[int, int]:
        """Steps done → epochs begun, at every evaluation of the selection part; the last step always has one."""
        config = self.config
        epochs = range(config.evaluate_every_epochs, math.ceil(config.epochs), config.evaluate_every_epochs)
        return {self.steps_of(epoch): epoch for epoch in epochs} | {self.total_steps: math.ceil(config.epochs)}

    def checkpoints_between(self) -> frozenset[int]:
        """Steps of the checkpoints besides those at evaluations."""
        every = self.config.checkpoint_every_steps
        regular = range(every, self.total_steps, every) if every else ()
        return frozenset({*self.epoch_ends(), *regular}) - self.evaluations().keys()
