"""Joints that the model finds by itself: soft heat maps from the shared CNN (`StarConfig.pose` "learned").

A small head predicts one map per joint on the cells of the local map. A softmax over the cells makes it a distribution, which
takes the place of the annotated Gaussian in Eq. 1, so the loss of the actions reaches the head, too. Its own loss is the
divergence from that Gaussian, for joints that are annotated. docs/learned_pose.md explains the choices.

Letters: B clips, T frames, M bodies, N joints per body, C channels, H W cells of the local map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from starlab.models.heatmaps import CellGrid, joint_heatmaps, present_bodies, visible_joints

LEAST_WIDTH = 32
"""Channels inside the head, where the local map has fewer."""


@dataclass(frozen=True, slots=True)
class FoundPose:
    """What the head found in a batch of clips."""

    log_maps: Tensor
    """(B, T, M·N, H, W) float32: logarithms of the soft heat maps, each of which sums to 1."""
    presence: Tensor | None
    """(B, M) float32: log-odds that there is such a body; None for a model of one body, which is always there."""

    def present(self) -> Tensor:
        """(B, M) bool: which bodies there are, by the more likely answer."""
        if self.presence is None:
            return self.log_maps.new_ones(
                (self.log_maps.shape[0], 1), dtype=torch.bool
            )  # `len` would fix the batch in an export
        return self.presence > 0

    def joints(self, grid: CellGrid, num_joints: int, present: Tensor) -> Tensor:
        """The joints in the form of annotated ones: (B, T, M, N, 3) float32.

        x and y are the means of the soft heat map as fractions of the frame, and differentiable. The confidence is the
        largest value of the map. A body that is not `present`, (B, M), has zeros.
        """
        maps = self.log_maps.exp()
        (height, width), (height_px, width_px) = grid.size_cells, grid.size_px
        # sums and not products of matrices, which autocast would round
        x = (maps.sum(-2) * _centres(width, width_px, grid.stride_px, maps)).sum(-1)
        y = (maps.sum(-1) * _centres(height, height_px, grid.stride_px, maps)).sum(-1)
        joints = torch.stack([x, y, maps.detach().amax((-2, -1))], dim=-1)
        joints = rearrange(joints, "b t (m n) c -> b t m n c", n=num_joints)
        return torch.where(present[:, None, :, None, None], joints, 0)


def _centres(cells: int, size_px: int, stride_px: int, like: Tensor) -> Tensor:
    """The centres of the cells along one axis as fractions of the frame, (cells,)."""
    return (torch.arange(cells, device=like.device, dtype=like.dtype) * stride_px + 0.5) / size_px


class PoseHead(nn.Module):
    """Predicts the soft heat maps of all joints from the local map, with the global map for context.

    A cell of the local map sees 51 px around it, too few to tell one body from another; the global map sees the frame.
    """

    def __init__(self, local_channels: int, global_channels: int, *, max_bodies: int, num_joints: int) -> None:
        super().__init__()
        width = max(LEAST_WIDTH, local_channels)
        self.local = nn.Conv3d(local_channels, width, (1, 3, 3), padding=(0, 1, 1))
        self.context = nn.Conv3d(global_channels, width, 1)
        self.mix = nn.Conv3d(width, width, (1, 3, 3), padding=(0, 1, 1))
        self.maps = nn.Conv3d(width, max_bodies * num_joints, 1)
        self.presence = nn.Linear(width, max_bodies) if max_bodies > 1 else None
        for conv in (self.local, self.context, self.mix):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, conv.bias))
        nn.init.normal_(self.maps.weight, std=0.01)
        nn.init.zeros_(cast(Tensor, self.maps.bias))

    def forward(self, local_map: Tensor, global_map: Tensor) -> FoundPose:
        """Local map (B, C, T, H, W) and global map (B, C', T, h, w) → `FoundPose`."""
        context = enlarge(self.context(global_map), local_map.shape[3], local_map.shape[4])
        hidden = nn.functional.relu(self.local(local_map) + context)
        hidden = nn.functional.relu(self.mix(hidden))
        scores = at_least_single(rearrange(self.maps(hidden), "b j t h w -> b t j (h w)"))
        log_maps = scores.log_softmax(-1).unflatten(-1, tuple(local_map.shape[3:]))
        presence = None if self.presence is None else at_least_single(self.presence(hidden.mean((2, 3, 4))))
        return FoundPose(log_maps, presence)


def enlarge(maps: Tensor, height: int, width: int) -> Tensor:
    """Interpolate maps (B, C, T, h, w) linearly to (B, C, T, `height`, `width`).

    As products with two small matrices, because the gradient of `interpolate` is not deterministic on a GPU.
    """

    def weights(cells: int, more: int) -> Tensor:
        one_hot = torch.eye(cells, device=maps.device, dtype=maps.dtype)[None]
        return nn.functional.interpolate(one_hot, size=more, mode="linear")[0]

    down, across = weights(maps.shape[3], height), weights(maps.shape[4], width)
    return torch.einsum("bcthw,hy,wx->bctyx", maps, down, across)


def at_least_single(values: Tensor) -> Tensor:
    """Values in float32, or in float64 if they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def pose_losses(found: FoundPose, joints: Tensor, grid: CellGrid, sigma_cells: float) -> Tensor:
    """The loss of each clip's pose, (B,), in nats.

    Per joint it is the divergence of the soft heat map from the Gaussian of Eq. 1, averaged over the joints of a clip that
    are annotated; a joint or a body that is not counts nothing, and a clip without any has loss 0. For a model of several
    bodies, the binary cross-entropy of their presence is added.

    Args:
        found: What the head found.
        joints: (B, T, M, N, 3), annotated, in the order in which the head should find the bodies (`left_to_right`).
        grid: The cells of the local map.
        sigma_cells: Standard deviation of the Gaussian, in cells.
    """
    flat = rearrange(joints, "b t m n c -> b t (m n) c")
    target = joint_heatmaps(flat, grid, sigma_cells, "sum")
    divergence = (torch.xlogy(target, target) - target * found.log_maps).sum((-2, -1))
    visible = visible_joints(flat)
    losses = torch.where(visible, divergence, 0).sum((1, 2)) / visible.sum((1, 2)).clamp(min=1)
    if found.presence is None:
        return losses
    there = present_bodies(joints).to(found.presence.dtype)
    return losses + nn.functional.binary_cross_entropy_with_logits(found.presence, there, reduction="none").mean(1)


def left_to_right(joints: Tensor) -> Tensor:
    """Order the bodies of each clip by the mean x of their visible joints, absent ones last: (B, T, M, N, 3).

    Annotations list bodies in an order that the picture does not show, so a head could not learn which map is whose.
    """
    visible = visible_joints(joints)
    x = torch.where(visible, joints[..., 0], 0).sum((1, 3)) / visible.sum((1, 3)).clamp(min=1)
    order = torch.where(present_bodies(joints), x, torch.inf).argsort(dim=1, stable=True)
    return joints.gather(2, order[:, None, :, None, None].expand_as(joints))
