"""Pictures of generated people.

Letters: T frames, J joints (the 13 of Penn Action). Positions are in pixels from the picture's top left edge, so the
middle of the first pixel is at 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from starlab.pipelines.generated.people import Color, Floats, Person

Points = NDArray[np.int32]
"""(..., 2): where OpenCV draws, in 1/16 pixel from the middle of the first pixel."""
SUBPIXEL_BITS = 4
"""OpenCV draws at fixed-point positions with this many fractional bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """Everything of a clip but the motion: clothes, place, light, camera."""

    shirt: Color
    trousers: Color
    shoes: Color
    wall: tuple[Color, Color]
    """At the top and at the bottom of the wall."""
    floor: Color
    panel: Color
    """In the middle of the part of the picture that a panel takes."""
    light: float
    height_px: float
    """Of the body."""
    feet_px: tuple[float, float]
    """Position of the feet half-way through the clip, x and y."""
    drift_px: tuple[float, float]
    """How far the camera moves it from the first frame to the last."""


def draw_look(size_px: int, rng: np.random.Generator) -> Look:
    """Draw a look in muted colours, unlike those of the ball that `render` paints."""

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
        panel=muted(110, 145),
        light=float(rng.uniform(0.85, 1.1)),
        height_px=float(size_px * rng.uniform(0.66, 0.76)),
        feet_px=(float(size_px * rng.uniform(0.42, 0.58)), float(size_px * rng.uniform(0.90, 0.95))),
        drift_px=(float(size_px * rng.uniform(-0.03, 0.03)), float(size_px * rng.uniform(-0.01, 0.01))),
    )


def place(joints: Floats, look: Look) -> Floats:
    """Convert body heights to pixels: (T, J, 2)."""
    drift = np.linspace(-0.5, 0.5, len(joints))[:, None, None] * np.asarray(look.drift_px)
    placed: Floats = joints * look.height_px + np.asarray(look.feet_px) + drift
    return placed


@dataclass(frozen=True, slots=True)
class Props:
    """What is in the picture besides the person."""

    ball: Color | None
    """Colour of a ball in the right hand."""
    panel: bool
    """Whether an opaque panel hides everything from the hips down."""


def render(
    joints_px: Floats,
    person: Person,
    look: Look,
    size_px: int,
    props: Props,
    rng: np.random.Generator,
    only: Sequence[int],
) -> NDArray[np.uint8]:
    """Draw frames: uint8 (len(only), size_px, size_px, 3), RGB.

    Args:
        joints_px: (T, J, 2), from `place`.
        person: The person's proportions.
        look: The clip's clothes, place and light.
        size_px: Side of the frames.
        props: What else is in the picture.
        rng: For sensor noise and flicker; the same draws whatever `only` is.
        only: Which of the T frames.
    """
    backdrop, screen = _backdrop(look, size_px, size_px), _panel(look, size_px)
    grain = _Grain(look, len(joints_px), size_px, size_px, rng)
    points = _points(joints_px, look)
    frames = np.empty((len(only), size_px, size_px, 3), np.uint8)
    for frame, index in zip(frames, only, strict=True):
        joints = points[index]
        picture = backdrop.copy()
        _draw_body(picture, joints, person, look, legs=not props.panel)
        if props.ball is not None:
            _draw_disc(picture, joints[6], 0.085 * look.height_px, props.ball)
        if props.panel:
            # Across the whole picture, from just above the hips, so that it hides the legs completely.
            top = max(0, int(joints_px[index, 7:9, 1].min() - 0.05 * look.height_px))
            picture[top:] = screen[top:]
        grain.add(picture, index, frame)
    return frames


@dataclass(frozen=True, slots=True)
class Figure:
    """One of the people in a picture."""

    joints_px: Floats
    """(T, J, 2), from `place`."""
    person: Person
    look: Look
    """Its clothes and its size."""
    cap: Color | None = None
    """Colour of a cap on the head."""


def render_scene(
    figures: Sequence[Figure], place: Look, height_px: int, width_px: int, rng: np.random.Generator, only: Sequence[int]
) -> Iterator[NDArray[np.uint8]]:
    """Draw people into one place, the first one in front: frames, uint8 (height_px, width_px, 3), RGB.

    `place` gives the wall, the floor and the light; `rng` the sensor's noise and flicker, the same draws whatever `only`
    is; and `only` which of the T frames, in which order.
    """
    backdrop = _backdrop(place, height_px, width_px)
    grain = _Grain(place, len(figures[0].joints_px), height_px, width_px, rng)
    points = [_points(figure.joints_px, figure.look) for figure in figures]
    for index in only:
        picture = backdrop.copy()
        for figure, joints in reversed(list(zip(figures, points, strict=True))):
            _draw_body(picture, joints[index], figure.person, figure.look, legs=True)
            if figure.cap is not None:
                radius = figure.person.head * figure.look.height_px
                above = joints[index, 0] - np.array([0, round(0.6 * radius * 2**SUBPIXEL_BITS)], np.int32)
                _draw_disc(picture, above, 0.9 * radius, figure.cap)
        frame = np.empty_like(picture)
        grain.add(picture, index, frame)
        yield frame


class _Grain:
    """Sensor noise and flickering light, which the camera adds to each frame."""

    def __init__(self, look: Look, num_frames: int, height_px: int, width_px: int, rng: np.random.Generator) -> None:
        self._noise = np.clip(rng.normal(16, 1.2, (height_px + 16, width_px + 16, 3)), 0, 32).astype(np.uint8)
        self._shifts = rng.integers(0, 16, (num_frames, 2))
        wave = np.sin(np.arange(num_frames) * rng.uniform(0.05, 0.3) + rng.uniform(0, 2 * math.pi))
        self._light = look.light * (1 + 0.02 * wave)

    def add(self, picture: NDArray[np.uint8], index: int, frame: NDArray[np.uint8]) -> None:
        """Frame number `index` of `picture`, written into `frame`."""
        (down, right), (height, width) = self._shifts[index], picture.shape[:2]
        noise = self._noise[down : down + height, right : right + width]
        cv2.addWeighted(picture, float(self._light[index]), noise, 1.0, -16.0, dst=frame)


def _points(joints_px: Floats, look: Look) -> Points:
    """(T, 16, 2): the 13 joints, then the soles and the top of the chest."""
    soles = joints_px[:, 11:13] + np.array([0.0, 0.02 * look.height_px])
    chest = joints_px[:, 1:3].mean(axis=1, keepdims=True)
    drawn = np.concatenate([joints_px, soles, chest], axis=1)
    points: Points = np.rint((drawn - 0.5) * 2**SUBPIXEL_BITS).astype(np.int32)
    return points


def _backdrop(look: Look, height_px: int, width_px: int) -> NDArray[np.uint8]:
    rows = np.linspace(0, 1, height_px)[:, None]
    wall = np.asarray(look.wall[0]) * (1 - rows) + np.asarray(look.wall[1]) * rows
    wall[int(0.8 * height_px) :] = look.floor
    return _picture(np.repeat(wall[:, None], width_px, axis=1))


def _panel(look: Look, size_px: int) -> NDArray[np.uint8]:
    """Darker towards the floor and greener towards the sides.

    A model that reads its picture features at the joints, as STAR does, would not notice joints that move across a
    plain surface.
    """
    place = np.linspace(0, 1, size_px)
    darker = 240 * (0.74 - place)[:, None, None]
    greener = 220 * (np.abs(place - 0.5) - 0.25)[None, :, None] * np.array([-0.5, 1.0, -0.5])
    return _picture(np.asarray(look.panel) + darker + greener)


def _picture(levels: Floats) -> NDArray[np.uint8]:
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def _draw_body(picture: NDArray[np.uint8], joints: Points, person: Person, look: Look, *, legs: bool) -> None:
    """`joints`: the 13 joints, then the soles (13, 14) and the top of the chest (15)."""
    thick = max(2, round(0.062 * look.height_px))
    if legs:  # left out behind a panel: a line's soft edge would show a grey level of them above it
        _draw_lines(picture, joints[[[7, 9, 11], [8, 10, 12]]], look.trousers, thick + 1)
        _draw_lines(picture, joints[[[11, 13], [12, 14]]], look.shoes, thick)
    _draw_lines(picture, joints[[[1, 3], [2, 4]]], look.shirt, thick)
    _draw_lines(picture, joints[[[3, 5], [4, 6]]], person.skin, max(2, thick - 1))
    _draw_lines(picture, joints[[[0, 15]]], person.skin, thick)
    cv2.fillConvexPoly(picture, joints[[1, 2, 8, 7]], look.shirt, cv2.LINE_AA, SUBPIXEL_BITS)
    _draw_lines(picture, joints[[[1, 2]]], look.shirt, thick)
    _draw_lines(picture, joints[[[7, 8]]], look.trousers, thick)
    _draw_disc(picture, joints[0], person.head * look.height_px, person.skin)


def _draw_lines(picture: NDArray[np.uint8], lines: Points, color: Color, thickness_px: int) -> None:
    """`lines`: (lines, points, 2)."""
    cv2.polylines(picture, list(lines), False, color, thickness_px, cv2.LINE_AA, SUBPIXEL_BITS)


def _draw_disc(picture: NDArray[np.uint8], centre: Points, radius_px: float, color: Color) -> None:
    x, y = centre.tolist()
    cv2.circle(picture, (x, y), round(radius_px * 2**SUBPIXEL_BITS), color, -1, cv2.LINE_AA, SUBPIXEL_BITS)
