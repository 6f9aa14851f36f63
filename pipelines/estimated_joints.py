"""Joints from any pose estimator: one Parquet file, used instead of the joints of any data set.

One row per clip, four columns:

- `clip_id`, string: the data set's name of the clip; each once.
- `num_frames`, int32: all frames of the clip, in order.
- `num_bodies`, int32: people per frame; a person who is absent has confidence 0.
- `joints`, list<float32>: num_frames × num_bodies × joints × 3 numbers, in that order. The three are x and y as fractions of
  the frame from its left and its top edge, and the confidence in [0, 1].

`write_joints` writes such a file. Another writer should keep row groups small: a clip's row group is what is read for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from starlab.pipelines.clip import ClipRow, ClipSource, DataError, DecodedClip, EncodedClip, SkippedClip, UnreadableClipError
from starlab.pipelines.skeletons import COCO, NTU, PENN_ACTION, Skeleton

ESTIMATOR_SKELETONS = {"coco": COCO, "penn_action": PENN_ACTION, "ntu": NTU}
SCHEMA = pa.schema(
    [("clip_id", pa.string()), ("num_frames", pa.int32()), ("num_bodies", pa.int32()), ("joints", pa.list_(pa.float32()))]
)
MAX_ROW_GROUP_BYTES = 32 * 2**20


def write_joints(path: Path, clips: Iterable[tuple[str, NDArray[np.float32]]]) -> None:
    """Write (clip id, joints) pairs, joints as (frames, bodies, joints, 3); a row group per clip."""
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for clip_id, joints in clips:
            if joints.ndim != 4 or joints.shape[3] != 3:
                raise ValueError(f"joints of {clip_id} must be (frames, bodies, joints, 3), are {joints.shape}")
            row = [[clip_id], [joints.shape[0]], [joints.shape[1]], [joints.astype(np.float32).ravel()]]
            writer.write_table(pa.table(row, schema=SCHEMA))


class EstimatedJoints:
    """A data set's clips and frames with an estimator's joints (`clip.ClipSource`); picklable, holds no joints."""

    def __init__(self, source: ClipSource, path: Path, skeleton: Skeleton) -> None:
        """Read all columns but the joints, and the file's bytes once for the fingerprint.

        Args:
            source: The data set.
            path: The Parquet file.
            skeleton: The skeleton of its joints.

        Raises:
            DataError: the file is missing, has other columns, names a clip twice, has row groups too large to read one per
                clip, or fits none of the clips. A clip that it lacks, or has at another length, is listed in `skipped`.
        """
        self._source, self._path = source, path
        self.classes, self.max_bodies, self.skeleton = source.classes, source.max_bodies, skeleton
        try:
            with path.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            with pq.ParquetFile(path) as file:
                _check_schema(path, file)
                groups = [file.read_row_group(group, columns=["clip_id", "num_frames"]) for group in range(file.num_row_groups)]
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"the estimated joints {path} cannot be read: {error}") from None
        lengths: dict[str, int] = {}
        self._places: dict[str, tuple[int, int]] = {}
        for number, group in enumerate(groups):
            for at, (clip_id, num_frames) in enumerate(zip(*(column.to_pylist() for column in group.columns), strict=True)):
                if clip_id in lengths:
                    raise DataError(f"the estimated joints {path} have two rows for clip {clip_id}")
                lengths[clip_id], self._places[clip_id] = num_frames, (number, at)

        def reason(row: ClipRow) -> str | None:
            found = lengths.get(row.clip_id)
            if found is None:
                return f"{path} has no joints of it"
            return None if found == row.num_frames else f"{path} has joints of {found} frames, the clip has {row.num_frames}"

        unusable = [SkippedClip(clip_id=row.clip_id, reason=why) for row in source.clips if (why := reason(row))]
        left_out = {clip.clip_id for clip in unusable}
        self.clips = tuple(row for row in source.clips if row.clip_id not in left_out)
        self.skipped = tuple(sorted((*source.skipped, *unusable), key=lambda clip: clip.clip_id))
        if not self.clips:
            raise DataError(f"the estimated joints fit none of the {len(source.clips)} clips; the first: {unusable[0].reason}")
        kept = {row.clip_id for row in self.clips}
        self._places = {clip_id: place for clip_id, place in self._places.items() if clip_id in kept}
        self.fingerprint = hashlib.sha256(f"{source.fingerprint} {skeleton.name} {digest}".encode()).hexdigest()

    def read(self, row: ClipRow, frame_indices: Sequence[int], min_side_px: int) -> DecodedClip:
        """The data set's frames with the estimator's joints. See `clip.ClipSource.read`.

        Raises:
            UnreadableClipError: the data set cannot read the clip, or its joints are damaged.
        """
        joints = self._joints(row)
        decoded = self._source.read(row, frame_indices, min_side_px)
        return replace(decoded, joints=joints[np.asarray(frame_indices)])

    def encode(self, row: ClipRow, short_side_px: int) -> EncodedClip:
        """The data set's frames with the estimator's joints, which have no depth. See `clip.ClipSource.encode`."""
        joints = self._joints(row)
        return replace(self._source.encode(row, short_side_px), joints=joints, joints_3d=None)

    def _joints(self, row: ClipRow) -> NDArray[np.float32]:
        """(frames, `max_bodies`, joints, 3)."""
        group, at = self._places[row.clip_id]
        try:
            with pq.ParquetFile(self._path) as file:
                table = file.read_row_group(group).slice(at, 1)
        except (OSError, pa.ArrowInvalid) as error:
            raise UnreadableClipError(f"{self._path}, clip {row.clip_id}: {error}") from error
        [found] = table.to_pylist()
        flat = np.asarray(table["joints"].combine_chunks().values.to_numpy(zero_copy_only=False), np.float32)
        shape = (row.num_frames, found["num_bodies"], len(self.skeleton.joints), 3)
        if found["clip_id"] != row.clip_id or (found["num_frames"], flat.size) != (row.num_frames, int(np.prod(shape))):
            raise UnreadableClipError(
                f"{self._path}, clip {row.clip_id}: {flat.size} numbers are not {' × '.join(map(str, shape))} "
                f"(frames, bodies, joints of {self.skeleton.name}, x y confidence)"
            )
        joints = flat.reshape(shape)
        if not ((joints[..., 2] >= 0) & (joints[..., 2] <= 1)).all():
            raise UnreadableClipError(f"{self._path}, clip {row.clip_id}: a confidence lies outside [0, 1]")
        joints = np.where(np.isfinite(joints).all(axis=-1, keepdims=True) & (joints[..., 2:] > 0), joints, np.float32(0))
        # The people with the highest confidence over the whole clip, in their original order.
        best = np.sort(np.argsort(-joints[..., 2].sum(axis=(0, 2)), kind="stable")[: self.max_bodies])
        packed = np.zeros((shape[0], self.max_bodies, *shape[2:]), np.float32)
        packed[:, : len(best)] = joints[:, best]
        return packed


def _check_schema(path: Path, file: pq.ParquetFile) -> None:
    found = file.schema_arrow
    for field in SCHEMA:
        if field.name not in found.names:
            raise DataError(f"the estimated joints {path} lack the column {field.name!r}; they have {', '.join(found.names)}")
        kind = found.field(field.name).type
        if kind != field.type and not (field.name == "joints" and kind == pa.large_list(pa.float32())):
            raise DataError(f"column {field.name!r} of the estimated joints {path} must be {field.type}, is {kind}")
    for number in range(file.num_row_groups):
        size = file.metadata.row_group(number).total_byte_size
        if size > MAX_ROW_GROUP_BYTES and file.metadata.row_group(number).num_rows > 1:
            raise DataError(
                f"row group {number} of the estimated joints {path} has {size / 2**20:.0f} MiB, and all of it is read for each "
                f"of its clips; rewrite it with a few clips per row group (pyarrow: row_group_size=8)"
            )
