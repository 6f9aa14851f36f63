"""People who change their slots between the frames of a file of estimated joints, followed by their places.

An estimator lists the people of each frame in any order, so one slot may hold different people. A file whose slots are
consistent, as a tracker writes it, stays as it is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Floats = NDArray[np.float32]

JUMP = 0.5
"""A slot whose joints move by more than this share of the body's size between two frames may hold another person …"""
CLEARLY_NEARER = 0.5
"""… and does if a body in another slot is nearer by this factor."""
NEW_TRACK = 1.0
"""What it costs to start a track, in sizes of the body: one that appears further from where a track ended starts a new one."""


def follow_bodies(joints: Floats) -> Floats:
    """Sort the bodies of each frame so that each slot holds one person.

    Args:
        joints: (T, M, N, 3): x, y and confidence, 0 where not seen.

    Returns:
        The same joints, (T, M, N, 3); the same array if no slot seems to change its person.
    """
    if joints.shape[1] < 2 or not _any_slot_jumps(joints):
        return joints
    followed = np.zeros_like(joints)
    last: list[Floats | None] = [None] * joints.shape[1]
    for frame, bodies in enumerate(joints):
        here = np.flatnonzero(bodies[..., 2].any(axis=1))
        cost = np.array([[NEW_TRACK if track is None else _distance(track, bodies[slot]) for track in last] for slot in here])
        if not len(here):
            continue
        for row, track in zip(*linear_sum_assignment(cost), strict=True):
            followed[frame, track] = last[track] = bodies[here[row]]
    return followed


def _any_slot_jumps(joints: Floats) -> bool:
    """Whether a slot jumps to where another slot's body was, from one of its frames to the next."""
    last: list[Floats | None] = [None] * joints.shape[1]
    for bodies in joints:
        here = np.flatnonzero(bodies[..., 2].any(axis=1))
        for slot in here:
            before = last[slot]
            moved = NEW_TRACK if before is None else _distance(before, bodies[slot])
            others = (other for number, other in enumerate(last) if number != slot and other is not None)
            if moved > JUMP and any(_distance(other, bodies[slot]) < CLEARLY_NEARER * moved for other in others):
                return True
        for slot in here:
            last[slot] = bodies[slot]
    return False


def _distance(one: Floats, other: Floats) -> float:
    """Mean distance of the joints that both bodies (N, 3) have, in sizes of the larger; of their middles if they share none."""
    seen_one, seen_other = one[:, 2] > 0, other[:, 2] > 0
    both = seen_one & seen_other
    size = max(float(np.ptp(one[seen_one, :2], axis=0).max()), float(np.ptp(other[seen_other, :2], axis=0).max()), 1e-3)
    if both.any():
        apart = float(np.linalg.norm(one[both, :2] - other[both, :2], axis=1).mean())
    else:
        apart = float(np.linalg.norm(one[seen_one, :2].mean(axis=0) - other[seen_other, :2].mean(axis=0)))
    return apart / size
