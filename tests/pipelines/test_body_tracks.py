"""People who change their slots are followed; slots that are consistent stay as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlab.pipelines.body_tracks import follow_bodies
from starlab.pipelines.estimated_joints import EstimatedJoints, write_joints
from starlab.pipelines.penn_action import PennActionSource
from starlab.pipelines.skeletons import COCO

FRAMES = 30


def people(*starts: float, speed: float = 0.0, size: float = 0.2) -> np.ndarray:
    """(T, M, 17, 3): one person per start, with a pose of its own, walking to the right by `speed` a frame."""
    rng = np.random.default_rng(0)
    joints = np.zeros((FRAMES, len(starts), 17, 3), np.float32)
    for person, start in enumerate(starts):
        pose = rng.uniform(0, size, (17, 2))
        for frame in range(FRAMES):
            joints[frame, person, :, :2] = (
                pose + np.array([start + speed * frame * (-1) ** person, 0.3]) + rng.normal(0, 0.003, (17, 2))
            )
    joints[..., 2] = 0.9
    return joints


def shuffled(joints: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([bodies[rng.permutation(len(bodies))] for bodies in joints])


@given(seed=st.integers(0, 200), count=st.integers(2, 4))
def test_people_whose_slots_swap_are_followed(seed: int, count: int) -> None:
    joints = people(*np.linspace(0.05, 0.75, count).tolist(), speed=0.002)
    mixed = shuffled(joints, seed)
    followed = follow_bodies(mixed)
    order = [int(np.abs(joints[0] - body).sum(axis=(1, 2)).argmin()) for body in followed[0]]
    np.testing.assert_array_equal(followed, joints[:, order])


def test_a_person_who_is_not_seen_for_a_while_keeps_the_slot_and_the_others_do_not_move_up() -> None:
    joints = people(0.1, 0.6)
    listed = joints.copy()
    listed[8:14, 0], listed[8:14, 1] = joints[8:14, 1], 0  # the first is lost, so the second is listed first
    expected = joints.copy()
    expected[8:14, 0] = 0
    np.testing.assert_array_equal(follow_bodies(listed), expected)


@pytest.mark.parametrize(
    "joints",
    [
        people(0.1, 0.6),
        people(0.1),
        people(0.1, 0.5, speed=0.015),  # they pass each other
        people(0.1, 0.6) * (np.arange(FRAMES) % 3 > 0)[:, None, None, None],
        np.zeros((FRAMES, 3, 17, 3), np.float32),
    ],
    ids=["two", "one", "passing", "flickering", "nobody"],
)
def test_consistent_slots_stay_as_they_are(joints: np.ndarray) -> None:
    assert follow_bodies(joints) is joints


def test_a_set_of_one_body_gets_one_person_from_slots_that_swap(small_source: PennActionSource, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    poses = rng.uniform(0, 0.2, (2, 17, 2)).astype(np.float32)

    def clip(num_frames: int) -> np.ndarray:
        joints = np.full((num_frames, 2, 17, 3), 0.9, np.float32)
        joints[:, 0, :, :2], joints[:, 1, :, :2] = poses[0] + 0.1, poses[1] + 0.6
        joints[:, 1, :, 2] = 0.6
        swap = np.arange(num_frames) % 2 == 1
        joints[swap] = joints[swap][:, ::-1]
        return joints

    write_joints(tmp_path / "j.parquet", ((row.clip_id, clip(row.num_frames)) for row in small_source.clips))
    source = EstimatedJoints(small_source, tmp_path / "j.parquet", COCO)
    row = source.clips[0]
    read = source.read(row, range(row.num_frames), 48).joints
    assert read.shape[1] == 1
    np.testing.assert_array_equal(read[:, 0, :, :2], np.broadcast_to(poses[0] + np.float32(0.1), (row.num_frames, 17, 2)))
    assert (read[..., 2] == np.float32(0.9)).all()
