"""How near the joints that a model found are to the annotated ones.

Letters: B clips, T frames, M bodies, N joints.
"""

from __future__ import annotations

import torch
from torch import Tensor

from starlab.models.heatmaps import visible_joints
from starlab.models.pose_head import left_to_right
from starlab.platform.recipe.metrics import PCK_DISTANCES


def joint_hits(found: Tensor, joints: Tensor) -> Tensor:
    """Count the joints that were found, clip by clip.

    Compared are the joints that are visible in a frame in which their body has a box of some size: two or more visible
    joints in different places. A joint of a body that the model does not see counts as missed.

    Args:
        found: (B, T, M, N, 3), bodies from left to right.
        joints: The annotated ones, with bodies in any order.

    Returns:
        (B, 3) float32: joints within each distance of `PCK_DISTANCES`, and joints compared.
    """
    joints = left_to_right(joints)
    visible = visible_joints(joints)
    place = joints[..., :2]
    high = torch.where(visible[..., None], place, -torch.inf).amax(-2)
    low = torch.where(visible[..., None], place, torch.inf).amin(-2)
    box = (high - low).amax(-1)[..., None]  # of one joint 0, of none -inf
    compared = visible & (box > 0)
    distance = torch.linalg.vector_norm(found[..., :2] - place, dim=-1) / box
    seen = compared & (found[..., 2] > 0)
    counts = [(seen & (distance <= limit)).sum((1, 2, 3)) for limit in PCK_DISTANCES]
    return torch.stack([*counts, compared.sum((1, 2, 3))], dim=1).float()
