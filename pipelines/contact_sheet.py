"""A clip on one page: the frames that a model sees, with their joints drawn."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from starlab.pipelines.augment import AugmentConfig, fit
from starlab.pipelines.clip import ClipRow, ClipSource
from starlab.pipelines.sampling import pick_frames
from starlab.pipelines.skeletons import Skeleton

BODY_COLORS = ((80, 255, 80), (255, 170, 40))
"""RGB of the bones of the first and the second body; left and right joints are blue and red."""
LEFT, RIGHT, MIDDLE = (60, 130, 255), (255, 70, 70), (255, 255, 120)
GAP_PX = 4
BLOCK_GAP_PX = 16
COLUMNS = 8


def draw_joints(frame: NDArray[np.uint8], joints: NDArray[np.float32], skeleton: Skeleton) -> NDArray[np.uint8]:
    """A copy of the frame (H, W, 3) with the bones and joints (M, N, 3) of its bodies; those of confidence 0 are left out."""
    picture = frame.copy()
    height, width = frame.shape[:2]
    radius = max(1, round(min(height, width) / 75))
    for body, color in zip(joints, BODY_COLORS * len(joints), strict=False):
        # Sub-pixel, in 1/16; a fraction counts from the frame's edge, a picture's coordinates from the first pixel's middle.
        places = np.rint((body[:, :2] * (width, height) - 0.5) * 16).astype(int)
        seen = body[:, 2] > 0
        for first, second in skeleton.bones:
            if seen[first] and seen[second]:
                cv2.line(picture, places[first].tolist(), places[second].tolist(), color, 1, cv2.LINE_AA, shift=4)
        for name, place, there in zip(skeleton.joints, places, seen, strict=True):
            if there:
                side = LEFT if name.startswith("left_") else RIGHT if name.startswith("right_") else MIDDLE
                cv2.circle(picture, place.tolist(), 16 * radius, side, -1, cv2.LINE_AA, shift=4)
    return picture


def contact_sheet(
    frames: NDArray[np.uint8], joints: NDArray[np.float32], skeleton: Skeleton, columns: int = COLUMNS
) -> NDArray[np.uint8]:
    """All frames (T, H, W, 3) with their joints (T, M, N, 3) in rows of `columns`, left to right; uint8, RGB."""
    count, height, width, _ = frames.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.full((rows * (height + GAP_PX) - GAP_PX, columns * (width + GAP_PX) - GAP_PX, 3), 255, np.uint8)
    for index in range(count):
        row, column = divmod(index, columns)
        top, left = row * (height + GAP_PX), column * (width + GAP_PX)
        sheet[top : top + height, left : left + width] = draw_joints(frames[index], joints[index], skeleton)
    return sheet


def write_contact_sheet(source: ClipSource, row: ClipRow, path: Path, *, num_frames: int, size_px: int, seed: int = 0) -> None:
    """Write a PNG of the clip: above as in an evaluation, below with one draw of the standard augmentation.

    The augmented frames are cropped, mirrored and jittered, so that a joint on the wrong side would show.

    Raises:
        UnreadableClipError: the clip cannot be read.
        OSError: the picture cannot be written.
    """
    rng = np.random.default_rng(seed)
    augmented = AugmentConfig(mode="standard", flip=True, color_jitter=0.3)
    blocks = []
    for config, draws in ((AugmentConfig(), None), (augmented, rng)):
        picked = pick_frames(row.num_frames, num_frames, draws)
        frames, joints = fit(source.read(row, picked.tolist(), size_px), size_px, config, source.skeleton.mirror, draws)
        blocks.append(contact_sheet(frames, joints, source.skeleton))
    gap = np.full((BLOCK_GAP_PX, blocks[0].shape[1], 3), 255, np.uint8)
    sheet = np.concatenate([blocks[0], gap, blocks[1]])
    written, png = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    if not written:
        raise OSError(f"the picture for {path} could not be encoded")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png.tobytes())
