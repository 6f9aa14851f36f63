"""What the driver hands to every worker of a run, and the run's arithmetic of steps and epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from starlab.experiments.spec import Spec
from starlab.pipelines.clip import ClipSource
from starlab.pipelines.splits import Parts
from starlab.pipelines.stream import StreamLimits
from starlab.platform.run_folder import RunFolder
from starlab.platform.storage import Storage, open_storage


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
    def checkpoints(self) -> Storage:
        """Where its checkpoints lie."""
        return checkpoint_storage(self.spec, self.folder)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self._steps(self.spec.train.epochs)

    @property
    def selection(self) -> tuple[int, ...]:
        """The clips that pick the best checkpoint: test clips only where the spec says so."""
        return self.parts.test if self.spec.data.select == "test" else self.parts.validation

    def evaluation_steps(self) -> dict[int, int]:
        """Steps done → epochs begun, at every look at the selection clips; the last step is always one."""
        config = self.spec.train
        epochs = range(config.evaluate_every_epochs, math.ceil(config.epochs), config.evaluate_every_epochs)
        return {self._steps(epoch): epoch for epoch in epochs} | {self.total_steps: math.ceil(config.epochs)}

    def _steps(self, epochs: float) -> int:
        return math.ceil(epochs * len(self.parts.train) / self.spec.train.global_batch)


def checkpoint_storage(spec: Spec, folder: RunFolder) -> Storage:
    """Where the checkpoints of a run lie: in its own folder, unless the spec says elsewhere."""
    elsewhere = spec.resources.checkpoints
    return open_storage(folder.checkpoints if elsewhere is None else f"{elsewhere.rstrip('/')}/{folder.path.name}")
