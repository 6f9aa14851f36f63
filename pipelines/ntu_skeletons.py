"""NTU RGB+D's `.skeleton` files: text → bodies → at most two tracks on the clip's own frame axis.

Letters: T frames of the clip, K frames of one body, M tracks, N = 25 joints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_JOINTS = 25
JOINT_VALUES = 12
"""x y z, depthX depthY, colorX colorY, orientation w x y z, tracking state."""
COLOR_WIDTH_PX, COLOR_HEIGHT_PX = 1920, 1080
"""Size of the picture that colorX and colorY refer to."""
CONFIDENCE = np.array([0.0, 0.5, 1.0], np.float32)
"""By tracking state: not tracked, inferred from other joints, tracked."""
MAX_BODIES_IN_FRAME = 6
"""The sensor follows no more."""

# Limits by which a body is taken for furniture, as Zhang et al. published them with SGN (CVPR 2020); later work on NTU
# (CTR-GCN, PYSKL) uses the same.
MAX_NOISE_FRAMES = 11
MAX_SPREAD_RATIO = 0.8
MIN_FLAT_SHARE = 0.69754


@dataclass(frozen=True, slots=True)
class Body:
    """Everything the sensor saw under one body id."""

    body_id: str
    """A number of 17 digits: text, because a float64 would round it to a neighbour's."""
    frames: NDArray[np.int64]
    """(K,), ascending: the frames of the clip in which it was seen."""
    joints: NDArray[np.float32]
    """(K, N, 3): x, y as fractions of the colour picture, confidence 0, 0.5 or 1; all 0 where not seen."""
    joints_3d: NDArray[np.float32]
    """(K, N, 3): metres from the camera, x to the right of the picture, y up, z away; 0 where not seen."""

    def motion(self) -> float:
        """Sum over joints and axes of the variance over time, square metres."""
        return float(self._seen_3d().var(axis=0).filled(0).sum())

    def flat_share(self) -> float:
        """Share of its frames in which it is wide for its height, as furniture is and people are not."""
        places = self._seen_3d()
        spread = (places.max(axis=1) - places.min(axis=1)).filled(0)
        return float((spread[:, 0] > MAX_SPREAD_RATIO * spread[:, 1]).mean())

    def _seen_3d(self) -> np.ma.MaskedArray[tuple[int, ...], np.dtype[np.float64]]:
        unseen = np.broadcast_to(self.joints[..., 2:] == 0, self.joints_3d.shape)
        return np.ma.masked_array(self.joints_3d.astype(np.float64), unseen)


@dataclass(frozen=True, slots=True)
class SkeletonFile:
    """One `.skeleton` file."""

    num_frames: int
    bodies: tuple[Body, ...]
    """In the order in which they appear. There may be none."""


def read_num_frames(head: bytes) -> int:
    """The number of frames, from the first bytes of a file.

    Raises:
        ValueError: they are not the beginning of a `.skeleton` file.
    """
    line, newline, _ = head.partition(b"\n")
    text = line.strip()
    if not newline or not text.isdigit() or len(text) > 6:
        raise ValueError(f"its first line must be the number of frames, is {text[:40]!r}")
    num_frames = int(text)
    if num_frames < 1:
        raise ValueError("it has 0 frames")
    return num_frames


def parse_skeleton(data: bytes) -> SkeletonFile:
    """Read a whole file; lines may end in CRLF, as the authors' do, or LF.

    A joint counts as not seen if its place in the picture or in space is not a finite number.

    Raises:
        ValueError: the text does not follow the format; the message names the line.
    """
    num_frames = read_num_frames(data)
    lines = data.split(b"\n")
    seen: dict[str, list[tuple[int, list[float]]]] = {}
    at = 1

    def whole(what: str, low: int, high: int) -> int:
        text = lines[at].strip() if at < len(lines) else b""
        if not text.isdigit() or not low <= int(text) <= high:
            end = " (the file ends here)" if at >= len(lines) - 1 and not text else ""
            raise ValueError(f"line {at + 1} must be {what}, {low} to {high}, is {text[:40]!r}{end}")
        return int(text)

    for frame in range(num_frames):
        bodies = whole(f"the number of bodies in frame {frame}", 0, MAX_BODIES_IN_FRAME)
        at += 1
        for _ in range(bodies):
            about = lines[at].split() if at < len(lines) else []
            if len(about) != 10 or not about[0].isdigit():
                raise ValueError(
                    f"line {at + 1} must be a body's id and 9 more values, is {lines[at][:40] if about else b''!r}"
                )
            at += 1
            whole("the number of joints", NUM_JOINTS, NUM_JOINTS)
            at += 1
            rows = [line.split() for line in lines[at : at + NUM_JOINTS]]
            bad = next((number for number, row in enumerate(rows) if len(row) != JOINT_VALUES), len(rows))
            if bad < NUM_JOINTS:
                raise ValueError(f"line {at + bad + 1} must be a joint's {JOINT_VALUES} values")
            try:
                values = [float(value) for row in rows for value in row]
            except ValueError:
                values = [_number(value, at + 1 + place) for place, row in enumerate(rows) for value in row]
            frames = seen.setdefault(about[0].decode(), [])
            if frames and frames[-1][0] == frame:
                raise ValueError(f"body {about[0].decode()} is twice in frame {frame}")
            frames.append((frame, values))
            at += NUM_JOINTS
    if any(line.strip() for line in lines[at:]):
        raise ValueError(f"line {at + 1}: the file goes on after its {num_frames} frames")
    return SkeletonFile(num_frames, tuple(_body(body_id, frames) for body_id, frames in seen.items()))


def _number(text: bytes, line: int) -> float:
    """A number in the spelling of the sensor's system, which writes e.g. -1.#IND for a value that is not a number."""
    try:
        return float("nan") if b"#" in text else float(text)
    except ValueError:
        raise ValueError(f"line {line}: {text[:40]!r} is no number") from None


def _body(body_id: str, frames: list[tuple[int, list[float]]]) -> Body:
    values = np.array([row for _, row in frames], np.float64).reshape(-1, NUM_JOINTS, JOINT_VALUES)
    states = values[..., 11]
    if not np.isin(states, (0, 1, 2)).all():
        raise ValueError(f"body {body_id}: a tracking state is none of 0, 1, 2")
    joints = np.empty((*states.shape, 3), np.float32)
    with np.errstate(over="ignore"):  # found below
        joints[..., 0] = values[..., 5] / COLOR_WIDTH_PX
        joints[..., 1] = values[..., 6] / COLOR_HEIGHT_PX
        joints_3d = values[..., :3].astype(np.float32)
    joints[..., 2] = CONFIDENCE[states.astype(np.int64)]
    lost = ~(np.isfinite(joints).all(axis=-1) & np.isfinite(joints_3d).all(axis=-1)) | (states == 0)
    joints[lost] = 0
    joints_3d[lost] = 0
    return Body(body_id, np.array([frame for frame, _ in frames], np.int64), joints, joints_3d)


def drop_ghosts(bodies: tuple[Body, ...]) -> tuple[Body, ...]:
    """Leave out bodies that are not people. Two rules apply in turn, each only while more than one body remains.

    First bodies of 11 frames or fewer are dropped, then bodies that are wider than 0.8 of their height in 69.754 % of their
    frames or more. Where the first rule would drop all, the longest body stays; with the second, the body that moves most.
    """
    if len(bodies) > 1:
        long = tuple(body for body in bodies if len(body.frames) > MAX_NOISE_FRAMES)
        bodies = long or (max(bodies, key=lambda body: len(body.frames)),)
    if len(bodies) > 1:
        upright = tuple(body for body in bodies if body.flat_share() < MIN_FLAT_SHARE)
        bodies = upright or (max(bodies, key=Body.motion),)
    return bodies


def pack_tracks(skeleton: SkeletonFile, max_tracks: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The people of a clip on its own frame axis; nothing is shifted where nobody is seen, so joints stay with their picture.

    Ghosts are dropped. The others are taken in the order of their motion, the liveliest first (the authors' rule for who is the
    main actor); each goes into the first track in which none of its frames is taken, because the sensor gives somebody whom it
    lost and found a new id. Who fits into no track is left out.

    Returns:
        Two float32 arrays (T, M, N, 3), M = `max_tracks`: x, y, confidence as in `Body.joints`, and metres; 0 where nobody is.
    """
    shape = (skeleton.num_frames, max_tracks, NUM_JOINTS, 3)
    joints, joints_3d = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    taken = np.zeros(shape[:2], bool)
    for body in sorted(drop_ghosts(skeleton.bodies), key=Body.motion, reverse=True):
        free = np.flatnonzero(~taken[body.frames].any(axis=0))
        if free.size:
            track = free[0]
            joints[body.frames, track], joints_3d[body.frames, track] = body.joints, body.joints_3d
            taken[body.frames, track] = True
    return joints, joints_3d
