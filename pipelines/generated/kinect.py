"""What a Kinect v2 would report of generated people: 25 joints in space and in the colour picture, and its mistakes.

Letters: T frames, J the 13 joints of `people.py`, N the 25 of the sensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from starlab.pipelines.generated.people import Floats

FOCAL_PX, CENTRE_PX = np.array([1050.0, 1060.0]), np.array([976.0, 550.0])
"""Of the colour camera, fitted to real files: colorX = 1050 x / z + 976, colorY = 550 − 1060 y / z."""
DEPTH_FOCAL_PX, DEPTH_CENTRE_PX = 365.0, np.array([256.0, 208.0])
"""Of the depth camera, 512×424."""
BODY_HEIGHT_M = 1.7
FIRST_BODY_ID = 72057594037931101
"""Real ids have 17 digits: more than a float64 keeps apart."""
JITTER_PX = 2.0
WITHOUT_ORIENTATION = (3, 15, 19, 21, 22, 23, 24)
"""The sensor gives the ends of limbs no orientation."""
MAX_APART, PART_FRAMES = 3, 12
"""People are lost and found up to so many frames apart, and seen for so many on each side of a gap: fewer are noise."""
LOOSE_JOINTS = (21, 22, 23, 24)
"""Hand tips and thumbs, often guessed."""


@dataclass(frozen=True, slots=True)
class SensedBody:
    """The frames of a clip in which one body id was seen."""

    body_id: int
    frames: NDArray[np.int64]
    """(K,), ascending."""
    color_px: Floats
    """(K, N, 2): x, y in the 1920×1080 picture."""
    places_m: Floats
    """(K, N, 3): x to the right, y up, z away from the camera."""
    states: NDArray[np.int64]
    """(K, N): 0 not tracked, 1 inferred, 2 tracked."""

    def part(self, mask: NDArray[np.bool_]) -> SensedBody:
        """The frames that the mask keeps."""
        return SensedBody(self.body_id, self.frames[mask], self.color_px[mask], self.places_m[mask], self.states[mask])

    def backwards(self, num_frames: int) -> SensedBody:
        """The same body in the clip of `num_frames` frames played backwards."""
        frames = num_frames - 1 - self.frames[::-1]
        return SensedBody(self.body_id, frames, self.color_px[::-1], self.places_m[::-1], self.states[::-1])


def kinect_joints(joints: Floats) -> Floats:
    """(T, 13, 2) → (T, 25, 2): the sensor's joints in NTU's order, made from those of `people.py`."""
    head, shoulders, elbows, wrists = joints[:, 0], joints[:, 1:3], joints[:, 3:5], joints[:, 5:7]
    hips, knees, ankles = joints[:, 7:9], joints[:, 9:11], joints[:, 11:13]
    base, upper = hips.mean(axis=1), shoulders.mean(axis=1)
    forearms, shanks = wrists - elbows, ankles - knees
    hands, tips = wrists + 0.25 * forearms, wrists + 0.5 * forearms
    thumbs = hands + 0.2 * forearms[..., ::-1] * np.array([1.0, -1.0])
    feet = ankles + 0.1 * shanks + np.array([[-0.15], [0.15]]) * np.linalg.norm(shanks, axis=-1, keepdims=True) * [1.0, 0.0]
    trunk = np.stack([base, (base + upper) / 2, upper + 0.4 * (head - upper), head], axis=1)
    arms = np.stack([shoulders, elbows, wrists, hands], axis=2).reshape(len(joints), 8, 2)
    legs = np.stack([hips, knees, ankles, feet], axis=2).reshape(len(joints), 8, 2)
    fingers = np.stack([tips, thumbs], axis=2).reshape(len(joints), 4, 2)
    return np.concatenate([trunk, arms, legs, upper[:, None], fingers], axis=1)


def sense(
    people: Sequence[tuple[Floats, float]], number: int | None, rng: np.random.Generator, *, reverse: bool
) -> tuple[SensedBody, ...]:
    """What the sensor reports of a clip.

    Args:
        people: For each person the joints (T, N, 2) in the 1920×1080 picture and the body's height in it.
        number: Decides the sensor's mistakes. Every fourth clip has a gap without bodies, into which people go and from which
            they return at different moments, each under a new id; in another fourth the first person alone gets a new id;
            every third has a chair beside the people; every fifth has a body of nine frames. None has no body at all.
        rng: For everything else.
        reverse: Play the result backwards; draws are the same either way.

    Returns:
        The bodies, in the order in which they appear.
    """
    if number is None:
        return ()
    num_frames = len(people[0][0])
    frames = np.arange(num_frames)
    start, length = int(rng.integers(num_frames // 3, num_frames // 2)), int(rng.integers(3, 9))
    gap = (frames >= start) & (frames < start + length) & (number % 4 == 0)
    bodies = []
    early, late = (min(MAX_APART, part - PART_FRAMES) for part in (start, num_frames - start - length))
    for place, (joints, height_px) in enumerate(people):
        body, lost, found = _person(joints, height_px, rng), num_frames, num_frames
        if number % 4 == 0:
            lost, found = (start - early, start + length) if place == 0 else (start, start + length + late)
        elif number % 4 == 2 and place == 0:
            lost = found = start
        bodies += [part for part in (body.part(frames < lost), body.part(frames >= found)) if len(part.frames)]
    chair, flicker = _chair(num_frames, rng), _person(people[0][0] + 300, people[0][1], rng)
    if number % 3 == 1:
        bodies.append(chair.part(~gap))
    if number % 5 == 2:
        bodies.append(flicker.part((frames >= num_frames - 14) & (frames < num_frames - 5)))
    if reverse:
        bodies = [body.backwards(num_frames) for body in bodies]
    bodies.sort(key=lambda body: int(body.frames[0]))
    return tuple(replace(body, body_id=FIRST_BODY_ID + place) for place, body in enumerate(bodies))


def _person(joints: Floats, height_px: float, rng: np.random.Generator) -> SensedBody:
    num_frames = len(joints)
    color = joints + rng.normal(0, JITTER_PX, joints.shape)
    states = np.full(joints.shape[:2], 2)
    states[:, LOOSE_JOINTS] = np.where(rng.random((num_frames, len(LOOSE_JOINTS))) < 0.3, 1, 2)
    if rng.random() < 0.5:  # an arm or a leg out of the sensor's sight for a while
        joint, start = int(rng.integers(4, 20)), int(rng.integers(num_frames // 2))
        states[start : start + num_frames // 4, joint] = rng.integers(0, 2)
    depth = FOCAL_PX[1] * BODY_HEIGHT_M / height_px + rng.normal(0, 0.03, (1, 25)) + rng.normal(0, 0.004, (num_frames, 25))
    return SensedBody(0, np.arange(num_frames), color, _in_space(color, depth), states)


def _chair(num_frames: int, rng: np.random.Generator) -> SensedBody:
    """A ghost: wider than high, it hardly moves."""
    spot = np.array([rng.uniform(300, 1600), rng.uniform(700, 850)])
    color = spot + rng.uniform(-1, 1, (25, 2)) * np.array([180.0, 70.0]) + rng.normal(0, 1.0, (num_frames, 25, 2))
    depth = rng.uniform(2.5, 3.5) + rng.normal(0, 0.004, (num_frames, 25))
    return SensedBody(0, np.arange(num_frames), color, _in_space(color, depth), np.full((num_frames, 25), 1))


def _in_space(color: Floats, depth: Floats) -> Floats:
    offset = (color - CENTRE_PX) / FOCAL_PX * depth[..., None]
    return np.concatenate([offset * np.array([1.0, -1.0]), depth[..., None]], axis=-1)


def encode_skeleton(bodies: Sequence[SensedBody], num_frames: int) -> bytes:
    """A `.skeleton` file: lines end in CRLF, numbers have seven digits, as the authors' do."""
    lines = [str(num_frames)]
    for frame in range(num_frames):
        here = [(body, int(np.flatnonzero(body.frames == frame)[0])) for body in bodies if frame in body.frames]
        lines.append(str(len(here)))
        for body, at in here:
            lean = body.places_m[at, 20] - body.places_m[at, 0]
            lines += [f"{body.body_id} 0 1 1 1 1 0 {lean[0]:.7g} {lean[2]:.7g} 2", "25"]
            depth_px = body.places_m[at, :, :2] / body.places_m[at, :, 2:] * DEPTH_FOCAL_PX * [1.0, -1.0] + DEPTH_CENTRE_PX
            values = np.concatenate([body.places_m[at], depth_px, body.color_px[at]], axis=1)
            for joint, (numbers, state) in enumerate(zip(values.tolist(), body.states[at].tolist(), strict=True)):
                turned = "0 0 0 0" if joint in WITHOUT_ORIENTATION else "0.9238795 0 0.3826834 0"
                lines.append(f"{' '.join(f'{number:.7g}' for number in numbers)} {turned} {state}")
    return ("\r\n".join(lines) + "\r\n").encode()
