"""Mixup: blends each clip of a batch with its neighbour (arXiv:1710.09412)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from starlab.models.heatmaps import visible_joints


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
