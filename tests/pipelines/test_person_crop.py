"""The crop to people and the rotation: pixels and joints stay together, and the box holds everybody."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlab.pipelines.augment import LEAST_BOX, AugmentConfig, fit, person_box
from starlab.pipelines.clip import DecodedClip
from starlab.pipelines.sampling import View

MIRROR = (0, 1, 2)
PEOPLE = AugmentConfig(person_crop=0.25)
PLACES = st.lists(st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)), min_size=1, max_size=6)


def joints_at(places: list[tuple[float, float]], frames: int = 2) -> np.ndarray:
    """(T, 1, N, 3), all seen."""
    joints = np.ones((frames, 1, len(places), 3), np.float32)
    joints[..., :2] = places
    return joints


def spots_clip(places: list[tuple[float, float]], height: int = 180, width: int = 240) -> DecodedClip:
    """Two frames, black but for a soft spot of one colour under each of three joints."""
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    distances = [(columns - x * width) ** 2 + (rows - y * height) ** 2 for x, y in places]
    frame = np.stack([255 * np.exp(-d / (2 * 2.5**2)) for d in distances], axis=-1).astype(np.uint8)
    return DecodedClip([frame] * 2, joints_at(places))


def assert_spots_are_under_joints(frames: np.ndarray, joints: np.ndarray, within_px: float) -> int:
    size, checked = frames.shape[1], 0
    rows, columns = np.mgrid[0:size, 0:size] + 0.5
    for channel in range(3):
        x, y, confidence = joints[0, 0, channel]
        if confidence and 0.15 < x < 0.85 and 0.15 < y < 0.85:
            weights = frames[0, :, :, channel].astype(float)
            assert (weights * columns).sum() / weights.sum() == pytest.approx(x * size, abs=within_px)
            assert (weights * rows).sum() / weights.sum() == pytest.approx(y * size, abs=within_px)
            checked += 1
    return checked


@given(PLACES, st.integers(20, 400), st.integers(20, 400), st.floats(0, 1))
def test_the_box_holds_every_joint_and_is_square_where_the_frame_allows(places, width, height, margin):
    left, top, across, down = person_box(joints_at(places), width, height, margin)
    assert 0 <= left <= width - across
    assert 0 <= top <= height - down
    assert across == down or min(across, down) == min(width, height)
    assert min(across, down) >= min(LEAST_BOX * min(width, height), 1)
    for x, y in places:
        assert left - 1 <= x * width <= left + across + 1
        assert top - 1 <= y * height <= top + down + 1


def test_the_box_holds_all_bodies_in_all_frames_and_ignores_joints_that_were_not_seen():
    joints = np.zeros((2, 2, 2, 3), np.float32)
    joints[0, 0, 0], joints[1, 1, 1] = (0.25, 0.375, 1), (0.625, 0.5, 0.3)
    joints[0, 1, 0], joints[1, 0, 0] = (0.9, 0.9, 0), (1.4, 0.5, 1)  # not seen; outside of the frame
    assert person_box(joints, 200, 100, 0) == (50, 6, 75, 75)


def test_a_clip_without_joints_keeps_the_whole_frame():
    clip = DecodedClip([np.full((90, 120, 3), 7, np.uint8)], np.zeros((1, 1, 3, 3), np.float32))
    whole, _ = fit(clip, 32, AugmentConfig(), MIRROR, None)
    cropped, _ = fit(clip, 32, PEOPLE, MIRROR, None)
    assert np.array_equal(whole, cropped)


@given(st.lists(st.tuples(st.floats(0.3, 0.6), st.floats(0.3, 0.6)), min_size=3, max_size=3), st.integers(0, 99))
def test_joints_stay_on_their_pixels_through_a_crop_to_people_in_training_and_evaluation(places, seed):
    clip = spots_clip(places)
    train = dataclasses.replace(PEOPLE, mode="standard", crop_area=(0.6, 1.0))
    for config, rng in ((PEOPLE, None), (train, np.random.default_rng(seed))):
        assert_spots_are_under_joints(*fit(clip, 96, config, MIRROR, rng), within_px=1)


def test_people_are_larger_after_the_crop():
    clip = spots_clip([(0.4, 0.4), (0.5, 0.45), (0.45, 0.6)])
    _, whole = fit(clip, 96, AugmentConfig(), MIRROR, None)
    frames, cropped = fit(clip, 96, PEOPLE, MIRROR, None)
    assert np.ptp(cropped[0, 0, :, 1]) > 2.5 * np.ptp(whole[0, 0, :, 1])
    assert assert_spots_are_under_joints(frames, cropped, 1) == 3


def test_views_of_the_picture_lie_within_the_box_of_the_people():
    clip = spots_clip([(0.4, 0.4), (0.5, 0.45), (0.45, 0.6)])
    config = dataclasses.replace(PEOPLE, test_crop=0.8)
    xs = [fit(clip, 96, config, MIRROR, None, View(place=place, places=3))[1][0, 0, 0, 0] for place in range(3)]
    assert xs == sorted(xs, reverse=True)
    assert len(set(xs)) == 3


@given(st.lists(st.tuples(st.floats(0.3, 0.7), st.floats(0.3, 0.7)), min_size=3, max_size=3), st.integers(0, 99))
def test_joints_turn_with_their_pixels(places, seed):
    config = AugmentConfig(mode="standard", crop_area=(1, 1), crop_aspect=(1, 1), rotation_degrees=45)
    assert_spots_are_under_joints(*fit(spots_clip(places), 96, config, MIRROR, np.random.default_rng(seed)), within_px=1)


def test_a_quarter_turn_is_that_of_the_picture():
    rng = np.random.default_rng(0)
    clip = DecodedClip([rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)], joints_at([(0.25, 0.5)], 1))
    config = AugmentConfig(mode="standard", crop_area=(1, 1), crop_aspect=(1, 1), rotation_degrees=90)

    class Extreme(np.random.Generator):
        def uniform(self, low=0.0, high=1.0, size=None):
            return high

    frames, joints = fit(clip, 32, config, MIRROR, Extreme(np.random.PCG64(0)))
    assert np.array_equal(frames[0], np.rot90(clip.frames[0]))
    assert joints[0, 0, 0, :2] == pytest.approx([0.5, 0.75], abs=1e-6)


def test_an_evaluation_does_not_turn_the_picture():
    clip = spots_clip([(0.4, 0.4), (0.5, 0.45), (0.45, 0.6)])
    turning = AugmentConfig(mode="standard", rotation_degrees=90)
    assert np.array_equal(fit(clip, 32, turning, MIRROR, None)[0], fit(clip, 32, AugmentConfig(), MIRROR, None)[0])
