"""Keeps people apart: the bodies that an estimator finds in single frames become tracks, one for each person.

An estimator lists the people of each frame in any order. A body continues the track whose person should be nearest and wears
the same. A track whose person is hidden waits for a while. The tracker is a pure function of the joints and colours.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from starlab.pipelines.body_tracks import body_distances

Floats = NDArray[np.float32]

MAX_MOVE = 0.8
"""A body further than this from where a track's should be is another person; in sizes of the body."""
MAX_COLOR_DIFFERENCE = 0.25
"""Clothes that differ by this much alone are another person's; mean difference of the colours, in [0, 1]. docs/pose.md has
what it does on real footage."""
COLOR_RATE = 0.1
"""Share of a new colour in a track's."""
MAX_LOST_FRAMES = 30
"""A track ends after so many frames of the video without its person: a second at 30 frames a second."""
SPEED_OVER = 8
"""Finds of a person that a speed is measured over."""
SAME_PERSON = 0.15
"""Two bodies of one frame that are nearer than this, in sizes of the body, are one person who was found twice."""
MIN_FRAMES = 3
"""A track seen in fewer of the estimated frames is taken for a false find."""


@dataclass(slots=True)
class Track:
    """One person."""

    frames: list[int] = field(default_factory=list)
    """Numbers of the frames in which the person was found, ascending."""
    joints: list[Floats] = field(default_factory=list)
    """(N, 3) for each of these frames."""
    colors: Floats | None = None
    """What the person wears, (K,), a running mean; NaN where it was not seen yet."""

    def add(self, frame: int, body: Floats, colors: Floats) -> None:
        """Append a find of the person."""
        self.frames.append(frame)
        self.joints.append(body)
        if self.colors is None:
            self.colors = colors
        else:
            mixed = self.colors + COLOR_RATE * (colors - self.colors)
            self.colors = np.where(np.isnan(self.colors), colors, np.where(np.isnan(colors), self.colors, mixed))

    def confidence(self) -> float:
        """The sum of the confidences of all joints."""
        return float(sum(body[:, 2].sum(dtype=np.float64) for body in self.joints))


def track_people(joints: Floats, colors: Floats, frames: NDArray[np.int64]) -> list[Track]:
    """The tracks of the people in some frames of a video.

    Args:
        joints: (F, M, N, 3): x, y and confidence; 0 where a joint, or a whole body, was not seen.
        colors: (F, M, K): what each body wears (`clothes.clothes_colors`), NaN where that was not seen.
        frames: (F,): the numbers of these frames in the video, ascending.

    Returns:
        The tracks, in the order in which the people were first seen. Tracks of fewer than `MIN_FRAMES` frames are left out,
        unless there are fewer frames than that.
    """
    from scipy.optimize import linear_sum_assignment  # takes a fifth of a second

    tracks: list[Track] = []
    for number, found, worn in zip(frames.tolist(), joints, colors, strict=True):
        kept = _different(found)
        bodies, clothes = found[kept], worn[kept]
        waiting = [track for track in tracks if number - track.frames[-1] <= MAX_LOST_FRAMES]
        taken: dict[int, Track] = {}
        if len(bodies) and waiting:
            cost = _cost(bodies, clothes, waiting, number)
            # A place that is too far costs as much as a new track, so that it never displaces a near one.
            for body, place in zip(*linear_sum_assignment(np.minimum(cost, 1)), strict=True):
                if cost[body, place] < 1:
                    taken[int(body)] = waiting[place]
        for slot, body_joints in enumerate(bodies):
            track = taken.get(slot)
            if track is None:
                track = Track()
                tracks.append(track)
            track.add(number, body_joints, clothes[slot])
    least = min(MIN_FRAMES, len(frames))
    return [track for track in tracks if len(track.frames) >= least]


def _cost(bodies: Floats, clothes: Floats, tracks: list[Track], number: int) -> NDArray[np.float64]:
    """(bodies, tracks): 0 where place and clothes of a body are what the track expects, 1 and more for another person."""
    expected = np.stack([_expected(track, number) for track in tracks])
    worn = np.stack([track.colors for track in tracks if track.colors is not None])
    apart = np.abs(clothes[:, None] - worn[None])
    known = ~np.isnan(apart)
    difference = np.where(known, apart, 0).sum(axis=-1) / np.maximum(known.sum(axis=-1), 1)
    cost: NDArray[np.float64] = body_distances(bodies[:, None], expected[None]) / MAX_MOVE + difference / MAX_COLOR_DIFFERENCE
    return cost


def _different(bodies: Floats) -> list[int]:
    """The slots with a body, without those that repeat one with a higher confidence."""
    order = np.argsort(-bodies[..., 2].sum(axis=1, dtype=np.float64), kind="stable")
    kept: list[int] = []
    for body in order.tolist():
        if not (bodies[body, :, 2] > 0).any():
            break
        if not kept or body_distances(bodies[body][None], bodies[kept]).min() >= SAME_PERSON:
            kept.append(body)
    return sorted(kept)


def _expected(track: Track, number: int) -> Floats:
    """Where the person's joints should be in frame `number`: where they were, moved on at the speed of the body's middle."""
    last = track.joints[-1]
    first = max(0, len(track.frames) - SPEED_OVER)
    earlier = track.joints[first]
    both = (last[:, 2] > 0) & (earlier[:, 2] > 0)
    if first == len(track.frames) - 1 or not both.any():
        return last
    speed = np.median(last[both, :2] - earlier[both, :2], axis=0) / (track.frames[-1] - track.frames[first])
    moved = last.copy()
    moved[:, :2] += speed * (number - track.frames[-1])
    return moved


def fill_between(track: Track, every: int) -> Track:
    """The track with the frames between two estimated ones, whose joints are interpolated along a straight line.

    Only neighbours in the sequence of estimated frames are joined, which are at most `every` frames apart. A joint that one
    of the two does not have is left out.
    """
    filled = Track()
    for place, (number, body) in enumerate(zip(track.frames, track.joints, strict=True)):
        if place and number - track.frames[place - 1] <= every:
            first, before = track.frames[place - 1], track.joints[place - 1]
            both = ((before[:, 2] > 0) & (body[:, 2] > 0))[:, None]
            for between in range(first + 1, number):
                share = np.float32((between - first) / (number - first))
                filled.frames.append(between)
                filled.joints.append(np.where(both, before + (body - before) * share, np.float32(0)).astype(np.float32))
        filled.frames.append(number)
        filled.joints.append(body)
    return filled


def pack_tracks(tracks: list[Track], num_frames: int, num_joints: int) -> tuple[Floats, NDArray[np.int32]]:
    """Write the tracks into as few slots as the rule needs: the most confident track takes the first slot that is free.

    A slot is free for a track if no other track in it is under way at any time between the first and the last frame.

    Returns:
        The joints, (num_frames, slots, num_joints, 3), and the number of the track in each slot, (num_frames, slots), -1
        where nobody is. The first slot holds the most confident person of the video.
    """
    slots: list[list[int]] = []
    for number in sorted(range(len(tracks)), key=lambda number: (-tracks[number].confidence(), number)):
        free = (slot for slot in slots if not any(_overlap(tracks[number], tracks[other]) for other in slot))
        slot = next(free, None)
        if slot is None:
            slots.append([number])
        else:
            slot.append(number)
    joints = np.zeros((num_frames, len(slots), num_joints, 3), np.float32)
    ids = np.full((num_frames, len(slots)), -1, np.int32)
    for place, slot in enumerate(slots):
        for number in slot:
            joints[tracks[number].frames, place] = np.stack(tracks[number].joints)
            ids[tracks[number].frames, place] = number
    return joints, ids


def _overlap(one: Track, other: Track) -> bool:
    return one.frames[0] <= other.frames[-1] and other.frames[0] <= one.frames[-1]
