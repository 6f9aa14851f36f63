"""Pictures of videos with their joints drawn, to look at before the joints are used."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from starlab.pipelines.clip import UnreadableClipError
from starlab.pipelines.contact_sheet import GAP_PX, draw_joints
from starlab.pipelines.estimated_joints import ESTIMATOR_SKELETONS
from starlab.platform.pose.clips import Clips
from starlab.platform.pose.joints_file import read_clips, settings_of

FRAMES, COLUMNS = 12, 4
LONG_SIDE_PX = 480
"""Of a frame in a picture."""


def write_pictures(clips: Clips, joints_file: Path, folder: Path) -> int:
    """Write a PNG for each clip of a file of estimated joints: `FRAMES` frames spread over the video. Returns their number.

    Args:
        clips: The videos that the joints were estimated of.
        joints_file: The Parquet file.
        folder: Where to. A clip's name with folders becomes a name with "_".
    """
    settings = settings_of(joints_file)
    skeleton = ESTIMATOR_SKELETONS["coco" if settings is None else settings.skeleton]
    numbers = {clip_id: number for number, clip_id in enumerate(clips.clip_ids)}
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for clip_id, joints, _ in read_clips(joints_file):
        picked = set(np.linspace(0, len(joints) - 1, min(FRAMES, len(joints))).round().astype(int).tolist())
        try:
            tiles = [
                draw_joints(_shrunk(frame), joints[number], skeleton)
                for number, frame in enumerate(clips.frames(numbers[clip_id]))
                if number in picked
            ]
        except (UnreadableClipError, KeyError):  # the video has changed or gone since
            continue
        _, png = cv2.imencode(".png", cv2.cvtColor(_sheet(tiles), cv2.COLOR_RGB2BGR))
        (folder / f"{clip_id.replace('/', '_')}.png").write_bytes(png.tobytes())
        count += 1
    return count


def _shrunk(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    scale = LONG_SIDE_PX / max(frame.shape[:2])
    if scale >= 1:
        return frame
    return np.asarray(cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)


def _sheet(tiles: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Tiles in rows, left to right, on white."""
    height, width, _ = tiles[0].shape
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * (height + GAP_PX) - GAP_PX, columns * (width + GAP_PX) - GAP_PX, 3), 255, np.uint8)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        sheet[row * (height + GAP_PX) :, column * (width + GAP_PX) :][:height, :width] = tile
    return sheet
