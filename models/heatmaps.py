"""Gaussian heat maps of joints on the grid of a feature map (§3.1), and the features they select (Eq. 1).

Letters: B clips, T frames, N joints (of all bodies), C channels, H W cells of the feature map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from starlab.models.config import HeatmapNorm


def visible_joints(joints: Tensor) -> Tensor:
    """(B, T, N) bool: True for a positive confidence and a place inside the frame. NaN counts as not visible."""
    x, y, confidence = joints.unbind(-1)
    return (confidence > 0) & (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)


@dataclass(frozen=True, slots=True)
class CellGrid:
    """Where the cells of a feature map are in the frame: cell (i, j) is centred on pixel (stride · i, stride · j)."""

    size_cells: tuple[int, int]
    """Height and width of the map."""
    size_px: tuple[int, int]
    """Height and width of the frame."""
    stride_px: int
    """Distance of neighbouring cells."""


def joint_heatmaps(joints: Tensor, grid: CellGrid, sigma_cells: float, norm: HeatmapNorm = "sum") -> Tensor:
    """One Gaussian per joint, sampled at the centres of the cells; all zero for a joint that is invisible or out of frame.

    Args:
        joints: (B, T, N, 3): x, y as fractions of the frame (0 and 1 are its edges; the centre of pixel p of n is
            (p + 0.5) / n), confidence.
        grid: The cells of the map.
        sigma_cells: Standard deviation of the Gaussian, in cells.
        norm: "sum" scales a map so that its cells add up to 1; "peak" so that it is 1 where a joint falls on a cell's centre.

    Returns:
        (B, T, N, H, W), in the joints' dtype, values in [0, 1].
    """
    visible = visible_joints(joints)
    x, y = joints[..., 0], joints[..., 1]
    row, column = ((fraction * size_px - 0.5) / grid.stride_px for fraction, size_px in zip((y, x), grid.size_px, strict=True))
    height, width = grid.size_cells
    # where() and not a product: 0 · NaN would be NaN
    factor_y = torch.where(visible[..., None], _gaussian(row, height, sigma_cells, norm), 0)
    factor_x = torch.where(visible[..., None], _gaussian(column, width, sigma_cells, norm), 0)
    return factor_y[..., :, None] * factor_x[..., None, :]


def _gaussian(place_cells: Tensor, cells: int, sigma_cells: float, norm: HeatmapNorm) -> Tensor:
    """The factor of a separable Gaussian along one axis: (...), 0 at the first cell's centre → (..., cells)."""
    distance = torch.arange(cells, dtype=place_cells.dtype, device=place_cells.device) - place_cells[..., None]
    exponent = -0.5 * (distance / sigma_cells).square()
    # A softmax is the Gaussian divided by its sum; unlike that quotient it never becomes 0 / 0 for a small sigma.
    return exponent.softmax(-1) if norm == "sum" else exponent.exp()


def pool_joints(local_map: Tensor, heatmaps: Tensor) -> Tensor:
    """Eq. 1: per joint and channel, Σ_ij F_c(i, j) · h_n(i, j). Returns (B, T, N, C).

    One batched matrix product (N × HW) · (HW × C) per frame. Contracting the two factors of the Gaussian one after the
    other would avoid the N × H × W maps but creates the larger N × H × C, and took eleven times as long.
    """
    return torch.einsum("bcthw,btnhw->btnc", local_map, heatmaps.to(local_map.dtype))


def present_bodies(joints: Tensor) -> Tensor:
    """(B, M) bool: whether the confidence of any joint (B, T, M, N, 3) of a body is above 0 in any frame."""
    return (joints[..., 2] > 0).any(3).any(1)
