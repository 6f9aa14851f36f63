"""A decoded frame to the picture that a player shows: upright, square pixels, 8-bit RGB, without combs, on black."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from starlab.pipelines.hdr import HLG, PQ, tone_map

Matrix = tuple[int, int, int, int]
"""The signs (-1, 0 or 1) of a, b, c, d of a display matrix: pixel (x, y) is shown at (a·x + c·y, b·x + d·y)."""
UPRIGHT: Matrix = (1, 0, 0, 1)
MOST_SQUEEZED = 4.0
"""Pixels that are wider or higher than this are a mistake in the header."""


def display_matrix(frame: av.VideoFrame) -> Matrix:
    """How a player turns and mirrors the frame.

    Raises:
        ValueError: it is turned by something else than a multiple of 90°.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return UPRIGHT
    a, b, _, c, d, *_ = struct.unpack("<9i", bytes(data)[:36])
    straight, turned = min(abs(a), abs(d)), min(abs(b), abs(c))
    if not straight and not turned:
        return UPRIGHT  # not a matrix; players ignore it
    if min(straight, turned) * 100 > max(straight, turned):
        raise ValueError("it is turned by an angle that is not a multiple of 90°: turn it upright with a video editor")
    signs = (a, 0, 0, d) if straight > turned else (0, b, c, 0)
    return tuple((value > 0) - (value < 0) for value in signs)  # type: ignore[return-value]


class Developer:
    """Makes pictures of one stream's frames; holds the scaler, so use one for each stream and thread."""

    def __init__(self, short_side_px: int) -> None:
        """Shrink to this short side by averaging over areas; never enlarge."""
        self._short_side_px = short_side_px
        self._scaler = VideoReformatter()

    def develop(self, frame: av.VideoFrame, pixel_aspect: float) -> NDArray[np.uint8]:
        """The picture, uint8 (H, W, 3), RGB.

        Args:
            frame: As decoded.
            pixel_aspect: Width over height of its pixels.

        Raises:
            ValueError: see `display_matrix`.
        """
        matrix = display_matrix(frame)
        height, width = shown_size(frame.height, frame.width, pixel_aspect)
        short = min(height, width)
        if short > self._short_side_px:
            height, width = (round(side * self._short_side_px / short) for side in (height, width))
        if frame.color_trc in (PQ, HLG):
            wide = self._scaled(frame, height, width, "rgb48le")
            picture = tone_map(wide.astype(np.uint16, copy=False), frame.color_trc)
        elif frame.interlaced_frame:
            # One field alone: the lines between were taken at another time. The scaler fills them in.
            whole = self._scaled(frame, frame.height, frame.width, "rgb24")
            interpolation = cv2.INTER_AREA if height < frame.height // 2 else cv2.INTER_LINEAR
            field = cv2.resize(whole[::2], (width, height), interpolation=interpolation)
            picture = np.asarray(field, np.uint8)
        elif any(component.is_alpha for component in frame.format.components):
            layered = self._scaled(frame, height, width, "rgba").astype(np.uint16)
            picture = ((layered[..., :3] * layered[..., 3:] + 127) // 255).astype(np.uint8)
        else:
            picture = self._scaled(frame, height, width, "rgb24")
        return turned(picture, matrix)

    def _scaled(self, frame: av.VideoFrame, height: int, width: int, pixel_format: str) -> NDArray[Any]:
        small = self._scaler.reformat(frame, width=width, height=height, format=pixel_format, interpolation="AREA", threads=1)
        pixels: NDArray[Any] = small.to_ndarray()
        return pixels


def shown_size(height: int, width: int, pixel_aspect: float) -> tuple[int, int]:
    """Height and width with square pixels: the side whose pixels are longer grows."""
    if pixel_aspect == 1 or not 1 / MOST_SQUEEZED <= pixel_aspect <= MOST_SQUEEZED:
        return height, width
    return (height, round(width * pixel_aspect)) if pixel_aspect > 1 else (round(height / pixel_aspect), width)


def turned(picture: NDArray[np.uint8], matrix: Sequence[int]) -> NDArray[np.uint8]:
    """The picture turned and mirrored as a display matrix says."""
    a, b, c, d = matrix
    if a == 0:
        picture, a, d = picture.transpose(1, 0, 2), c, b
    if a < 0:
        picture = picture[:, ::-1]
    if d < 0:
        picture = picture[::-1]
    return np.ascontiguousarray(picture)
