"""One video's frames → its joints, person by person."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starlab.pipelines.skeletons import Skeleton
from starlab.platform.errors import UserError
from starlab.platform.pose.clothes import NUM_COLORS, clothes_colors
from starlab.platform.pose.tracker import fill_between, pack_tracks, track_people

Estimator = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Frames (T, H, W, 3), uint8, RGB → joints (T, M, N, 3), float32: x and y as fractions of the frame from its left and top edge,
and the confidence in [0, 1], 0 where a joint or a whole person was not seen. M may differ from call to call, and the people of
each frame may be in any order."""

FRAMES_AT_ONCE = 8
_FAR_OUTSIDE = 2.0
"""A place beyond this, in frames, is not a fraction of the frame."""


@dataclass(frozen=True, slots=True)
class ClipJoints:
    """The joints of one video."""

    joints: NDArray[np.float32]
    """(T, M, N, 3), as `clip.DecodedClip.joints`. The first slot holds the most confident person."""
    track_ids: NDArray[np.int32]
    """(T, M): which person is in the slot, counted from 0; -1 where nobody is."""
    height_px: int
    width_px: int
    """The size of the frames."""


@dataclass(frozen=True, slots=True)
class Found:
    """The bodies of some consecutive frames of a video, in any order, before their people are followed."""

    numbers: NDArray[np.int64]
    """(K,): which frames were estimated, counted from the beginning of the video, ascending."""
    joints: NDArray[np.float32]
    """(K, M, N, 3); 0 where nobody is."""
    colors: NDArray[np.float32]
    """(K, M, C): what they wear (`clothes`)."""
    num_frames: int
    """Of the video, up to the last of these frames."""
    height_px: int
    width_px: int


def estimate_clip(
    frames: Iterator[NDArray[np.uint8]],
    estimator: Estimator,
    skeleton: Skeleton,
    every: int = 1,
    on_frames: Callable[[int], None] = lambda _: None,
) -> ClipJoints:
    """Estimate the joints of a whole video and follow its people; see `find_people`."""
    return follow_people([find_people(frames, estimator, skeleton, every, on_frames)], skeleton, every)


def find_people(
    frames: Iterator[NDArray[np.uint8]],
    estimator: Estimator,
    skeleton: Skeleton,
    every: int = 1,
    on_frames: Callable[[int], None] = lambda _: None,
    *,
    first: int = 0,
    to_the_end: bool = True,
) -> Found:
    """Estimate the joints in consecutive frames of a video.

    Args:
        frames: The frames, (H, W, 3); at least one.
        estimator: Finds the joints.
        skeleton: The skeleton of its joints.
        every: 2 estimates every second frame and the last one; 1 estimates all.
        on_frames: Called with the number of frames read so far.
        first: Number of the first frame, a multiple of `FRAMES_AT_ONCE` × `every`, so that the estimator gets the frames in
            the same groups as if it had begun at the first frame of the video.
        to_the_end: Whether the last frame is the video's last one.

    Raises:
        UserError: the estimator returned something else than `Estimator` says.
        Exception: whatever reading a frame raises.
    """
    found: list[NDArray[np.float32]] = []
    worn: list[NDArray[np.float32]] = []
    numbers: list[int] = []
    batch: list[NDArray[np.uint8]] = []
    num_frames, last = first, None

    def estimate() -> None:
        people = _checked(estimator(np.stack(batch)), len(batch), skeleton)
        found.extend(people)
        worn.extend(clothes_colors(frame, bodies, skeleton) for frame, bodies in zip(batch, people, strict=True))
        batch.clear()
        on_frames(num_frames - first)

    for frame in frames:
        if num_frames % every == 0:
            batch.append(frame)
            numbers.append(num_frames)
        num_frames, last = num_frames + 1, frame
        if len(batch) == FRAMES_AT_ONCE:
            estimate()
    if last is None:
        raise ValueError("a video without frames")
    if to_the_end and numbers[-1] != num_frames - 1:
        batch.append(last)
        numbers.append(num_frames - 1)
    if batch:
        estimate()
    joints, colors = _of_one_shape(found, (len(skeleton.joints), 3), 0), _of_one_shape(worn, (NUM_COLORS,), np.nan)
    return Found(np.asarray(numbers, np.int64), joints, colors, num_frames, last.shape[0], last.shape[1])


def follow_people(parts: Sequence[Found], skeleton: Skeleton, every: int = 1) -> ClipJoints:
    """Make tracks of the bodies of a whole video, whose parts are in order."""
    numbers = np.concatenate([part.numbers for part in parts])
    joints = _of_one_shape([people for part in parts for people in part.joints], (len(skeleton.joints), 3), 0)
    colors = _of_one_shape([people for part in parts for people in part.colors], (NUM_COLORS,), np.nan)
    tracks = track_people(joints, colors, numbers)
    if every > 1:
        tracks = [fill_between(track, every) for track in tracks]
    packed, ids = pack_tracks(tracks, parts[-1].num_frames, len(skeleton.joints))
    return ClipJoints(packed, ids, parts[-1].height_px, parts[-1].width_px)


def _of_one_shape(frames: Sequence[NDArray[np.float32]], shape: tuple[int, ...], nobody: float) -> NDArray[np.float32]:
    """The people of all frames in one array, with `nobody` in the places that are left."""
    people = np.full((len(frames), max(len(bodies) for bodies in frames), *shape), nobody, np.float32)
    for place, bodies in enumerate(frames):
        people[place, : len(bodies)] = bodies
    return people


def _checked(joints: NDArray[np.float32], num_frames: int, skeleton: Skeleton) -> NDArray[np.float32]:
    """The joints in float32, with 0 for those that were not seen or are not numbers."""
    joints = np.asarray(joints, np.float32)
    num_joints = len(skeleton.joints)
    if joints.ndim != 4 or joints.shape[0] != num_frames or joints.shape[2:] != (num_joints, 3):
        raise UserError(
            f"the estimator returned an array of shape {joints.shape} for {num_frames} frames; it must be ({num_frames}, "
            f"people, {num_joints}, 3) for the skeleton {skeleton.name}"
        )
    joints = np.where(np.isfinite(joints).all(axis=-1, keepdims=True) & (joints[..., 2:] != 0), joints, np.float32(0))
    confidence = joints[..., 2]
    if ((confidence < 0) | (confidence > 1)).any():
        raise UserError(
            f"the estimator returned confidences from {confidence.min():.4g} to {confidence.max():.4g}; they must be in [0, 1]"
        )
    if np.abs(joints[..., :2]).max(initial=0) > _FAR_OUTSIDE:
        raise UserError(
            f"the estimator returned places up to {np.abs(joints[..., :2]).max():.6g}: pixels? They must be fractions of the "
            "frame: divide x by its width and y by its height"
        )
    return joints
