import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from starlab.experiments.sections import TrainConfig
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
