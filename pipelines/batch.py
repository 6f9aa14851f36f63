"""A batch of clips, as the stream returns it and the model takes it. Imports NumPy alone.

Letters: B clips  T frames  H W pixels  M bodies  N joints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Batch:
    """Clips ready for the model."""

    frames: NDArray[np.uint8]
    """(B, T, H, W, 3), RGB."""
    joints: NDArray[np.float32]
    """(B, T, M, N, 3): x, y in [0, 1] of the frame, confidence in [0, 1]."""
    labels: NDArray[np.int64]
    """(B,)"""
    clips: NDArray[np.int64]
    """(B,) index of each clip in the source."""
    positions: NDArray[np.int64]
    """(B,) position in the training stream; in an evaluation, position in its list of clips."""
    unreadable: tuple[tuple[str, str], ...]
    """(clip id, reason) of each clip of this batch that could not be read: replaced in training, left out in an evaluation."""
