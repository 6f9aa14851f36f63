"""What the driver hands to every worker: one training, or one evaluation of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from starlab.experiments.spec import Spec
from starlab.pipelines.clip import ClipSource
from starlab.pipelines.schedule import Schedule, TrainPlan, clip_weights
from starlab.pipelines.splits import Parts
from starlab.pipelines.stream import StreamLimits
from starlab.platform.recipe.step_plan import StepPlan
from starlab.platform.runs.folder import RunFolder


@dataclass(frozen=True, slots=True)
class TrainTask:
    """One run: what to train, on what, where it is kept."""

    spec: Spec
    source: ClipSource
    parts: Parts
    folder: RunFolder
    limits: StreamLimits
    is_trial: bool = False
    """A trial of a search never evaluates the test part, and ends early when its folder is asked to."""
    fence: int = 0
    """Number of the lease (lease.py) under which the run trains; with an older one nothing more is written."""

    @property
    def steps(self) -> StepPlan:
        """The run's arithmetic of steps and epochs."""
        return StepPlan(self.spec.train, len(self.parts.train))

    @property
    def selection(self) -> tuple[int, ...]:
        """The clips that pick the best checkpoint: test clips only where the spec says so."""
        return self.parts.test if self.spec.data.select == "test" else self.parts.validation

    def plan(self, rank: int, world: int, first_step: int) -> TrainPlan:
        """A rank's part of the training stream from a step on."""
        train, config = self.parts.train, self.spec.train
        schedule = Schedule(config.seed, len(train), self._clip_weights())
        return TrainPlan(schedule, train, config.global_batch, rank, world, first_step)

    def _clip_weights(self) -> bytes:
        oversample = self.spec.data.oversample
        labels = [self.source.clips[index].label for index in self.parts.train]
        if isinstance(oversample, dict):
            return clip_weights(labels, {self.source.classes.index(name): weight for name, weight in oversample.items()})
        return clip_weights(labels, oversample)


@dataclass(frozen=True, slots=True)
class EvaluationTask:
    """One evaluation of a run's checkpoint, by hand."""

    spec: Spec
    source: ClipSource
    clips: tuple[int, ...]
    """Source indices."""
    views: tuple[int, int]
    """Of each clip, in time and in the picture."""
    folder: RunFolder
    step: int
    """Of the checkpoint."""
    precision: str
    limits: StreamLimits
    target: Path
    """The folder that gets the predictions."""
