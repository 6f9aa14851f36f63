"""What is checked about the numbers in a file of estimated joints before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from starlab.pipelines.skeletons import Skeleton

FAR_OUTSIDE = 1.0
"""A place further than this outside the frame, in frames, is not one that an estimator gives in fractions."""
_GROUPS_AT_ONCE = 16


def flat_numbers(lists: pa.Array) -> NDArray[np.float32]:
    """The numbers of all lists of an array, end to end."""
    flat: NDArray[np.float32] = lists.flatten().to_numpy(zero_copy_only=False)
    return flat


def joint_problems(path: Path, wanted: set[str], skeleton: Skeleton, clamp: bool) -> Iterator[str]:
    """What makes the joints of the wanted clips unusable as a whole, from one pass over the file."""
    outside, total, lowest, highest, example = 0, 0, 0.0, 1.0, ""
    for clip_id, values_per_joint, flat in _clips_in(path, wanted):
        num_joints, rest = divmod(flat.size, values_per_joint) if values_per_joint else (0, flat.size)
        if rest or not num_joints:
            continue  # found when the clip is read
        if num_joints != len(skeleton.joints):
            yield (
                f"clip {clip_id} has {num_joints} joints, the skeleton {skeleton.name} has {len(skeleton.joints)}: "
                "is data.estimated_skeleton right?"
            )
        x, y, confidence = flat.reshape(-1, 3).T
        seen = np.isfinite(x) & np.isfinite(y) & (confidence > 0)
        far = (np.minimum(x, y)[seen] < -FAR_OUTSIDE) | (np.maximum(x, y)[seen] > 1 + FAR_OUTSIDE)
        if 2 * far.sum() > len(far):
            yield (
                f"x reaches {x[seen].max():.6g} and y {y[seen].max():.6g} in clip {clip_id}: pixels? They must be fractions of "
                "the frame: divide x by its width and y by its height"
            )
        wrong = int((~((confidence >= 0) & (confidence <= 1))).sum())
        outside, total = outside + wrong, total + len(confidence)
        if wrong:
            example = example or clip_id
            lowest, highest = min(lowest, float(confidence.min())), max(highest, float(confidence.max()))
    if outside and not clamp:
        yield (
            f"{outside:,} of {total:,} confidences lie outside [0, 1], from {lowest:.4g} to {highest:.4g}, first in clip "
            f"{example}: clamp them with data.clamp_confidence=true, or scale them in the file"
        )


def _clips_in(path: Path, wanted: set[str]) -> Iterator[tuple[str, int, NDArray[np.float32]]]:
    """Clip id, numbers per joint (3 × frames × bodies) and all numbers of each wanted clip."""
    with pq.ParquetFile(path) as file:
        for first in range(0, file.num_row_groups, _GROUPS_AT_ONCE):
            groups = range(first, min(first + _GROUPS_AT_ONCE, file.num_row_groups))
            table = file.read_row_groups(list(groups), columns=["clip_id", "num_frames", "num_bodies", "joints"])
            lists = pa.concat_arrays(table["joints"].chunks)
            flat, ends = flat_numbers(lists), np.cumsum(pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False))
            counts = (table[name].to_pylist() for name in ("clip_id", "num_frames", "num_bodies"))
            start = 0
            for clip_id, num_frames, num_bodies, end in zip(*counts, ends.tolist(), strict=True):
                if clip_id in wanted:
                    yield clip_id, 3 * num_frames * num_bodies, flat[start:end]
                start = end
    pa.default_memory_pool().release_unused()
