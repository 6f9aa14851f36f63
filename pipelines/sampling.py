"""The choice of the frames of a clip that a model sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class View:
    """One of several views of a test clip: which frames, and which part of the picture."""

    time: int = 0
    times: int = 1
    """Views in time; each takes another place within the segments."""
    place: int = 0
    places: int = 1
    """Views of the picture, side by side along its longer side."""


MIDDLE = View()
"""The view of a clip that has only one."""


def pick_frames(num_frames: int, count: int, rng: np.random.Generator | None, view: View = MIDDLE) -> NDArray[np.int64]:
    """Cut the clip into `count` equal segments and pick one frame of each.

    Args:
        num_frames: Frames in the clip, at least 1.
        count: Frames to pick, at least 1.
        rng: None picks the middle of each segment (the paper's "16 fixed frames"); else a uniform draw within each.
        view: Without `rng`, the middle of this one of `view.times` equal parts of each segment.

    Returns:
        int64 (count,), indices in [0, num_frames) that never decrease. They are all different when the clip has at
        least `count` frames; a shorter clip repeats frames.

    Raises:
        ValueError: `num_frames` or `count` is below 1.
    """
    if num_frames < 1 or count < 1:
        raise ValueError(f"num_frames and count must be at least 1, got {num_frames} and {count}")
    segments = np.arange(count, dtype=np.int64)
    if rng is None:
        parts = 2 * view.times
        return (parts * segments + 2 * view.time + 1) * num_frames // (parts * count)
    starts = segments * num_frames // count
    ends = np.maximum((segments + 1) * num_frames // count, starts + 1)
    return rng.integers(starts, ends, dtype=np.int64)
