"""People stay apart: who swaps places in the estimator's list, crosses, hides or flickers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlab.pipelines.skeletons import COCO, Skeleton
from starlab.platform.pose.clothes import NUM_COLORS, clothes_colors
from starlab.platform.pose.tracker import MAX_LOST_FRAMES, Track, fill_between, pack_tracks, track_people

FRAMES = 40
RED, BLUE = (0.8, 0.1, 0.1) * 2, (0.1, 0.1, 0.8) * 2
POSE = np.random.default_rng(0).uniform(0, 0.2, (17, 2))


def walk(start: float, speed: float, num_frames: int = FRAMES, seed: int = 0) -> np.ndarray:
    """(T, 17, 3): a person of 0.2 frames' size who walks to the right by `speed` frames a frame."""
    joints = np.full((num_frames, 17, 3), 0.9, np.float32)
    noise = np.random.default_rng(seed).normal(0, 0.002, (num_frames, 17, 2))
    joints[..., :2] = POSE + noise + np.stack([start + speed * np.arange(num_frames), np.full(num_frames, 0.3)], 1)[:, None]
    return joints


def tracked(
    *people: np.ndarray, colors: tuple[tuple[float, ...], ...] = (), seed: int | None = None, every: int = 1
) -> list[Track]:
    joints = np.stack(people, axis=1)
    worn = np.full((*joints.shape[:2], NUM_COLORS), np.nan, np.float32)
    for person, color in enumerate(colors):
        worn[:, person] = color
    if seed is not None:
        rng = np.random.default_rng(seed)
        for frame in range(len(joints)):
            order = rng.permutation(joints.shape[1])
            joints[frame], worn[frame] = joints[frame, order], worn[frame, order]
    return track_people(joints[::every], worn[::every], np.arange(len(joints))[::every])


def is_of(track: Track, person: np.ndarray) -> bool:
    return all((body == person[frame]).all() for frame, body in zip(track.frames, track.joints, strict=True))


@given(seed=st.integers(0, 200))
def test_people_whose_order_changes_in_every_frame_keep_their_tracks(seed: int) -> None:
    people = [walk(0.0, 0.004, seed=1), walk(0.3, -0.002, seed=2), walk(0.7, 0.001, seed=3)]
    tracks = tracked(*people, seed=seed)
    assert [len(track.frames) for track in tracks] == [FRAMES] * 3
    assert all(any(is_of(track, person) for track in tracks) for person in people)


@pytest.mark.parametrize("colors", [(), (RED, BLUE)])
def test_people_who_walk_through_each_other_keep_their_tracks(colors: tuple[tuple[float, ...], ...]) -> None:
    people = [walk(0.2, 0.012, seed=1), walk(0.6, -0.012, seed=2)]
    tracks = tracked(*people, colors=colors, seed=3)
    assert len(tracks) == 2
    assert all(any(is_of(track, person) for track in tracks) for person in people)


def test_someone_else_who_appears_where_a_person_was_lost_is_told_by_the_clothes() -> None:
    first, second = walk(0.3, 0.0, seed=1), walk(0.32, 0.0, seed=2)
    first[15:], second[:18] = 0, 0
    assert len(tracked(first, second, colors=(RED, BLUE))) == 2
    assert len(tracked(first, second, colors=(RED, RED))) == 1


def test_a_person_who_was_hidden_goes_on_where_the_speed_led_and_after_too_long_is_another() -> None:
    person = walk(0.0, 0.006, num_frames=90)
    person[20 : 20 + MAX_LOST_FRAMES - 1] = 0
    [track] = tracked(person)
    assert len(track.frames) == 90 - (MAX_LOST_FRAMES - 1)
    person[20 : 20 + MAX_LOST_FRAMES + 1] = 0
    assert len(tracked(person)) == 2


def test_a_body_found_twice_is_one_person_and_a_flicker_is_nobody() -> None:
    person, ghost = walk(0.2, 0.0, seed=1), walk(0.7, 0.0, seed=2)
    again = person + np.float32([0.003, 0, -0.2])
    ghost[2:] = 0
    [track] = tracked(person, again, ghost)
    assert is_of(track, person)


def test_a_video_of_two_frames_keeps_its_people() -> None:
    assert len(tracked(walk(0.2, 0.0, num_frames=2))) == 1


def test_frames_between_estimated_ones_are_on_a_straight_line_and_gaps_stay_gaps() -> None:
    person = walk(0.0, 0.01, num_frames=31)
    person[12:16] = 0
    person[0, 5] = 0
    [track] = tracked(person, every=3)
    filled = fill_between(track, 3)
    assert [frame for frame in range(31) if frame not in filled.frames] == [10, 11, 12, 13, 14, 15, 16, 17]
    found = dict(zip(filled.frames, filled.joints, strict=True))
    np.testing.assert_allclose(found[4], person[3] + (person[6] - person[3]) / 3, atol=1e-6)
    assert (found[1][5] == 0).all()
    assert (found[1][6] != 0).all()
    np.testing.assert_array_equal(found[3], person[3])


def test_the_most_confident_person_is_in_the_first_slot_and_slots_are_used_again() -> None:
    faint, early, late = walk(0.1, 0.0, seed=1), walk(0.5, 0.0, seed=2), walk(0.8, 0.0, seed=3)
    faint[..., 2] = 0.2
    early[18:], late[:22] = 0, 0
    tracks = tracked(faint, early, late)
    joints, ids = pack_tracks(tracks, FRAMES, 17)
    assert joints.shape == (FRAMES, 2, 17, 3)
    np.testing.assert_array_equal(joints[:18, 0], early[:18])
    np.testing.assert_array_equal(joints[22:, 0], late[22:])
    np.testing.assert_array_equal(joints[:, 1], faint)
    assert (ids[18:22, 0] == -1).all()
    assert len({*ids[:18, 0], *ids[22:, 0], *ids[:, 1]}) == 3


def test_a_video_without_people_has_no_slot() -> None:
    tracks = tracked(np.zeros((5, 17, 3), np.float32))
    joints, ids = pack_tracks(tracks, 5, 17)
    assert (joints.shape, ids.shape) == ((5, 0, 17, 3), (5, 0))


def test_clothes_are_the_colours_between_shoulders_hips_and_knees() -> None:
    frame = np.zeros((100, 100, 3), np.uint8)
    frame[20:40, 40:60], frame[40:60, 40:60] = (255, 0, 0), (0, 0, 255)
    body = np.zeros((1, 17, 3), np.float32)
    for name, y in (("shoulder", 0.22), ("hip", 0.39), ("knee", 0.58)):
        for side, x in (("left", 0.55), ("right", 0.45)):
            body[0, COCO.joints.index(f"{side}_{name}")] = (x, y, 0.8)
    np.testing.assert_allclose(clothes_colors(frame, body, COCO)[0], [1, 0, 0, 0, 0, 1], atol=0.06)
    body[0, COCO.joints.index("left_knee")] = 0
    assert np.isnan(clothes_colors(frame, body, COCO)[0]).tolist() == [False] * 3 + [True] * 3
    other = Skeleton(name="stick", joints=("top", "bottom"), mirror=(0, 1), bones=((0, 1),))
    assert np.isnan(clothes_colors(frame, body[:, :2], other)).all()
