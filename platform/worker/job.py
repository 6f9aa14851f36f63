"""What the driver hands to every worker of a run, and the run's arithmetic of steps and epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from starlab.experiments.spec import Spec
from starlab.pipelines.clip import ClipSource
from starlab.pipelines.schedule import Schedule, TrainPlan, clip_weights
from starlab.pipelines.splits import Parts
from starlab.pipelines.stream import StreamLimits
from starlab.platform.runs.folder import RunFolder


@dataclass(frozen=True, slots=True)
class TrainJob:
    """One run: what to train, on what, where it is kept."""

    spec: Spec
    source: ClipSource
    parts: Parts
    folder: RunFolder
    limits: StreamLimits
    look_at_test: bool = True
    """False for a trial of a search: it never sees the test part, and ends early when its folder is asked to."""

    fence: int = 0
    """Number of the lease (lease.py) under which the run trains; with an older one nothing more is written."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self._steps(self.spec.train.epochs)

    @property
    def selection(self) -> tuple[int, ...]:
        """The clips that pick the best checkpoint: test clips only where the spec says so."""
        return self.parts.test if self.spec.data.select == "test" else self.parts.validation

    def epoch_steps(self) -> frozenset[int]:
        """Steps done at the end of each whole epoch."""
        return frozenset(self._steps(epoch) for epoch in range(1, math.ceil(self.spec.train.epochs)))

    def evaluation_steps(self) -> dict[int, int]:
        """Steps done → epochs begun, at every look at the selection clips; the last step is always one."""
        config = self.spec.train
        epochs = range(config.evaluate_every_epochs, math.ceil(config.epochs), config.evaluate_every_epochs)
        return {self._steps(epoch): epoch for epoch in epochs} | {self.total_steps: math.ceil(config.epochs)}

    def plan(self, rank: int, world: int, first_step: int) -> TrainPlan:
        """A rank's part of the training stream from a step on."""
        train, config = self.parts.train, self.spec.train
        return TrainPlan(
            Schedule(config.seed, len(train), self._clip_weights()), train, config.global_batch, rank, world, first_step
        )

    def _clip_weights(self) -> bytes:
        oversample = self.spec.data.oversample
        labels = [self.source.clips[index].label for index in self.parts.train]
        if isinstance(oversample, dict):
            return clip_weights(labels, {self.source.classes.index(name): weight for name, weight in oversample.items()})
        return clip_weights(labels, oversample)

    def _steps(self, epochs: float) -> int:
        return math.ceil(epochs * len(self.parts.train) / self.spec.train.global_batch)
