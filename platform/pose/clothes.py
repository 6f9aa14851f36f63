"""What the people of a frame wear, as two mean colours: tells a tracker two people apart who cross."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from starlab.pipelines.skeletons import Skeleton

PARTS = (("shoulder", "hip"), ("hip", "knee"))
"""Pairs of joints, on both sides, that clothes lie between."""
NUM_COLORS = 3 * len(PARTS)
_LEAST_WIDTH = 0.3
"""Width of the region looked at for a person seen from the side, in heights of the region."""


def clothes_colors(frame: NDArray[np.uint8], bodies: NDArray[np.float32], skeleton: Skeleton) -> NDArray[np.float32]:
    """Mean colours of the upper body and of the upper legs.

    Args:
        frame: (H, W, 3), uint8, RGB.
        bodies: (M, N, 3): x and y as fractions of the frame, and the confidence.
        skeleton: The skeleton of the joints.

    Returns:
        (M, 6), float32, in [0, 1]: red, green and blue of both parts; NaN where a part was not seen or the skeleton has none.
    """
    height, width = frame.shape[:2]
    colors = np.full((len(bodies), NUM_COLORS), np.nan, np.float32)
    for part, ends in enumerate(PARTS):
        names = [f"{side}_{name}" for name in ends for side in ("left", "right")]
        if not set(names) <= set(skeleton.joints):
            continue
        joints = [skeleton.joints.index(name) for name in names]
        for number, body in enumerate(bodies):
            corners = body[joints]
            if not (corners[:, 2] > 0).all():
                continue
            places = corners[:, :2] * (width, height)
            (left, top), (right, bottom) = places.min(axis=0), places.max(axis=0)
            middle, half = (left + right) / 2, max(right - left, _LEAST_WIDTH * (bottom - top)) / 2
            rows = slice(max(0, round(top)), max(0, round(bottom)) + 1)
            columns = slice(max(0, round(middle - half)), max(0, round(middle + half)) + 1)
            region = frame[rows, columns].reshape(-1, 3)
            if len(region):
                colors[number, 3 * part : 3 * part + 3] = region.mean(axis=0) / 255
    return colors
