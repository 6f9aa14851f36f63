"""A training's looks at clips that it does not train on: the selection part now and then, the test part at the end."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from starlab.platform.errors import StopRunError
from starlab.platform.recipe.precision import AUTOCAST
from starlab.platform.recipe.ranks import Ranks
from starlab.platform.recipe.training_state import TrainingState
from starlab.platform.worker.evaluate import Evaluation, evaluate
from starlab.platform.worker.job import TrainJob
from starlab.platform.worker.run_writer import RunRecord


class Looks:
    """One rank's share of each look; all ranks learn the whole."""

    def __init__(self, job: TrainJob, ranks: Ranks, state: TrainingState, device: torch.device, record: RunRecord) -> None:
        self._job, self._ranks, self._state, self._device, self._record = job, ranks, state, device, record

    def at(self, clips: tuple[int, ...], part: str, times: int = 1, places: int = 1, *, averaged: bool = False) -> Evaluation:
        """Predict every clip once, with the averaged weights where the run keeps them.

        Args:
            clips: source indices.
            part: what to call them.
            times: views of a clip in time.
            places: views of each of these in the picture.
            averaged: the model holds the averaged weights already.

        Raises:
            StopRunError: too many of the clips cannot be read; all that cannot be are listed.
        """
        evaluation = self._predict(clips, times, places, averaged)
        missing = len(clips) - len(evaluation.clips)
        self._state.unreadable.update(evaluation.unreadable)
        limit = self._job.spec.data.max_unreadable_fraction
        if missing > limit * len(clips) or missing == len(clips):
            self._record.list_unreadable(self._state.unreadable)
            raise StopRunError(
                f"{missing} of {len(clips)} {part} clips could not be read, more than data.max_unreadable_fraction ({limit}) "
                f"allows; all are listed in {self._job.folder.path / 'unreadable.json'}"
            )
        return evaluation

    def _predict(self, clips: tuple[int, ...], times: int, places: int, averaged: bool) -> Evaluation:
        state, spec = self._state, self._job.spec
        self._ranks.share_buffers(state.model)
        average = state.average
        with average.in_place() if average and not averaged else nullcontext():
            return evaluate(
                state.model,
                self._job.source,
                spec.data,
                clips,
                times=times,
                places=places,
                ranks=self._ranks,
                device=self._device,
                limits=self._job.limits,
                batch=max(1, 2 * spec.train.global_batch // self._ranks.world),
                autocast=AUTOCAST[state.precision],
            )
