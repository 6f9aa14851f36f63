"""Chooses one precision for all ranks of a run. A resumed run keeps it."""

from __future__ import annotations

import torch

from starlab.platform.recipe.precision import choose_precision
from starlab.platform.recipe.ranks import Ranks
from starlab.platform.runs.records import Choices
from starlab.platform.worker.tasks import TrainTask


def agree_on_precision(task: TrainTask, ranks: Ranks, device: torch.device) -> str:
    """Return the spec's precision. For "auto", rank 0 chooses one and stores it with the run."""
    wanted = task.spec.train.precision
    if wanted != "auto":
        return wanted
    chosen = ranks.first(task.folder.read(Choices))
    if chosen is None:
        chosen = ranks.first(Choices(precision=choose_precision(device)))
        if ranks.rank == 0:
            task.folder.write(chosen)
    return chosen.precision
