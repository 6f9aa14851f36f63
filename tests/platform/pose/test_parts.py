"""A long video is estimated in parts by several tasks, and the joints are those of one task."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise

import numpy as np
import pytest

from starlab.pipelines.skeletons import COCO
from starlab.platform.pose.estimate import FRAMES_AT_ONCE, estimate_clip, find_people, follow_people
from starlab.platform.pose.parts import LEAST_FRAMES, MOST_PARTS, NO_END, Part, parts_of
from starlab.platform.pose.progress import PoseProgress


def video(num_frames: int) -> Iterator[np.ndarray]:
    """Frames whose pixels are the frame's number."""
    for number in range(num_frames):
        yield np.full((40, 60, 3), number, np.uint8)


def smoothing(frames: np.ndarray) -> np.ndarray:
    """Two people in every second frame and one in the others; a place depends on all frames of the call."""
    numbers = frames[:, 0, 0, 0].astype(np.float32)
    joints = np.full((len(frames), 2, 17, 3), 0.8, np.float32)
    joints[..., :2] = np.random.default_rng(0).uniform(0, 0.2, (17, 2))
    joints[:, 1, :, 0] += 0.5
    joints[..., 1] += (numbers.mean() / 400 + numbers / 400)[:, None, None]
    joints[numbers.astype(int) % 2 == 1, 0] = 0
    return joints


@pytest.mark.parametrize(("every", "step", "num_frames"), [(1, 8, 61), (1, 24, 48), (3, 24, 61), (3, 48, 50)])
def test_parts_are_followed_as_one_video(every: int, step: int, num_frames: int) -> None:
    whole = estimate_clip(video(num_frames), smoothing, COCO, every)
    assert step % (FRAMES_AT_ONCE * every) == 0
    firsts = range(0, num_frames, step)
    parts = [
        find_people(
            islice(video(num_frames), first, first + step),
            smoothing,
            COCO,
            every,
            first=first,
            to_the_end=first == firsts[-1],
        )
        for first in firsts
    ]
    assert len(parts) > 1
    followed = follow_people(parts, COCO, every)
    np.testing.assert_array_equal(followed.joints, whole.joints)
    np.testing.assert_array_equal(followed.track_ids, whole.track_ids)


def test_a_video_is_divided_only_if_it_would_keep_one_worker_busy_alone() -> None:
    long = 10 * LEAST_FRAMES
    assert parts_of(7, long, 0.1, workers=2, every=1) == [Part(7)]
    assert parts_of(7, long, 1.0, workers=1, every=1) == [Part(7)]
    assert parts_of(7, 0, 1.0, workers=2, every=1) == [Part(7)]
    assert parts_of(7, 2 * LEAST_FRAMES - 1, 1.0, workers=2, every=1) == [Part(7)]
    assert len(parts_of(7, long, 1.0, workers=2, every=1)) == 2
    assert len(parts_of(7, 100 * long, 1.0, workers=99, every=1)) == MOST_PARTS


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("length", [4000, 4001, 4567])
def test_parts_cover_a_video_and_begin_where_a_group_begins(every: int, length: int) -> None:
    parts = parts_of(0, length, 1.0, workers=4, every=every)
    assert parts[0].first == 0
    assert parts[-1].end == NO_END
    assert all(one.end == other.first for one, other in pairwise(parts))
    assert all(part.first % (FRAMES_AT_ONCE * every) == 0 and part.first < length for part in parts)


def test_progress_says_the_time_that_is_left_once_it_is_known() -> None:
    def line(seconds_left: float | None, videos_done: int = 1) -> str:
        return PoseProgress(
            videos_done=videos_done,
            videos=2,
            frames_done=50,
            frames_per_second=10,
            videos_bad=0,
            seconds_left=seconds_left,
        ).line()

    assert line(3725.4) == "   1/2 videos  50 frames  10.0 frames/s  1:02:05 left"
    assert line(None) == "   1/2 videos  50 frames  10.0 frames/s"
    assert line(0.0, videos_done=2) == "   2/2 videos  50 frames  10.0 frames/s"
