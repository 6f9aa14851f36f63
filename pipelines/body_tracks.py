"""People who change their slots between the frames of a file of estimated joints, followed by their places.

An estimator lists the people of each frame in any order, so one slot may hold different people. A file whose slots are
consistent, as a tracker writes it, stays as it is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
    if joints.shape[1] < 2 or not slot_jumps(joints).any():
        return joints
    from scipy.optimize import linear_sum_assignment  # takes a fifth of a second, and few files need it

    followed = np.zeros_like(joints)
    last = np.zeros_like(joints[0])
    for frame, bodies in enumerate(joints):
        here = bodies[np.any(bodies[..., 2] > 0, axis=1)]
        cost = body_distances(here[:, None], last[None])
        cost[:, ~np.any(last[..., 2] > 0, axis=1)] = NEW_TRACK
        slots, tracks = linear_sum_assignment(cost)
        followed[frame, tracks] = last[tracks] = here[slots]
    return followed


def slot_jumps(joints: Floats) -> NDArray[np.bool_]:
    """Where a slot jumps to where another slot's body was, from one of its frames to the next.

    Args:
        joints: (T, M, N, 3): x, y and confidence, 0 where not seen.

    Returns:
        (T - 1, M): whether slot m seems to hold another person in frame t + 1 than before.
    """
    num_frames, num_slots = joints.shape[:2]
    present: NDArray[np.bool_] = np.any(joints[..., 2] > 0, axis=2)
    last = np.maximum.accumulate(np.where(present, np.arange(num_frames)[:, None], -1), axis=0)[:-1]
    before, now = joints[last, np.arange(num_slots)], joints[1:]
    apart = body_distances(before[:, :, None], now[:, None])  # (T - 1, slot before, slot now)
    apart[last < 0] = np.inf
    moved = np.diagonal(apart, axis1=1, axis2=2)
    moved = np.where(last < 0, NEW_TRACK, moved)
    apart[:, np.arange(num_slots), np.arange(num_slots)] = np.inf
    jumps: NDArray[np.bool_] = present[1:] & (moved > JUMP) & (apart.min(axis=1) < CLEARLY_NEARER * moved)
    return jumps


def body_distances(one: Floats, other: Floats) -> NDArray[np.float64]:
    """Mean distance of the joints that two bodies (…, N, 3) share, in sizes of the larger; of their middles if none."""
    seen_one, seen_other = one[..., 2:] > 0, other[..., 2:] > 0
    both = (one[..., 2] > 0) & (other[..., 2] > 0)
    apart = (np.hypot(*np.moveaxis(one[..., :2] - other[..., :2], -1, 0)) * both).sum(axis=-1, dtype=np.float64)
    middles = np.linalg.norm(_middle(one, seen_one) - _middle(other, seen_other), axis=-1)
    size = np.maximum(np.maximum(_size(one, seen_one), _size(other, seen_other)), 1e-3)
    shared: NDArray[np.float64] = np.where(both.any(axis=-1), apart / np.maximum(both.sum(axis=-1), 1), middles) / size
    return shared


def _middle(body: Floats, seen: NDArray[np.bool_]) -> NDArray[np.float64]:
    middle: NDArray[np.float64] = (body[..., :2] * seen).sum(axis=-2, dtype=np.float64) / np.maximum(seen.sum(axis=-2), 1)
    return middle


def _size(body: Floats, seen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The longer side of the box around the joints seen; negative without any."""
    places = body[..., :2]
    size: NDArray[np.float64] = (
        np.where(seen, places, -np.inf).max(axis=-2) - np.where(seen, places, np.inf).min(axis=-2)
    ).max(axis=-1)
    return size
