"""A video becomes joints through any estimator: which frames it sees, what it must return, and how the joints look."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from starlab.pipelines.skeletons import COCO
from starlab.platform.errors import UserError
from starlab.platform.pose.estimate import FRAMES_AT_ONCE, estimate_clip
from starlab.platform.pose.health import clip_health, joint_health


def video(num_frames: int) -> Iterator[np.ndarray]:
    """Frames whose pixels are the frame's number."""
    for number in range(num_frames):
        yield np.full((40, 60, 3), number, np.uint8)


class Walker:
    """Finds one person whose place is the frame's number / 100, and notes which frames it saw."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        numbers = frames[:, 0, 0, 0].tolist()
        self.seen += numbers
        joints = np.full((len(frames), 1, 17, 3), 0.8, np.float32)
        joints[..., :2] = np.random.default_rng(0).uniform(0, 0.5, (17, 2))
        joints[..., 0] += np.array(numbers)[:, None, None] / 100
        return joints


def test_every_frame_is_estimated_in_small_batches() -> None:
    walker, told = Walker(), []
    found = estimate_clip(video(19), walker, COCO, on_frames=told.append)
    assert walker.seen == list(range(19))
    assert told == [FRAMES_AT_ONCE, 2 * FRAMES_AT_ONCE, 19]
    assert (found.joints.shape, found.height_px, found.width_px) == ((19, 1, 17, 3), 40, 60)
    assert (found.track_ids == 0).all()


@pytest.mark.parametrize(("num_frames", "seen"), [(10, [0, 4, 8, 9]), (9, [0, 4, 8]), (1, [0])])
def test_frames_between_are_interpolated_and_the_last_is_always_estimated(num_frames: int, seen: list[int]) -> None:
    walker = Walker()
    found = estimate_clip(video(num_frames), walker, COCO, every=4)
    assert walker.seen == seen
    np.testing.assert_allclose(found.joints, estimate_clip(video(num_frames), Walker(), COCO).joints, atol=1e-6)


@pytest.mark.parametrize(
    ("joints", "says"),
    [
        (np.zeros((3, 17, 3)), r"shape \(3, 17, 3\) for 3 frames; it must be \(3, people, 17, 3\) for the skeleton coco"),
        (np.zeros((3, 1, 13, 3)), r"must be \(3, people, 17, 3\)"),
        (np.full((3, 1, 17, 3), 0.5) * [1, 1, 4], r"confidences from 2 to 2; they must be in \[0, 1\]"),
        (np.full((3, 1, 17, 3), 0.5) * [400, 300, 1], r"places up to 200: pixels\?"),
    ],
)
def test_an_estimator_that_returns_something_else_is_told_what_is_wrong(joints: np.ndarray, says: str) -> None:
    with pytest.raises(UserError, match=says):
        estimate_clip(video(3), lambda _: joints, COCO)


def test_joints_that_are_not_numbers_were_not_seen_and_the_number_of_people_may_change() -> None:
    def estimator(frames: np.ndarray) -> np.ndarray:
        people = 1 if frames[0, 0, 0, 0] == 0 else 3
        joints = np.zeros((len(frames), people, 17, 3), np.float32)
        joints[:, 0] = Walker()(frames)[:, 0]
        joints[:, 0, 3, 0] = np.nan
        return joints

    found = estimate_clip(video(12), estimator, COCO)
    assert found.joints.shape == (12, 1, 17, 3)
    assert (found.joints[:, :, 3] == 0).all()
    assert np.isfinite(found.joints).all()


def standing(num_frames: int = 20, people: int = 1, height: float = 0.5) -> np.ndarray:
    joints = np.full((num_frames, people, 17, 3), 0.5, np.float32)
    joints[..., 1] = np.linspace(0.2, 0.2 + height, 17)
    joints[..., 0] = (0.1 + 0.3 * np.arange(people))[:, None]
    joints[..., 2] = np.linspace(0.3, 0.9, 17)
    return joints


def test_the_health_of_good_joints_names_nothing() -> None:
    report = joint_health([("a", standing(), None), ("b", standing(people=2), None)])
    assert report.problems() == []
    text = "\n".join(report.lines())
    assert "2 clips, 40 frames, 1.5 people a frame, at most 2" in text
    assert "people are 50% of the frame's height" in text
    assert "confidence 0.30 to 0.90, median 0.60; 0.0% of the joints" in text
    assert "0 jumps from one person to another, 0 sudden changes" in text


def test_clips_without_people_with_gaps_and_with_small_people_are_named_the_worst_first() -> None:
    gap, larger_gap = standing(), standing()
    gap[:5], larger_gap[:9] = 0, 0
    clips = {"gap": gap, "larger_gap": larger_gap, "none": standing(people=0), "far": standing(height=0.05)}
    problems = joint_health((name, joints, None) for name, joints in clips.items()).problems()
    assert problems == [
        "nobody was found in 1 clip: none",
        "nobody in 20% or more of the frames of 2 clips: larger_gap, gap",
        "people are below 10% of the frame's height in 1 clip: far; a larger --size finds more",
    ]


def test_people_who_swap_slots_and_bodies_that_jump_in_size_are_counted() -> None:
    swapped = standing(people=2)
    swapped[10:] = swapped[10:, ::-1]
    assert clip_health("a", swapped).jumps == 2
    ids = np.repeat(np.array([[0, 1]], np.int32), 20, axis=0)
    assert clip_health("a", swapped, ids).jumps == 2
    ids[10:] = (2, 3)  # other people have the slots then
    assert clip_health("a", swapped, ids).jumps == 0
    jumping = standing()
    jumping[::2, :, :, 1] *= 0.5
    found = clip_health("b", jumping)
    assert (found.jumps, found.sudden) == (0, 19)
    assert joint_health([("a", swapped, None), ("b", jumping, None)]).problems() == [
        "people seem to be mixed up in 1 clip: a",
        "people change their height suddenly in 1 clip: b",
    ]


def test_an_estimator_without_confidences_is_named() -> None:
    joints = standing()
    joints[..., 2] = 1
    assert joint_health([("a", joints, None)]).problems() == ["every confidence is the same: does the estimator give none?"]


def test_a_file_in_which_nobody_is_has_lines_all_the_same() -> None:
    lines = joint_health([("a", standing(people=0), None)]).lines()
    assert lines[1] == "nobody     in 20 frames (100.0%)"
    assert lines[2:] == ["LOOK       nobody was found in 1 clip: a"]
