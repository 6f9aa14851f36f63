"""Joints made worse on purpose: noise on their places and joints that are missing, to see what a model makes of them.

Letters: T frames, M bodies, N joints.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from starlab.pipelines.sources import DataConfig


def add_joint_noise(
    joints: NDArray[np.float32], config: DataConfig, clip_id: str, num_frames: int, picked: Sequence[int]
) -> None:
    """Move and remove joints in place, as `data.joint_jitter_px` and `data.joint_drop` say.

    The noise is a function of the clip and the frame alone, as that of an estimator's file would be: it is the same in every
    epoch and for every part, run and number of workers.

    Args:
        joints: (T, M, N, 3): x and y as fractions of the frame, confidence.
        config: The settings.
        clip_id: Name of the clip.
        num_frames: Frames of the whole clip.
        picked: The T frames that these joints belong to.
    """
    if not (config.joint_jitter_px or config.joint_drop):
        return
    rng = np.random.default_rng(zlib.crc32(clip_id.encode()))
    shape = (num_frames, *joints.shape[1:3])
    moves, draws = rng.standard_normal((*shape, 2)), rng.random(shape)  # both, so that neither depends on the other setting
    joints[..., :2] += (config.joint_jitter_px / config.size * moves[picked]).astype(np.float32)
    inside = ((joints[..., :2] >= 0) & (joints[..., :2] < 1)).all(axis=-1)
    joints[..., 2] *= inside & (draws[picked] >= config.joint_drop)
