"""MoveNet MultiPose: the 17 COCO joints of up to six people in a frame."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from starlab.platform.pose.graph import read_graph
from starlab.platform.pose.model_file import ModelFiles

LONG_SIDE_PX = 384
"""Long side that a frame is scaled to. docs/pose.md has what other sizes find and cost."""
MULTIPLE_PX = 32
"""Both sides of the model's input are multiples of it."""
MAX_PEOPLE, NUM_JOINTS = 6, 17
MIN_PERSON_SCORE = 0.15
MIN_JOINT_SCORE = 0.1
"""The model gives every joint a place. Below this it is a guess, as of legs under a table."""
_SCORE = 55
"""Where the score of a person is in its row of 56 numbers: after 17 × (y, x, score) and the box."""


class MoveNet:
    """Frames → joints. A `clip_joints.Estimator`."""

    def __init__(self, files: ModelFiles, long_side_px: int = LONG_SIDE_PX) -> None:
        """Read the model's graph.

        Args:
            files: The model's files.
            long_side_px: What the frames' long side is scaled to, in pixels; more finds smaller people and takes longer.
        """
        self._graph = read_graph(files.description, files.weights)
        self._long_side_px = long_side_px

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Joints of the people in each frame. A frame in which nobody is found is looked at again at half the size.

        Args:
            frames: (T, H, W, 3), uint8, RGB.

        Returns:
            (T, 6, 17, 3), float32: x and y as fractions of the frame from its left and top edge, and the confidence in
            [0, 1]. A joint that was not seen is 0, 0, 0, and so are all joints of a person who is not there. The order of
            the people differs from frame to frame.
        """
        found = np.zeros((len(frames), MAX_PEOPLE, NUM_JOINTS, 3), np.float32)
        for number, frame in enumerate(frames):
            for long_side_px in (self._long_side_px, self._long_side_px // 2):  # a close-up is found when it is smaller
                found[number] = self._estimate(frame, long_side_px)
                if found[number].any():
                    break
        return found

    def _estimate(self, frame: NDArray[np.uint8], long_side_px: int) -> NDArray[np.float32]:
        picture, (height, width) = letterbox(frame, long_side_px)
        [rows] = self._graph(torch.from_numpy(picture.astype(np.int32)[None]))[0].numpy()
        joints: NDArray[np.float32] = rows[:, : 3 * NUM_JOINTS].reshape(MAX_PEOPLE, NUM_JOINTS, 3)[..., [1, 0, 2]]
        joints[..., 0] *= picture.shape[1] / width
        joints[..., 1] *= picture.shape[0] / height
        joints[..., 2] = np.clip(joints[..., 2], 0, 1)
        joints[rows[:, _SCORE] <= MIN_PERSON_SCORE] = 0
        joints[joints[..., 2] < MIN_JOINT_SCORE] = 0
        return joints


def letterbox(frame: NDArray[np.uint8], long_side_px: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The frame scaled to a long side, with black to its right and below it up to multiples of 32 pixels.

    Returns:
        The picture, (H, W, 3), and the height and width of the part of it that is the frame.
    """
    height, width = frame.shape[:2]
    scale = long_side_px / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    picture = np.zeros((*(-(-side // MULTIPLE_PX) * MULTIPLE_PX for side in size), 3), np.uint8)
    picture[: size[0], : size[1]] = cv2.resize(frame, size[::-1], interpolation=method)
    return picture, size
