"""Batches: parts of them, and clips ordered by the bodies in them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from starlab.pipelines.batch import Batch


def batch(present: list[set[int]], bodies: int = 3) -> Batch:
    """Clips of two frames and two joints, numbered in every array. One joint of one frame is seen of each body present."""
    count = len(present)
    joints = np.zeros((count, 2, bodies, 2, 3), np.float32)
    for clip, there in enumerate(present):
        joints[clip, :, :, :, 0] = clip
        for body in there:
            joints[clip, body % 2, body, 1, 2] = 0.5
    frames = np.zeros((count, 2, 4, 4, 3), np.uint8) + np.arange(count, dtype=np.uint8)[:, None, None, None, None]
    numbers = np.arange(count)
    return Batch(frames, joints, 10 + numbers, 100 + numbers, 1000 + numbers, (("x", "damaged"),))


@given(st.lists(st.sets(st.integers(0, 2)), min_size=1, max_size=12))
def test_clips_are_ordered_by_their_bodies_and_every_array_follows(present: list[set[int]]) -> None:
    ordered, runs = batch(present).by_bodies()
    assert runs is not None
    assert sum(clips for clips, _ in runs) == len(present)
    assert len({bodies for _, bodies in runs}) == len(runs)  # one run for each
    order = ordered.labels - 10
    assert sorted(order) == list(range(len(present)))
    for array in (ordered.clips - 100, ordered.positions - 1000, ordered.frames[:, 0, 0, 0, 0], ordered.joints[:, 0, 0, 0, 0]):
        assert np.array_equal(array, order)
    bodies = [set(bodies) for clips, bodies in runs for _ in range(clips)]
    assert bodies == [present[clip] for clip in order]
    assert ordered.unreadable == (("x", "damaged"),)


def test_clips_of_one_body_stay_as_they_are() -> None:
    clips = batch([{0}, set(), {0}], bodies=1)
    assert clips.by_bodies() == (clips, None)


def test_a_confidence_that_is_not_a_number_is_no_body() -> None:
    clips = batch([{0}, {0, 1}])
    clips.joints[0, :, 1, :, 2] = np.nan
    assert clips.by_bodies()[1] == ((1, (0,)), (1, (0, 1)))


def test_a_slice_of_a_batch_shares_its_memory_and_indices_copy() -> None:
    clips = batch([{0}] * 4)
    assert np.shares_memory(clips.take(slice(1, 3)).frames, clips.frames)
    assert clips.take(np.array([-1, 0])).labels.tolist() == [13, 10]
