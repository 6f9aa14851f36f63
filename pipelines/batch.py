"""A batch of clips, as the stream returns it and the model takes it. Imports NumPy alone.

Letters: B clips  T frames  H W pixels  M bodies  N joints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby

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

    def take(self, clips: slice | NDArray[np.int64]) -> Batch:
        """Return some clips of the batch, by their indices in it. A slice copies nothing."""
        return replace(
            self,
            frames=self.frames[clips],
            joints=self.joints[clips],
            labels=self.labels[clips],
            clips=self.clips[clips],
            positions=self.positions[clips],
        )

    def by_bodies(self) -> tuple[Batch, tuple[tuple[int, tuple[int, ...]], ...] | None]:
        """Order the clips by the bodies that are present in them.

        A body is present if the confidence of any of its joints is above 0 in any frame.

        Returns:
            The batch in that order, and (number of clips, indices of their bodies) for each run of clips with equal bodies, as
            the model takes it. The same batch and None if its clips have one body only.
        """
        if self.joints.shape[2] < 2:
            return self, None
        confidence = self.joints[..., 2]
        seen = np.where(confidence > 0, 1, 0).max((1, 3))
        present = [tuple(np.flatnonzero(clip).tolist()) for clip in seen]
        order = sorted(range(len(present)), key=lambda clip: present[clip])  # stable
        runs = groupby(present[clip] for clip in order)
        return self.take(np.array(order)), tuple((len(list(clips)), bodies) for bodies, clips in runs)
