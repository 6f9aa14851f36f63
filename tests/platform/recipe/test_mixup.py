import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from starlab.experiments.sections import TrainConfig
from starlab.models.heatmaps import visible_joints
from starlab.platform.recipe.mixup import mix, mixing_share


@given(st.floats(0.05, 5), st.integers(0, 2**31), st.integers(0, 10**6))
def test_the_share_is_a_function_of_the_step_and_at_least_a_half(alpha: float, seed: int, step: int) -> None:
    share = mixing_share(alpha, seed, step)
    assert 0.5 <= share <= 1
    assert share == mixing_share(alpha, seed, step)


def test_mixup_is_off_by_default() -> None:
    assert mixing_share(TrainConfig().mixup, 1, 2) == 1


def test_clips_are_blended_with_their_neighbour_pixel_by_pixel_and_joint_by_joint() -> None:
    frames = torch.tensor([100, 200], dtype=torch.uint8).reshape(2, 1, 1, 1, 1).expand(2, 1, 2, 2, 3)
    both, one, none = [0.2, 0.4, 1.0], [0.6, 0.8, 0.5], [0.0, 0.0, 0.0]
    joints = torch.tensor([[both, one, none], [one, none, none]]).reshape(2, 1, 1, 3, 3)
    mixed, points = mix(frames, joints, frames.roll(1, dims=0), joints.roll(1, dims=0), 0.75)
    assert mixed.dtype == torch.uint8
    assert mixed[0].unique().tolist() == [125]
    assert mixed[1].unique().tolist() == [175]
    assert points[0, 0, 0, 0].tolist() == pytest.approx([0.75 * 0.2 + 0.25 * 0.6, 0.75 * 0.4 + 0.25 * 0.8, 0.875])
    assert points[0, 0, 0, 1].tolist() == pytest.approx([0.6, 0.8, 0.375])  # not visible in the neighbour
    assert points[1, 0, 0, 1].tolist() == pytest.approx([0.6, 0.8, 0.125])  # visible only in the neighbour
    assert points[:, 0, 0, 2].tolist() == [none, none]


def test_two_joints_outside_of_their_frames_do_not_become_one_inside() -> None:
    frames = torch.zeros(2, 1, 2, 2, 3, dtype=torch.uint8)
    left, right = [-0.5, 0.5, 0.9], [1.5, 0.5, 0.9]  # their blend at 0.5 would be at (0.5, 0.5)
    joints = torch.tensor([left, right]).reshape(2, 1, 1, 1, 3)
    _, points = mix(frames, joints, frames.flip(0), joints.flip(0), 0.5)
    assert not visible_joints(points.flatten(1, 3)).any()


def test_a_joint_outside_of_the_frame_stays_where_the_neighbour_shows_it() -> None:
    frames = torch.zeros(2, 1, 2, 2, 3, dtype=torch.uint8)
    joints = torch.tensor([[1.5, 0.5, 0.9], [0.25, 0.5, 0.8]]).reshape(2, 1, 1, 1, 3)
    _, points = mix(frames, joints, frames.flip(0), joints.flip(0), 0.75)
    assert points[0, 0, 0, 0, :2].tolist() == pytest.approx([0.25, 0.5])
