"""Tests temporal CutMix: what the clips of a step take from their neighbours, and with what weight of the labels."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from starlab.experiments.sections import TrainConfig
from starlab.platform.recipe.mixup import Mixing, draw_mixing, mixing_share, splice


@given(st.floats(0.05, 5), st.integers(0, 2**31), st.integers(0, 10**6), st.integers(1, 32))
def test_the_span_is_a_function_of_the_step_and_at_most_half_the_clip_and_the_labels_follow_it(
    alpha: float, seed: int, step: int, num_frames: int
) -> None:
    config = TrainConfig(cutmix=alpha, seed=seed)
    mixing = draw_mixing(config, step, num_frames)
    assert mixing == draw_mixing(config, step, num_frames)
    assert mixing.span is not None
    first, after = mixing.span
    assert 0 <= first <= after <= num_frames
    assert after - first <= num_frames / 2
    assert mixing.share == 1 - (after - first) / num_frames


def test_spans_reach_both_ends_of_a_clip_and_differ_in_length() -> None:
    spans = [draw_mixing(TrainConfig(cutmix=1.0), step, 8).span for step in range(300)]
    assert {span[0] for span in spans if span} >= {0, 1, 6, 7}
    assert {span[1] - span[0] for span in spans if span} == {0, 1, 2, 3, 4}


def test_a_span_of_frames_and_its_joints_come_from_the_neighbour_together() -> None:
    frames = torch.arange(2, dtype=torch.uint8).reshape(2, 1, 1, 1, 1).expand(2, 4, 2, 2, 3)
    joints = torch.arange(2.0).reshape(2, 1, 1, 1, 1).expand(2, 4, 1, 3, 3)
    mixed, points = Mixing(0.5, (1, 3))(frames, joints, frames.flip(0), joints.flip(0))
    assert mixed.dtype == torch.uint8
    assert mixed[:, :, 0, 0, 0].tolist() == [[0, 1, 1, 0], [1, 0, 0, 1]]
    assert torch.equal(points[:, :, 0, 0, 0], mixed[:, :, 0, 0, 0].float())


def test_an_empty_span_changes_nothing() -> None:
    clips = torch.rand(2, 4, 3)
    assert torch.equal(splice(clips, clips.flip(0), (2, 2)), clips)


def test_without_cutmix_a_step_is_mixed_as_before() -> None:
    config = TrainConfig(mixup=0.4, seed=3)
    assert [draw_mixing(config, step, 8) for step in range(5)] == [Mixing(mixing_share(0.4, 3, step)) for step in range(5)]
    assert draw_mixing(TrainConfig(), 7, 8) == Mixing(1.0)


def test_with_both_about_half_of_the_steps_are_of_each_kind() -> None:
    config = TrainConfig(mixup=0.4, cutmix=1.0)
    drawn = [draw_mixing(config, step, 8) for step in range(400)]
    spliced = sum(mixing.span is not None for mixing in drawn)
    assert 160 <= spliced <= 240
    blended = [(step, mixing) for step, mixing in enumerate(drawn) if mixing.span is None]
    assert all(mixing.share == mixing_share(0.4, config.seed, step) for step, mixing in blended)
