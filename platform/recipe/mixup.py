"""Mixes each clip of a batch with its neighbour, and their labels by the same shares.

Mixup blends pixels and joints (Zhang et al., arXiv:1710.09412, 2018). Temporal CutMix replaces a span of the clip's frames and
their joints by the neighbour's (CutMix, Yun et al., arXiv:1905.04899, 2019; in time as VideoMix does, arXiv:2012.03457, 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from starlab.experiments.sections import TrainConfig
from starlab.models.heatmaps import visible_joints


@dataclass(frozen=True, slots=True)
class Mixing:
    """How the clips of one step are mixed."""

    share: float
    """Weight λ of a clip's own label, in [0.5, 1]; its neighbour's label has 1 - λ. 1 mixes nothing."""
    span: tuple[int, int] | None = None
    """First frame, and the one behind the last, that come from the neighbour (CutMix); None blends all frames (mixup)."""

    def __call__(self, frames: Tensor, joints: Tensor, other_frames: Tensor, other_joints: Tensor) -> tuple[Tensor, Tensor]:
        """Mix each clip and its neighbour; shapes as those of `mix`."""
        if self.span is None:
            return mix(frames, joints, other_frames, other_joints, self.share)
        return splice(frames, other_frames, self.span), splice(joints, other_joints, self.span)


def draw_mixing(config: TrainConfig, step: int, num_frames: int) -> Mixing:
    """Draw how a step's clips of `num_frames` frames are mixed. It is the same on every rank.

    With both `train.mixup` and `train.cutmix`, each step does one of the two, with equal chances.
    """
    if not config.cutmix:
        return Mixing(mixing_share(config.mixup, config.seed, step))
    dice = np.random.default_rng([config.seed, step, 1905])
    if config.mixup and dice.random() < 0.5:
        return Mixing(mixing_share(config.mixup, config.seed, step))
    share = float(dice.beta(config.cutmix, config.cutmix))
    length = min(round(min(share, 1 - share) * num_frames), num_frames // 2)
    first = int(dice.integers(num_frames - length + 1))
    return Mixing(1 - length / num_frames, (first, first + length))


def splice(clips: Tensor, others: Tensor, span: tuple[int, int]) -> Tensor:
    """Replace the frames of a span by those of each clip's neighbour. (B, T, …) twice → the same shape."""
    first, after = span
    return torch.cat([clips[:, :first], others[:, first:after], clips[:, after:]], dim=1)


def mixing_share(alpha: float, seed: int, step: int) -> float:
    """Draw λ for a step from Beta(α, α), folded to [0.5, 1]. It is the same on every rank, and 1 if `alpha` is 0."""
    if alpha == 0:
        return 1.0
    share = float(np.random.default_rng([seed, step, 1710]).beta(alpha, alpha))
    return max(share, 1 - share)


def mix(frames: Tensor, joints: Tensor, other_frames: Tensor, other_joints: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Blend each clip, with weight λ, and its neighbour, with weight 1 - λ.

    A joint that is visible in only one of the two clips keeps its position in that clip.

    Args:
        frames: uint8 (B, T, H, W, 3).
        joints: float32 (B, T, M, N, 3): x, y, confidence.
        other_frames: Frames of each clip's neighbour, like `frames`.
        other_joints: Joints of each clip's neighbour, like `joints`.
        share: λ in [0.5, 1].

    Returns:
        Frames and joints of the same shapes and dtypes.
    """
    blended = torch.lerp(other_frames.float(), frames.float(), share).round_().to(torch.uint8)
    # Visible, not merely above 0 in confidence: two joints outside of their frames could meet inside and become one.
    mine, theirs = visible_joints(joints)[..., None], visible_joints(other_joints)[..., None]
    weight = torch.where(mine & theirs, share, torch.where(theirs & ~mine, 0.0, 1.0))
    place = torch.lerp(other_joints[..., :2], joints[..., :2], weight.expand_as(joints[..., :2]))
    confidence = torch.lerp(other_joints[..., 2:], joints[..., 2:], share)
    return blended, torch.cat([place, confidence], dim=-1)
