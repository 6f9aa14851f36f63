"""Joint heat maps and Eq. 1, beyond the literal reference of test_fidelity.py."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from starlab.models.heatmaps import CellGrid, joint_heatmaps, pool_joints, visible_joints

inside = st.floats(0, 1)
cells = st.integers(1, 20)
sigmas = st.floats(1e-3, 10)


def one_joint(x: float, y: float, confidence: float = 1.0) -> Tensor:
    return torch.tensor([[[[x, y, confidence]]]], dtype=torch.float64)


def every_pixel(height: int, width: int) -> CellGrid:
    """A map whose cells are the pixels."""
    return CellGrid((height, width), (height, width), stride_px=1)


@settings(deadline=None, max_examples=50)
@given(inside, inside, cells, cells, sigmas)
def test_a_visible_joints_map_sums_to_one_for_any_sigma_and_peaks_at_the_joints_cell(
    x: float, y: float, height: int, width: int, sigma: float
) -> None:
    heatmap = joint_heatmaps(one_joint(x, y), every_pixel(height, width), sigma)[0, 0, 0]
    assert abs(heatmap.sum().item() - 1) < 1e-9
    row, column = min(int(y * height), height - 1), min(int(x * width), width - 1)
    assert heatmap[row, column] >= heatmap.max() * (1 - 1e-6)


@settings(deadline=None, max_examples=50)
@given(inside, inside, cells, cells, sigmas, st.sampled_from(["sum", "peak"]))
def test_mirroring_the_joint_mirrors_its_map(x: float, y: float, height: int, width: int, sigma: float, norm: str) -> None:
    heatmap = joint_heatmaps(one_joint(x, y), every_pixel(height, width), sigma, norm)  # type: ignore[arg-type]
    mirrored = joint_heatmaps(one_joint(1 - x, y), every_pixel(height, width), sigma, norm)  # type: ignore[arg-type]
    torch.testing.assert_close(mirrored, heatmap.flip(-1), rtol=1e-6, atol=1e-9)


def test_a_map_of_peak_norm_is_one_where_a_joint_falls_on_a_cells_centre() -> None:
    heatmap = joint_heatmaps(one_joint(2.5 / 7, 0.5 / 4), every_pixel(4, 7), 0.7, "peak")[0, 0, 0]
    assert heatmap.max() == heatmap[0, 2] == 1


@pytest.mark.parametrize("size_px", [48, 50])
@pytest.mark.parametrize("stride_px", [4, 8])
def test_a_joint_on_the_pixel_that_a_cell_looks_at_is_at_that_cells_centre(stride_px: int, size_px: int) -> None:
    cells = math.ceil(size_px / stride_px)
    grid = CellGrid((cells, cells), (size_px, size_px), stride_px)
    for row, column in ((0, 0), (2, 1), (cells - 1, 3)):
        x, y = ((stride_px * cell + 0.5) / size_px for cell in (column, row))
        heatmap = joint_heatmaps(one_joint(x, y), grid, 0.7, "peak")[0, 0, 0]
        assert heatmap[row, column] == pytest.approx(1, abs=1e-12)


def test_an_invisible_an_outside_and_a_nan_joint_have_an_all_zero_map() -> None:
    nan = float("nan")
    rows = [[0.5, 0.5, 0.0], [-0.01, 0.5, 1], [0.5, 1.01, 1], [nan, 0.5, 1], [0.5, nan, 1], [0.5, 0.5, nan]]
    joints = torch.tensor(rows)[None, None]
    assert not joint_heatmaps(joints, every_pixel(5, 6), 0.7, "sum").any()
    assert not joint_heatmaps(joints, every_pixel(5, 6), 0.7, "peak").any()
    assert not visible_joints(joints).any()


def test_joints_on_the_frames_edges_are_visible() -> None:
    joints = torch.tensor([[0.0, 0, 1], [1, 1, 1], [0, 1, 0.01]])[None, None]
    assert visible_joints(joints).all()


def test_a_sum_norm_map_reads_a_constant_feature_map_as_that_constant_whatever_sigma() -> None:
    local_map = torch.full((2, 3, 4, 6, 5), 2.5)
    joints = torch.cat([torch.rand(2, 4, 7, 2), torch.ones(2, 4, 7, 1)], -1)
    for sigma in (0.1, 0.7, 5.0):
        pooled = pool_joints(local_map, joint_heatmaps(joints, every_pixel(6, 5), sigma))
        torch.testing.assert_close(pooled, torch.full((2, 4, 7, 3), 2.5))


def test_a_joint_reads_the_features_at_its_own_place_time_and_clip() -> None:
    local_map = torch.randn(2, 3, 4, 6, 5)
    x, y = torch.tensor(3.5 / 5), torch.tensor(1.5 / 6)
    joints = torch.stack([x, y, torch.tensor(1.0)]).expand(2, 4, 1, 3)
    pooled = pool_joints(local_map, joint_heatmaps(joints, every_pixel(6, 5), 1e-3))
    torch.testing.assert_close(pooled[:, :, 0], local_map[:, :, :, 1, 3].transpose(1, 2))
