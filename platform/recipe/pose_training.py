"""Training of a model that finds the joints by itself: which joints Eq. 1 takes, and the loss of the pose."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from starlab.models.star import StarTransformer
from starlab.models.tokens import Bodies


class PoseTraining(nn.Module):
    """The training pass of a model with `model.pose` "learned", as one module that DDP can wrap."""

    def __init__(self, model: StarTransformer, teacher_forcing: float) -> None:
        """`teacher_forcing`: share of the clips whose Eq. 1 takes the annotated joints, drawn again at every step."""
        super().__init__()
        self.model = model
        self.teacher_forcing = teacher_forcing

    def forward(self, frames: Tensor, joints: Tensor, bodies: Bodies | None) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and the loss of each clip's pose (B,), in nats."""
        forced = torch.rand(len(frames), device=frames.device) < self.teacher_forcing
        return self.model.forward_taught(frames, joints, bodies, forced)
