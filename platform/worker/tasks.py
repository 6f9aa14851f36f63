"""The task that the driver passes to every worker: a training or an evaluation of a run."""

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
    """One training: its spec, its data and its folder."""

    spec: Spec
    source: ClipSource
    parts: Parts
    folder: RunFolder
    limits: StreamLimits
    is_trial: bool = False
    """Whether this is a trial of a search. A trial does not evaluate the test part, and ends early if asked to."""
    queues: bool = False
    """Whether time in which others use the room for its workers does not count as waiting for room."""
    fence: int = 0
    """Number of the lease under which the run trains (see lease.py). Once a newer lease exists, nothing more is written."""

    @property
    def steps(self) -> StepPlan:
        """The steps at which the run ends, evaluates and writes checkpoints."""
        return StepPlan(self.spec.train, len(self.parts.train))

    @property
    def selection(self) -> tuple[int, ...]:
        """Source indices of the clips that are evaluated during training: the validation part unless `data.select` is "test".

        Empty if nothing was held out.
        """
        return self.parts.test if self.spec.data.select == "test" else self.parts.validation

    def plan(self, rank: int, world: int, first_step: int) -> TrainPlan:
        """Return the part of the training stream for one rank, from step `first_step` on."""
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
    """One evaluation of a run's checkpoint by `starlab evaluate`."""

    spec: Spec
    source: ClipSource
    clips: tuple[int, ...]
    """Source indices."""
    views: tuple[int, int]
    """Number of views of each clip in time, and of spatial crops of each view."""
    folder: RunFolder
    step: int
    """Step of the checkpoint."""
    precision: str
    limits: StreamLimits
    target: Path
    """Folder to which the predictions are written."""
