import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starlab.pipelines.augment import AugmentConfig, fit
from starlab.pipelines.clip import DecodedClip
from starlab.pipelines.sampling import View

MIRROR = (0, 2, 1)
"""A head, which is its own partner, and two hands."""
STANDARD = AugmentConfig(mode="standard", crop_area=(0.3, 1.0), flip=True)


def spots_clip(places: np.ndarray, height: int = 90, width: int = 120) -> DecodedClip:
    """Three frames, black but for a soft spot under each joint: red under 0, green under 1, blue under 2."""
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    distances = [(columns - x * width) ** 2 + (rows - y * height) ** 2 for x, y in places]
    frame = np.stack([255 * np.exp(-d / (2 * 2.5**2)) for d in distances], axis=-1).astype(np.uint8)
    joints = np.concatenate([places, np.ones((3, 1))], axis=1)
    return DecodedClip([frame] * 3, np.repeat(joints[None, None], 3, axis=0).astype(np.float32))


def random_clip(height: int, width: int, frames: int = 2) -> DecodedClip:
    rng = np.random.default_rng(height * 1000 + width)
    pictures = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(frames)]
    return DecodedClip(pictures, rng.random((frames, 2, 3, 3), dtype=np.float32))


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    size_px=st.integers(40, 150),
    places=st.lists(st.tuples(st.floats(0.05, 0.95), st.floats(0.05, 0.95)), min_size=3, max_size=3),
)
def test_a_spot_stays_under_its_joint_to_within_a_pixel_through_crop_flip_and_resize(seed, size_px, places):
    clip = spots_clip(np.array(places))
    frames, joints = fit(clip, size_px, STANDARD, MIRROR, np.random.default_rng(seed))
    # A spot belongs to a hand, and a mirrored picture has that hand on the other side.
    flipped = _is_flipped(clip, size_px, seed)
    for channel in range(3):
        joint = MIRROR[channel] if flipped else channel
        x, y, confidence = joints[1, 0, joint]
        if not (confidence and 0.1 < x < 0.9 and 0.1 < y < 0.9):
            continue  # a spot that the crop cuts has its middle elsewhere
        weights = frames[1, :, :, channel].astype(float)
        rows, columns = np.mgrid[0:size_px, 0:size_px] + 0.5
        assert (weights * columns).sum() / weights.sum() == pytest.approx(x * size_px, abs=1)
        assert (weights * rows).sum() / weights.sum() == pytest.approx(y * size_px, abs=1)


def _is_flipped(clip, size_px, seed):
    """Told from the joints: without the flip, the same draws leave joint 0 where it is not mirrored."""
    unflipped = AugmentConfig(mode="standard", crop_area=STANDARD.crop_area, flip=False)
    _, joints = fit(clip, size_px, STANDARD, MIRROR, np.random.default_rng(seed))
    _, reference = fit(clip, size_px, unflipped, MIRROR, np.random.default_rng(seed))
    return not np.array_equal(joints[..., :2], reference[..., :2])


def test_half_of_the_clips_are_flipped_and_their_hands_swapped():
    clip = spots_clip(np.array([(0.5, 0.2), (0.3, 0.6), (0.6, 0.7)]))
    whole = AugmentConfig(mode="standard", crop_area=(1, 1), crop_aspect=(1, 1), flip=True)
    plain_frames, plain = fit(clip, 60, whole, MIRROR, None)
    flips = 0
    for seed in range(200):
        frames, joints = fit(clip, 60, whole, MIRROR, np.random.default_rng(seed))
        if np.array_equal(frames, plain_frames):
            np.testing.assert_array_equal(joints, plain)
        else:
            flips += 1
            np.testing.assert_array_equal(frames, plain_frames[:, :, ::-1])
            np.testing.assert_allclose(joints[0, 0, 1], [1 - 0.6, 0.7, 1], rtol=1e-6)
            np.testing.assert_allclose(joints[0, 0, 2], [1 - 0.3, 0.6, 1], rtol=1e-6)
    assert 70 < flips < 130


@pytest.mark.parametrize(("height", "width"), [(90, 120), (56, 56), (30, 40)])
def test_evaluation_resizes_the_whole_frame_whatever_the_augmentation(height, width):
    clip = random_clip(height, width)
    shrinks = height >= 56
    expected = [
        cv2.resize(frame, (56, 56), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR) for frame in clip.frames
    ]
    for config, rng in ((STANDARD, None), (AugmentConfig(), np.random.default_rng(0)), (AugmentConfig(), None)):
        frames, joints = fit(clip, 56, config, MIRROR, rng)
        np.testing.assert_array_equal(frames, expected)
        np.testing.assert_allclose(joints, clip.joints, atol=1e-6)
        assert (frames.dtype, joints.dtype) == (np.uint8, np.float32)


@settings(max_examples=60)
@given(st.integers(20, 200), st.integers(20, 200), st.integers(0, 2**32), st.floats(0, 0.9))
def test_any_draw_gives_the_shapes_asked_for_and_joints_outside_are_not_seen(height, width, seed, color_jitter):
    config = AugmentConfig(mode="standard", flip=True, color_jitter=color_jitter)
    clip = random_clip(height, width)
    before = clip.joints.copy()
    frames, joints = fit(clip, 32, config, MIRROR, np.random.default_rng(seed))
    assert frames.shape == (2, 32, 32, 3)
    assert joints.shape == clip.joints.shape
    outside = ((joints[..., :2] < 0) | (joints[..., :2] >= 1)).any(axis=-1)
    assert (joints[outside, 2] == 0).all()
    assert (joints[~outside, 2] > 0).all()
    np.testing.assert_array_equal(clip.joints, before)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.floats(0.2, 1), st.floats(0, 0.8), st.floats(1, 2))
def test_a_crop_has_the_area_and_the_aspect_that_the_limits_allow(seed, low, extra, aspect):
    config = AugmentConfig(mode="standard", crop_area=(low, min(1.0, low + extra)), crop_aspect=(1 / aspect, aspect))
    corners = np.array([[[[0, 0, 1], [1, 1, 1], [0.5, 0.5, 1]]]], np.float32)
    clip = DecodedClip([np.zeros((300, 400, 3), np.uint8)], corners)
    _, joints = fit(clip, 32, config, MIRROR, np.random.default_rng(seed))
    across, down = 1 / (joints[0, 0, 1, :2] - joints[0, 0, 0, :2])
    if (across, down) != (1, 1):  # whole frame: also the way out when nothing fits
        assert config.crop_area[0] - 0.01 <= across * down <= config.crop_area[1] + 0.01
        assert config.crop_aspect[0] - 0.02 <= across / down <= config.crop_aspect[1] + 0.02


def test_one_draw_holds_for_all_frames_and_depends_on_the_random_numbers_alone():
    config = AugmentConfig(mode="standard", flip=True, color_jitter=0.4)
    clip = random_clip(80, 60)
    still = DecodedClip([clip.frames[0]] * 5, np.repeat(clip.joints[:1], 5, axis=0))
    results = [fit(still, 48, config, MIRROR, np.random.default_rng(seed)) for seed in (3, 3, 4)]
    for frames, joints in results:
        assert all(np.array_equal(frame, frames[0]) for frame in frames)
        assert all(np.array_equal(joint, joints[0]) for joint in joints)
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert not np.array_equal(results[0][0], results[2][0])


def test_color_jitter_scales_brightness_and_contrast_by_no_more_than_its_strength():
    ramp = np.repeat(np.arange(40, 120, dtype=np.uint8)[None, :, None], 80, axis=0).repeat(3, axis=2)
    clip = DecodedClip([ramp], np.zeros((1, 1, 3, 3), np.float32))
    config = AugmentConfig(mode="standard", crop_area=(1, 1), crop_aspect=(1, 1), color_jitter=0.3)
    means, spreads = [], []
    for seed in range(100):
        frames, _ = fit(clip, 80, config, MIRROR, np.random.default_rng(seed))
        means.append(frames.mean() / ramp.mean())
        spreads.append(np.std(frames) / np.std(ramp))
    assert 0.69 < min(means) < 0.8
    assert 1.2 < max(means) < 1.31
    assert 0.49 - 0.02 < min(spreads) < 0.75
    assert 1.3 < max(spreads) < 1.69 + 0.02


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", "strong"),
        ("crop_area", (0.0, 1.0)),
        ("crop_area", (0.9, 0.5)),
        ("crop_area", (0.5, 1.5)),
        ("crop_aspect", (1.5, 2.0)),
        ("crop_aspect", (0.0, 2.0)),
        ("color_jitter", 1.0),
        ("color_jitter", -0.1),
    ],
)
def test_a_setting_outside_its_limits_is_an_error_that_names_it(field, value):
    with pytest.raises(ValueError, match=f"^{field} must be"):
        AugmentConfig(**{field: value})


def test_all_corners_of_the_draws_are_reached():
    """A crop may touch each side of the frame."""
    clip = DecodedClip([np.zeros((12, 12, 3), np.uint8)], np.zeros((1, 1, 3, 3), np.float32))
    config = AugmentConfig(mode="standard", crop_area=(0.25, 0.25), crop_aspect=(1, 1))
    offsets = set()
    for seed in range(400):
        _, joints = fit(clip, 12, config, MIRROR, np.random.default_rng(seed))
        offsets.add(tuple((-joints[0, 0, 0, :2] * 6).round().astype(int).tolist()))
    assert offsets == set(itertools.product(range(7), repeat=2))


@settings(max_examples=60)
@given(places=st.integers(1, 5), place=st.integers(0, 4), share=st.floats(0.3, 1.0), tall=st.booleans())
def test_test_windows_show_the_spot_where_its_joint_is_and_reach_both_ends_of_the_longer_side(places, place, share, tall):
    place = min(place, places - 1)
    height, width = (150, 90) if tall else (90, 150)
    middle = np.full((3, 2), 0.5)
    clip = spots_clip(middle, height, width)
    config = AugmentConfig(mode="standard", flip=True, color_jitter=0.5, test_crop=share)
    frames, joints = fit(clip, 80, config, MIRROR, None, View(place=place, places=places))
    x, y, confidence = joints[0, 0, 0]
    if confidence and 0.15 < x < 0.85 and 0.15 < y < 0.85:
        weights = frames[0].astype(float).sum(axis=-1)
        rows, columns = np.mgrid[0:80, 0:80] + 0.5
        assert (weights * columns).sum() / weights.sum() == pytest.approx(x * 80, abs=1)
        assert (weights * rows).sum() / weights.sum() == pytest.approx(y * 80, abs=1)
    along = y if tall else x
    expected = 0.5 if places == 1 else (0.5 - (1 - share) * place / (places - 1)) / share
    assert along == pytest.approx(expected, abs=0.03)
    assert (x if tall else y) == pytest.approx(0.5, abs=0.03)


def test_the_frames_go_where_they_are_wanted_and_are_the_same() -> None:
    clip = random_clip(70, 100)
    config = AugmentConfig(mode="standard", flip=True, color_jitter=0.4)
    for seed in range(6):
        frames, joints = fit(clip, 48, config, MIRROR, np.random.default_rng(seed))
        room = np.full((3, 2, 48, 48, 3), 7, np.uint8)
        written, same = fit(clip, 48, config, MIRROR, np.random.default_rng(seed), out=room[1])
        assert written.base is room
        assert (room[1] == frames).all()
        assert (joints == same).all()
        assert (room[[0, 2]] == 7).all()
