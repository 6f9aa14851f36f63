"""Draws the frames of a clip with its joints, and which places of the picture were important."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from starlab.pipelines.contact_sheet import draw_joints
from starlab.pipelines.skeletons import Skeleton

_FRAME_PX = 112
_COLUMNS = 8


def picture(
    frames: NDArray[np.uint8], joints: NDArray[np.float32], grid: NDArray[np.float32], skeleton: Skeleton
) -> NDArray[np.uint8]:
    """Draw frames (T, H, W, 3) with joints (T, M, N, 3), and below each row of them the importance of their places.

    `grid` holds the importance (T, P) of the square map's cells, or (T, 0) if the model sees no pixels. Returns uint8 RGB.
    """
    with_joints = [draw_joints(_sized(frame), body, skeleton) for frame, body in zip(frames, joints, strict=True)]
    rows = [with_joints]
    if grid.shape[1]:
        side = round(grid.shape[1] ** 0.5)
        shade = grid.reshape(len(frames), side, -1) / max(float(grid.max()), 1e-12)
        rows.append([_lit(_sized(frame), cells) for frame, cells in zip(frames, shade, strict=True)])
    blocks = []
    for first in range(0, len(frames), _COLUMNS):
        for row in rows:
            shown = row[first : first + _COLUMNS]
            shown += [np.full_like(shown[0], 255)] * (min(_COLUMNS, len(frames)) - len(shown))
            blocks.append(np.concatenate([np.pad(one, ((0, 3), (0, 3), (0, 0)), constant_values=255) for one in shown], axis=1))
    return np.concatenate(blocks)


def _lit(frame: NDArray[np.uint8], cells: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Darken a frame where it is unimportant."""
    light = cv2.resize(cells.astype(np.float32), frame.shape[1::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)
    lit: NDArray[np.uint8] = (frame * (0.15 + 0.85 * light[..., None])).astype(np.uint8)
    return lit


def _sized(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    how = cv2.INTER_AREA if len(frame) > _FRAME_PX else cv2.INTER_CUBIC
    sized: NDArray[np.uint8] = cv2.resize(frame, (_FRAME_PX, _FRAME_PX), interpolation=how)
    return sized
