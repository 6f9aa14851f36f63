"""Chooses one precision for all ranks of a run. A resumed run keeps it."""

from __future__ import annotations

import torch
from torch import nn

from starlab.platform.recipe.precision import choose_precision
from starlab.platform.recipe.ranks import Ranks
from starlab.platform.runs.records import Choices
from starlab.platform.worker.tasks import TrainTask


def agree_on_precision(task: TrainTask, ranks: Ranks, model: nn.Module, clips: int, device: torch.device) -> str:
    """Return the spec's precision. For "auto", rank 0 chooses one for steps of `clips` clips and stores it with the run."""
    wanted = task.spec.train.precision
    if wanted != "auto":
        return wanted
    chosen = ranks.first(task.folder.read(Choices))
    if chosen is None:
        data, config = task.spec.data, task.spec.model
        frames = torch.zeros(clips, data.frames, data.size, data.size, 3, dtype=torch.uint8, device=device)
        joints = torch.full((clips, data.frames, config.max_bodies, config.num_joints, 3), 0.5, device=device)
        chosen = ranks.first(Choices(precision=choose_precision(model, frames, joints)))
        if ranks.rank == 0:
            task.folder.write(chosen)
    return chosen.precision
