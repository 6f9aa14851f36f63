"""Joints made worse on purpose: how much, and always the same."""

import dataclasses

import numpy as np

from starlab.pipelines.joint_noise import add_joint_noise
from starlab.pipelines.sources import DataConfig

CONFIG = DataConfig(dataset="synthetic_bystanders", size=64)
PICKED = list(range(0, 40, 2))


def noisy(jitter_px: float, drop: float, clip_id: str = "0001", picked: list[int] = PICKED) -> np.ndarray:
    joints = np.full((len(picked), 1, 13, 3), 0.5, np.float32)
    config = dataclasses.replace(CONFIG, joint_jitter_px=jitter_px, joint_drop=drop)
    add_joint_noise(joints, config, clip_id, 40, picked)
    return joints


def test_without_the_settings_joints_stay_as_they_are() -> None:
    assert (noisy(0, 0) == 0.5).all()


def test_the_noise_has_its_deviation_in_pixels_and_drops_its_share() -> None:
    moves = np.concatenate([(noisy(2, 0, str(clip))[..., :2] - 0.5) * 64 for clip in range(30)])
    assert abs(moves.std() - 2) < 0.05
    assert abs(moves.mean()) < 0.05
    missing = np.concatenate([noisy(0, 0.3, str(clip))[..., 2] == 0 for clip in range(30)])
    assert abs(missing.mean() - 0.3) < 0.02
    assert (noisy(0, 1)[..., 2] == 0).all()


def test_the_noise_of_a_frame_is_the_same_whatever_else_is_picked_or_set() -> None:
    np.testing.assert_array_equal(noisy(2, 0.3, picked=[4, 8]), noisy(2, 0.3)[[2, 4]])
    np.testing.assert_array_equal(noisy(2, 0)[..., :2], noisy(2, 0.3)[..., :2])
    assert (noisy(2, 0) != noisy(2, 0, "0002")).any()


def test_a_joint_that_is_moved_out_of_the_frame_is_missing() -> None:
    far = noisy(200, 0)
    outside = ((far[..., :2] < 0) | (far[..., :2] >= 1)).any(-1)
    assert 0.3 < outside.mean() < 1
    assert (far[..., 2] == np.where(outside, 0, 0.5)).all()
