"""Bodies and motion of generated people.

Letters: T frames, J joints (the 13 of Penn Action), S sides (0 left in the picture, 1 right; all face the camera).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Color = tuple[float, float, float]
"""RGB, 0 to 255."""

SIDES = np.array([-1.0, 1.0])


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """Lengths as fractions of the body height, and how this person stands."""

    head: float
    """Radius."""
    neck: float
    torso: float
    shoulders: float
    """Half the distance between them; `hips` likewise."""
    hips: float
    upper_arm: float
    forearm: float
    thigh: float
    shank: float
    arms_apart: float
    """Radians between the hanging arms and the vertical."""
    skin: Color


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
    """Go down and up again with the feet in place."""
    bend = (math.radians(rng.uniform(46, 60)) * strength)[:, None]
    pose.leg[:] += bend
    pose.knee[:] += 2 * bend
    pose.arm[:] += 0.5 * bend


def wave(pose: Pose, strength: Floats, progress: Floats, rng: np.random.Generator) -> None:
    """Raise the right arm and wave its forearm."""
    swing = np.sin(2 * math.pi * rng.uniform(1.5, 2.5) * progress + rng.uniform(0, 2 * math.pi))
    pose.arm[:, 1] += math.radians(rng.uniform(90, 110)) * strength
    pose.elbow[:, 1] += (math.radians(rng.uniform(45, 60)) + math.radians(35) * swing) * strength


def raise_left(pose: Pose, strength: Floats, _progress: Floats, rng: np.random.Generator) -> None:
    """Raise the left arm over the head."""
    pose.arm[:, 0] += math.radians(rng.uniform(125, 150)) * strength


def raise_right(pose: Pose, strength: Floats, _progress: Floats, rng: np.random.Generator) -> None:
    """Raise the right arm over the head."""
    pose.arm[:, 1] += math.radians(rng.uniform(125, 150)) * strength


def reach(pose: Pose, strength: Floats, _progress: Floats, rng: np.random.Generator) -> None:
    """Raise both arms over the head."""
    pose.arm[:] += math.radians(rng.uniform(130, 150)) * strength[:, None]


def kick(pose: Pose, strength: Floats, _progress: Floats, rng: np.random.Generator) -> None:
    """Kick the right leg to the side while the body leans away."""
    angle = math.radians(rng.uniform(60, 80)) * strength
    pose.leg[:, 1] += angle
    pose.lean[:] -= 0.2 * angle
    pose.arm[:] += 0.35 * angle[:, None]


def swing(pose: Pose, strength: Floats, progress: Floats, rng: np.random.Generator) -> None:
    """Sweep the right arm between hip and head, two or three times."""
    sweep = np.sin(2 * math.pi * rng.uniform(1.8, 3.2) * progress + rng.uniform(0, 2 * math.pi))
    pose.arm[:, 1] += (math.radians(80) + math.radians(rng.uniform(35, 50)) * sweep) * strength


def flap(pose: Pose, strength: Floats, progress: Floats, rng: np.random.Generator) -> None:
    """Move both arms up and down together."""
    beat = np.sin(2 * math.pi * rng.uniform(1.8, 3.2) * progress + rng.uniform(0, 2 * math.pi))
    pose.arm[:] += ((math.radians(55) + math.radians(rng.uniform(25, 40)) * beat) * strength)[:, None]


def legs_apart(pose: Pose, strength: Floats, progress: Floats, rng: np.random.Generator) -> None:
    """Spread both straight legs to the sides and sway them (seated on a high stool: the hips stay)."""
    sway = np.sin(2 * math.pi * rng.uniform(1.8, 3.2) * progress + rng.uniform(0, 2 * math.pi))
    pose.leg[:] += (math.radians(rng.uniform(38, 48)) * (0.85 + 0.15 * sway) * strength)[:, None]


def knees_up(pose: Pose, strength: Floats, progress: Floats, rng: np.random.Generator) -> None:
    """Pull both feet up under the body and sway them (seated on a high stool: the hips stay)."""
    sway = np.sin(2 * math.pi * rng.uniform(1.8, 3.2) * progress + rng.uniform(0, 2 * math.pi))
    lift = (math.radians(rng.uniform(58, 68)) * (0.9 + 0.1 * sway) * strength)[:, None]
    pose.leg[:] += lift
    pose.knee[:] += 2 * lift


def rest_pose(person: Person, num_frames: int, rng: np.random.Generator) -> Pose:
    """Stand still with a slight, stationary sway: every frame has the same distribution."""

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
