"""Generated people: how they move, and what a camera would see.

Letters: T frames, J joints (the 13 of Penn Action), S sides (0 left in the picture, 1 right; all face the camera).
Positions are in pixels from the picture's top left edge, so the middle of the first pixel is at 0.5.

Every action is drawn in its own streams of random numbers (motion, hidden motion, appearance, noise), so that two
actions that are meant to differ in one respect are equal to the last bit in every other when they are drawn with the
same numbers: `synthetic.py` says which do, and the tests hold it against them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Points = NDArray[np.int32]
"""(..., 2): where OpenCV draws, in 1/16 pixel from the middle of the first pixel."""
Color = tuple[float, float, float]

SIDES = np.array([-1.0, 1.0])
SUBPIXEL_BITS = 4
"""OpenCV draws at fixed-point positions with this many fractional bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """Lengths as fractions of the body height, and how this person stands."""

    head: float
    """Radius."""
    neck: float
    torso: float
    shoulders: float
    """Half of their distance, as `hips`."""
    hips: float
    upper_arm: float
    forearm: float
    thigh: float
    shank: float
    arms_apart: float
    """Radians between the hanging arms and the vertical."""
    skin: Color
    """RGB, 0 to 255, as all colours here."""


def draw_person(rng: np.random.Generator) -> Person:
    """A subject: limb ratios vary by about a tenth."""

    def length(mean: float) -> float:
        return float(mean * rng.uniform(0.88, 1.12))

    tone = rng.uniform(0.45, 1.0)
    return Person(
        head=length(0.068),
        neck=length(0.10),
        torso=length(0.29),
        shoulders=length(0.105),
        hips=length(0.062),
        upper_arm=length(0.165),
        forearm=length(0.16),
        thigh=length(0.235),
        shank=length(0.235),
        arms_apart=float(rng.uniform(0.12, 0.3)),
        skin=(235 * tone, 190 * tone, 160 * tone),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Pose:
    """Angles over time, radians, 0 hanging straight down, positive outward; actions add to them in place."""

    arm: Floats
    """(T, S), at the shoulder."""
    elbow: Floats
    """(T, S), further outward (a raised forearm turns back over the head)."""
    leg: Floats
    """(T, S), at the hip."""
    knee: Floats
    """(T, S), inward."""
    lean: Floats
    """(T,), of the upper body, towards the right of the picture."""


Action = Callable[[Pose, Floats, Floats, np.random.Generator], None]
"""Adds itself to a pose, given its strength over time (T,), 0 at both ends, and its progress (T,) from 0 to 1."""


def squat(pose: Pose, strength: Floats, _progress: Floats, rng: np.random.Generator) -> None:
    """Down and up again, feet in place."""
    bend = (math.radians(rng.uniform(46, 60)) * strength)[:, None]
    pose.leg[:] += bend
    pose.knee[:] += 2 * bend
    pose.arm[:] += 0.5 * bend


def wave(pose: Pose, strength: Floats, progress: Floats, rng: np.random.Generator) -> None:
    """The right arm up, its forearm to and fro."""
    swing = np.sin(2 * math.pi * rng.uniform(1.5, 2.5) * progress + rng.uniform(0, 2 * math.pi))
    pose.arm[:, 1] += math.radians(rng.uniform(90, 110)) * strength
    pose.elbow[:, 1] += (math.radians(rng.uniform(45, 60)) + math.radians(35) * swing) * strength


def raise_left(pose: Pose, strength: Floats, _progress: Floats, rng: np.random.Generator) -> None:
    """The left arm over the head."""
    pose.arm[:, 0] += math.radians(rng.uniform(125, 150)) * strength


def raise_right(pose: Pose, strength: Floats, _progress: Floats, rng: np.random.Generator) -> None:
    """The right arm over the head."""
    pose.arm[:, 1] += math.radians(rng.uniform(125, 150)) * strength


def reach(pose: Pose, strength: Floats, _progress: Floats, rng: np.random.Generator) -> None:
    """Both arms over the head."""
    pose.arm[:] += math.radians(rng.uniform(130, 150)) * strength[:, None]


def kick(pose: Pose, strength: Floats, _progress: Floats, rng: np.random.Generator) -> None:
    """The right leg to the side, the body leaning away."""
    angle = math.radians(rng.uniform(60, 80)) * strength
    pose.leg[:, 1] += angle
    pose.lean[:] -= 0.2 * angle
    pose.arm[:] += 0.35 * angle[:, None]


def swing(pose: Pose, strength: Floats, progress: Floats, rng: np.random.Generator) -> None:
    """The right arm sweeps between hip and head, two or three times."""
    sweep = np.sin(2 * math.pi * rng.uniform(1.8, 3.2) * progress + rng.uniform(0, 2 * math.pi))
    pose.arm[:, 1] += (math.radians(80) + math.radians(rng.uniform(35, 50)) * sweep) * strength


def flap(pose: Pose, strength: Floats, progress: Floats, rng: np.random.Generator) -> None:
    """Both arms up and down together."""
    beat = np.sin(2 * math.pi * rng.uniform(1.8, 3.2) * progress + rng.uniform(0, 2 * math.pi))
    pose.arm[:] += ((math.radians(55) + math.radians(rng.uniform(25, 40)) * beat) * strength)[:, None]


def legs_apart(pose: Pose, strength: Floats, progress: Floats, rng: np.random.Generator) -> None:
    """Both straight legs out and back, two or three times (on a high stool: the hips stay)."""
    beat = 0.5 - 0.5 * np.cos(2 * math.pi * rng.uniform(1.8, 3.2) * progress + rng.uniform(-0.5, 0.5))
    pose.leg[:] += (math.radians(rng.uniform(30, 45)) * beat * strength)[:, None]


def knees_up(pose: Pose, strength: Floats, progress: Floats, rng: np.random.Generator) -> None:
    """One foot after the other is pulled up, two or three times (on a high stool: the hips stay)."""
    beat = np.sin(2 * math.pi * rng.uniform(1.8, 3.2) * progress + rng.uniform(-0.5, 0.5))
    lift = math.radians(rng.uniform(55, 70)) * np.maximum(0, np.stack([beat, -beat], axis=1)) * strength[:, None]
    pose.leg[:] += lift
    pose.knee[:] += 2 * lift


def rest_pose(person: Person, num_frames: int, rng: np.random.Generator) -> Pose:
    """Standing still with a slight, stationary sway: no frame differs in distribution from any other."""

    def sway(columns: int, amplitude: float) -> Floats:
        time = np.arange(num_frames)[:, None] / 50
        phase = rng.uniform(0, 2 * math.pi, columns)
        result: Floats = amplitude * np.sin(2 * math.pi * rng.uniform(0.5, 2.0, columns) * time + phase)
        return result

    return Pose(
        arm=person.arms_apart + rng.uniform(-0.06, 0.06, 2) + sway(2, 0.04),
        elbow=rng.uniform(0.0, 0.15, 2) + sway(2, 0.04),
        leg=rng.uniform(0.04, 0.12) + sway(2, 0.01),
        knee=np.zeros((num_frames, 2)),
        lean=rng.uniform(-0.03, 0.03) + sway(1, 0.015)[:, 0],
    )


def act(pose: Pose, actions: tuple[Action, ...], rng: np.random.Generator) -> None:
    """Perform the actions one after another, with rest before, between and after them."""
    time = (np.arange(len(pose.lean)) + 0.5) / len(pose.lean)
    rests = rng.uniform(0.07, 0.13, len(actions) + 1)
    shares = rng.uniform(0.8, 1.25, len(actions))
    durations = shares / shares.sum() * (1 - rests.sum())
    start = 0.0
    for action, rest, duration in zip(actions, rests, durations, strict=False):
        start += rest
        progress = np.clip((time - start) / duration, 0, 1)
        ramp = np.clip(np.minimum(progress, 1 - progress) / 0.35, 0, 1)
        action(pose, ramp * ramp * (3 - 2 * ramp), progress, rng)
        start += duration


def joint_positions(person: Person, pose: Pose, *, seated: bool) -> Floats:
    """(T, J, 2) in body heights, y downward, the ground at 0 below the middle of the hips.

    The lowest foot stands on the ground; of a `seated` person the hips stay where standing would have them.
    """
    sides = SIDES[None, :]

    def limb(start: Floats, angle: Floats, length: float) -> Floats:
        return start + length * np.stack([sides * np.sin(angle), np.cos(angle)], axis=-1)

    num_frames = len(pose.lean)
    hip = np.zeros((num_frames, 2, 2))
    hip[..., 0] = sides * person.hips
    knee = limb(hip, pose.leg, person.thigh)
    ankle = limb(knee, pose.leg - pose.knee, person.shank)

    lean = pose.lean[:, None]
    spine = np.stack([np.sin(lean), -np.cos(lean)], axis=-1)
    across = np.stack([np.cos(lean), np.sin(lean)], axis=-1)
    shoulder = person.torso * spine + sides[..., None] * person.shoulders * across
    elbow = limb(shoulder, pose.arm, person.upper_arm)
    wrist = limb(elbow, pose.arm + pose.elbow, person.forearm)
    head = (person.torso + person.neck) * spine

    joints = np.concatenate([head, shoulder, elbow, wrist, hip, knee, ankle], axis=1)
    standing = person.thigh + person.shank
    joints[..., 1] -= standing if seated else ankle[..., 1].max(axis=1, keepdims=True)
    return joints


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What of a clip is not motion: clothes, place, light, camera."""

    shirt: Color
    trousers: Color
    shoes: Color
    wall: tuple[Color, Color]
    """At the top and at the bottom of the wall."""
    floor: Color
    panel: Color
    panel_stripe: Color
    light: float
    height_px: float
    """Of the body."""
    feet_px: tuple[float, float]
    """Where it stands half-way through the clip, x and y."""
    drift_px: tuple[float, float]
    """How far the camera moves it from the first frame to the last."""


def draw_look(size_px: int, rng: np.random.Generator) -> Look:
    """Muted colours: nobody wears what `render` paints a held ball with."""

    def muted(low: float, high: float) -> Color:
        level = rng.uniform(low, high)
        red, green, blue = level + rng.uniform(-12, 12, 3)
        return (float(red), float(green), float(blue))

    wall = muted(120, 200)
    return Look(
        shirt=muted(30, 75) if rng.random() < 0.5 else muted(215, 235),
        trousers=muted(25, 80),
        shoes=muted(20, 60),
        wall=(wall, (wall[0] - 15, wall[1] - 15, wall[2] - 15)),
        floor=muted(90, 130),
        panel=muted(90, 190),
        panel_stripe=muted(90, 190),
        light=float(rng.uniform(0.85, 1.1)),
        height_px=float(size_px * rng.uniform(0.66, 0.76)),
        feet_px=(float(size_px * rng.uniform(0.42, 0.58)), float(size_px * rng.uniform(0.90, 0.95))),
        drift_px=(float(size_px * rng.uniform(-0.03, 0.03)), float(size_px * rng.uniform(-0.01, 0.01))),
    )


def place(joints: Floats, look: Look) -> Floats:
    """From body heights to pixels: (T, J, 2)."""
    drift = np.linspace(-0.5, 0.5, len(joints))[:, None, None] * np.asarray(look.drift_px)
    placed: Floats = joints * look.height_px + np.asarray(look.feet_px) + drift
    return placed


def render(
    joints_px: Floats,
    person: Person,
    look: Look,
    size_px: int,
    ball: Color | None,
    panel: bool,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Draw the frames: uint8 (T, size_px, size_px, 3), RGB.

    Args:
        joints_px: (T, J, 2), from `place`.
        person: Whose body it is.
        look: The clip's clothes, place and light.
        size_px: Side of the frames.
        ball: Colour of a ball in the right hand.
        panel: Whether an opaque panel hides everything from the hips down.
        rng: For sensor noise and flicker.
    """
    num_frames = len(joints_px)
    backdrop = _backdrop(look, size_px)
    noise = np.clip(rng.normal(16, 1.2, (size_px + 16, size_px + 16, 3)), 0, 32).astype(np.uint8)
    shifts = rng.integers(0, 16, (num_frames, 2))
    light = look.light * (
        1 + 0.02 * np.sin(np.arange(num_frames) * rng.uniform(0.05, 0.3) + rng.uniform(0, 2 * math.pi))
    )

    points = np.rint((joints_px - 0.5) * 2**SUBPIXEL_BITS).astype(np.int32)
    frames = np.empty((num_frames, size_px, size_px, 3), np.uint8)
    for frame, joints, gain, (down, right) in zip(frames, points, light, shifts, strict=True):
        picture = backdrop.copy()
        _draw_body(picture, joints, person, look)
        if ball is not None:
            _draw_disc(picture, joints[6], 0.085 * look.height_px, ball)
        if panel:
            _draw_panel(picture, joints, look)
        cv2.addWeighted(picture, gain, noise[down : down + size_px, right : right + size_px], 1.0, -16.0, dst=frame)
    return frames


def _backdrop(look: Look, size_px: int) -> NDArray[np.uint8]:
    rows = np.linspace(0, 1, size_px)[:, None]
    wall = np.asarray(look.wall[0]) * (1 - rows) + np.asarray(look.wall[1]) * rows
    wall[int(0.8 * size_px) :] = look.floor
    picture = np.repeat(wall[:, None], size_px, axis=1)
    return np.ascontiguousarray(np.clip(np.rint(picture), 0, 255).astype(np.uint8))


def _draw_body(picture: NDArray[np.uint8], joints: Points, person: Person, look: Look) -> None:
    thick = max(2, round(0.062 * look.height_px))
    toes = joints[11:13] + np.array([0, round(0.02 * look.height_px * 2**SUBPIXEL_BITS)], np.int32)
    chest = (joints[1] + joints[2]) // 2
    _draw_lines(picture, joints[[[7, 9, 11], [8, 10, 12]]], look.trousers, thick + 1)
    _draw_lines(picture, np.stack([joints[11:13], toes], axis=1), look.shoes, thick)
    _draw_lines(picture, joints[[[1, 3], [2, 4]]], look.shirt, thick)
    _draw_lines(picture, joints[[[3, 5], [4, 6]]], person.skin, max(2, thick - 1))
    _draw_lines(picture, np.stack([joints[0], chest])[None], person.skin, thick)
    cv2.fillConvexPoly(picture, joints[[1, 2, 8, 7]], look.shirt, cv2.LINE_AA, SUBPIXEL_BITS)
    _draw_lines(picture, joints[[[1, 2]]], look.shirt, thick)
    _draw_lines(picture, joints[[[7, 8]]], look.trousers, thick)
    _draw_disc(picture, joints[0], person.head * look.height_px, person.skin)


def _draw_panel(picture: NDArray[np.uint8], joints: Points, look: Look) -> None:
    """Across the whole picture, from just above the hips: no leg can show beside it."""
    hips_px = int(joints[7:9, 1].min()) / 2**SUBPIXEL_BITS
    top = max(0, int(hips_px - 0.05 * look.height_px))
    picture[top:] = look.panel
    picture[top : top + max(1, round(0.04 * look.height_px))] = look.panel_stripe


def _draw_lines(picture: NDArray[np.uint8], lines: Points, color: Color, thickness_px: int) -> None:
    """`lines`: (lines, points, 2)."""
    cv2.polylines(picture, list(lines), False, color, thickness_px, cv2.LINE_AA, SUBPIXEL_BITS)


def _draw_disc(picture: NDArray[np.uint8], centre: Points, radius_px: float, color: Color) -> None:
    x, y = centre.tolist()
    cv2.circle(picture, (x, y), round(radius_px * 2**SUBPIXEL_BITS), color, -1, cv2.LINE_AA, SUBPIXEL_BITS)
