"""NTU RGB+D's `.skeleton` files: text → bodies → at most two tracks on the clip's own frame axis.

Letters: T frames of the clip, K frames of one body, M tracks, N = 25 joints.
"""

from __future__ import annotations

import itertools
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

NEW_TRACK_M = 1.5
"""A body that appears further than this from where a track ended starts a new track while one is free."""


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


@dataclass(frozen=True, slots=True)
class _Run:
    """Frames of one body without a gap."""

    body: Body
    first: int
    """Places in the body's arrays: from this one …"""
    end: int
    """… up to, not including, this one."""

    @property
    def frames(self) -> NDArray[np.int64]:
        return self.body.frames[self.first : self.end]

    def place_m(self, at: int) -> NDArray[np.float64]:
        """(3,), metres: the middle of the joints seen at a place in the body's arrays; NaN without any."""
        seen = self.body.joints[at, :, 2] > 0
        return self.body.joints_3d[at][seen].mean(axis=0, dtype=np.float64) if seen.any() else np.full(3, np.nan)


def pack_tracks(skeleton: SkeletonFile, max_tracks: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The people of a clip on its own frame axis; nothing is shifted where nobody is seen, so joints stay with their picture.

    Ghosts are dropped. Where more than `max_tracks` bodies are seen at once, those that move most stay (the authors' rule for
    the main actor). The others become tracks by time, because the sensor gives a new id to a person whom it lost and found: a
    body that appears continues the free track whose last place is nearest. Tracks are ordered by their motion, the liveliest
    first.

    Returns:
        Two float32 arrays (T, M, N, 3), M = `max_tracks`: x, y, confidence as in `Body.joints`, and metres; 0 where nobody is.
    """
    tracks: list[list[_Run]] = [[] for _ in range(max_tracks)]
    runs = [run for body in _main_actors(skeleton, max_tracks) for run in _runs(body)]
    for start in sorted({int(run.frames[0]) for run in runs}):
        appearing = [run for run in runs if run.frames[0] == start]
        free = [track for track in tracks if not track or track[-1].frames[-1] < start]
        # At most six bodies are seen at once, so every way to continue the free tracks can be tried.
        ways = itertools.permutations(free, len(appearing))
        best = min(ways, key=lambda way: sum(_distance_m(track, run) for track, run in zip(way, appearing, strict=True)))
        for track, run in zip(best, appearing, strict=True):
            track.append(run)
    shape = (skeleton.num_frames, max_tracks, NUM_JOINTS, 3)
    joints, joints_3d = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for number, track in enumerate(sorted(tracks, key=_motion, reverse=True)):
        for run in track:
            joints[run.frames, number] = run.body.joints[run.first : run.end]
            joints_3d[run.frames, number] = run.body.joints_3d[run.first : run.end]
    return joints, joints_3d


def _main_actors(skeleton: SkeletonFile, at_once: int) -> list[Body]:
    """The bodies that move most, such that no frame has more than `at_once` of them."""
    seen, kept = np.zeros(skeleton.num_frames, np.int64), []
    for body in sorted(drop_ghosts(skeleton.bodies), key=Body.motion, reverse=True):
        if (seen[body.frames] < at_once).all():
            seen[body.frames] += 1
            kept.append(body)
    return kept


def _runs(body: Body) -> list[_Run]:
    ends = [*(np.flatnonzero(np.diff(body.frames) > 1) + 1).tolist(), len(body.frames)]
    return [_Run(body, first, end) for first, end in zip([0, *ends], ends, strict=False)]


def _distance_m(track: list[_Run], run: _Run) -> float:
    """How far a body would have moved if it continued this track; a fixed cost for a new track or an unknown place."""
    if not track:
        return NEW_TRACK_M
    if track[-1].body is run.body:
        return 0.0
    distance = float(np.linalg.norm(track[-1].place_m(track[-1].end - 1) - run.place_m(run.first)))
    return distance if np.isfinite(distance) else NEW_TRACK_M


def _motion(track: list[_Run]) -> float:
    """Motion of a track as of a body (`Body.motion`); -1 for an empty one."""
    if not track:
        return -1.0
    parts = [(run.body.joints[run.first : run.end], run.body.joints_3d[run.first : run.end]) for run in track]
    joints, joints_3d = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Body("", np.arange(len(joints)), joints, joints_3d).motion()
