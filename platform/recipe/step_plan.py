"""Computes at which steps a run ends, evaluates and writes checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

from starlab.experiments.sections import TrainConfig


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The steps of a run over `train_clips` clips. A step number is the number of steps done."""

    config: TrainConfig
    train_clips: int

    @property
    def total_steps(self) -> int:
        """Number of optimizer steps of the whole run."""
        return self.steps_of(self.config.trained_epochs)

    @property
    def schedule_steps(self) -> int:
        """Number of steps that the learning rate's schedule covers; more than `total_steps` if the run stops before."""
        return self.steps_of(self.config.epochs)

    def steps_of(self, epochs: float) -> int:
        """Return the number of steps that cover `epochs` passes over the training clips, rounded up."""
        return math.ceil(epochs * self.train_clips / self.config.global_batch)

    def epoch_ends(self) -> frozenset[int]:
        """Return the steps at which an epoch ends and a checkpoint is due, except the last epoch."""
        every = self.config.checkpoint_every_epochs
        return frozenset(self.steps_of(epoch) for epoch in range(every, math.ceil(self.config.trained_epochs), every))

    def evaluations(self) -> dict[int, int]:
        """Map the step of each evaluation of the selection part to its epoch. The last step always has an evaluation."""
        config, last = self.config, math.ceil(self.config.trained_epochs)
        epochs = range(config.evaluate_every_epochs, last, config.evaluate_every_epochs)
        return {self.steps_of(epoch): epoch for epoch in epochs} | {self.total_steps: last}

    def checkpoints_between(self) -> frozenset[int]:
        """Return the steps of the checkpoints that are not at an evaluation."""
        every = self.config.checkpoint_every_steps
        regular = range(every, self.total_steps, every) if every else ()
        return frozenset({*self.epoch_ends(), *regular}) - self.evaluations().keys()
