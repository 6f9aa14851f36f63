"""Joints from any pose estimator: one Parquet file, used instead of the joints of any data set.

One row per clip, four columns:

- `clip_id`, string: the data set's name of the clip; each once.
- `num_frames`, integer: all frames of the clip, in order.
- `num_bodies`, integer: people per frame; a person who is absent has confidence 0.
- `joints`, list<float32>: num_frames × num_bodies × joints × 3 numbers, in that order. The three are x and y as fractions of
  the frame from its left and its top edge, and the confidence in [0, 1].

`write_joints` writes such a file. Another writer should keep row groups small: a clip's row group is what is read for it.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from starlab.pipelines.body_tracks import follow_bodies
from starlab.pipelines.clip import (
    ClipRow,
    ClipSource,
    DataError,
    DecodedClip,
    EncodedClip,
    SkippedClip,
    UnreadableClipError,
    identity,
    short_digest,
)
from starlab.pipelines.joint_checks import flat_numbers, joint_problems
from starlab.pipelines.retry import MISSING, read_patiently
from starlab.pipelines.rows import Subset
from starlab.pipelines.skeletons import COCO, NTU, PENN_ACTION, Skeleton

ESTIMATOR_SKELETONS = {"coco": COCO, "penn_action": PENN_ACTION, "ntu": NTU}
SCHEMA = pa.schema(
    [("clip_id", pa.string()), ("num_frames", pa.int32()), ("num_bodies", pa.int32()), ("joints", pa.list_(pa.float32()))]
)
TRACKED = b"starlab.pose"
"""A key in the metadata of a file whose people a tracker has kept apart already (`starlab data pose`)."""
MAX_ROW_GROUP_BYTES = 32 * 2**20
CLIPS_PER_ROW_GROUP = 8
"""Fewer make the file's footer, which every process keeps, large; more make a clip slow to read."""


def write_joints(path: Path, clips: Iterable[tuple[str, NDArray[np.float32]]]) -> None:
    """Write (clip id, joints) pairs, joints as (frames, bodies, joints, 3)."""
    pairs = iter(clips)
    # Coordinates hardly repeat, so a dictionary of them would only cost time.
    with pq.ParquetWriter(path, SCHEMA, use_dictionary=["clip_id"]) as writer:
        while group := list(islice(pairs, CLIPS_PER_ROW_GROUP)):
            for clip_id, joints in group:
                if joints.ndim != 4 or joints.shape[3] != 3:
                    raise ValueError(f"joints of {clip_id} must be (frames, bodies, joints, 3), are {joints.shape}")
            columns = [
                [clip_id for clip_id, _ in group],
                [joints.shape[0] for _, joints in group],
                [joints.shape[1] for _, joints in group],
                [joints.astype(np.float32).ravel() for _, joints in group],
            ]
            writer.write_table(pa.table(columns, schema=SCHEMA))


def clip_lengths(path: Path) -> dict[str, int]:
    """The number of frames of each clip in a file of estimated joints.

    Raises:
        DataError: the file is missing, cannot be read or has other columns.
    """
    return {clip_id: num_frames for _, _, clip_id, num_frames, _ in _index(path)}


class EstimatedJoints:
    """A data set's clips and frames with an estimator's joints (`clip.ClipSource`); picklable, holds no joints."""

    def __init__(
        self, source: ClipSource, path: Path, skeleton: Skeleton, *, clamp: bool = False, in_digests: bool = False
    ) -> None:
        """Read the whole file once: its hash, its columns, and the ranges of its joints.

        Args:
            source: The data set.
            path: The Parquet file.
            skeleton: The skeleton of its joints.
            clamp: Clamp confidences to [0, 1] instead of refusing others.
            in_digests: Put the file's digest into that of each clip, so that a store prepared from these clips has the
                fingerprint of this source.

        Raises:
            DataError: the file is missing, has other columns, names a clip twice, has row groups too large to read one per
                clip, fits none of the clips, or has joints of another number, in pixels, or with a confidence outside
                [0, 1]. A clip that it lacks, or has at another length, is listed in `skipped`.
        """
        self.source, self._path, self._clamp = source, path, clamp
        self.classes, self.max_bodies, self.skeleton = source.classes, source.max_bodies, skeleton
        places: dict[str, tuple[int, int, int]] = {}
        for group, at, clip_id, num_frames, _ in _index(path):
            if clip_id in places:
                raise DataError(f"the estimated joints {path} have two rows for clip {clip_id}")
            places[clip_id] = num_frames, group, at

        def reason(row: ClipRow) -> str | None:
            found = places.get(row.clip_id, (None,))[0]
            if found is None:
                return f"{path} has no joints of it"
            return None if found == row.num_frames else f"{path} has joints of {found} frames, the clip has {row.num_frames}"

        reasons = [(row.clip_id, reason(row)) for row in source.clips]
        unusable = [SkippedClip(clip_id=clip_id, reason=why) for clip_id, why in reasons if why]
        self._kept = np.array([place for place, (_, why) in enumerate(reasons) if not why], np.int32)
        if not len(self._kept):
            raise DataError(f"the estimated joints fit none of the {len(reasons)} clips; the first: {unusable[0].reason}")
        self.skipped = tuple(sorted((*source.skipped, *unusable), key=lambda clip: clip.clip_id))
        kept = {reasons[place][0] for place in self._kept}
        self._groups, self._rows = (
            np.array([places[reasons[place][0]][part] for place in self._kept], np.int32) for part in (1, 2)
        )
        for problem in joint_problems(path, kept, skeleton, clamp):
            raise DataError(f"the estimated joints {path}: {problem}")
        self._tracked = TRACKED in (pq.read_schema(path).metadata or {})
        with path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        stat = path.stat()
        self._stamp = stat.st_size, stat.st_mtime_ns
        clamped = " clamped" if clamp else ""
        self._clips: Sequence[ClipRow] = (
            source.clips if len(self._kept) == len(source.clips) else Subset(source.clips, self._kept)
        )
        if in_digests:
            self._clips = tuple(
                replace(row, digest=short_digest(row.digest, skeleton.name, digest, clamped)) for row in self._clips
            )
            self.fingerprint = identity(self.classes, self._clips)
            return
        self.fingerprint = hashlib.sha256(f"{source.fingerprint} {skeleton.name} {digest}{clamped}".encode()).hexdigest()

    @property
    def clips(self) -> Sequence[ClipRow]:
        """See `clip.ClipSource.clips`."""
        return self._clips

    def read(self, row: ClipRow, frame_indices: Sequence[int], min_side_px: int) -> DecodedClip:
        """The data set's frames with the estimator's joints. See `clip.ClipSource.read`.

        Raises:
            UnreadableClipError: the data set cannot read the clip, or its joints are damaged.
            StorageError: the storage failed; nothing is known about the clip.
        """
        joints = self._joints(row)
        decoded = self.source.read(row, frame_indices, min_side_px)
        return replace(decoded, joints=joints[np.asarray(frame_indices)])

    def encode(self, row: ClipRow, short_side_px: int) -> EncodedClip:
        """The data set's frames with the estimator's joints, which have no depth. See `clip.ClipSource.encode`."""
        joints = self._joints(row)
        return replace(self.source.encode(row, short_side_px), joints=joints, joints_3d=None)

    def _joints(self, row: ClipRow) -> NDArray[np.float32]:
        """(frames, `max_bodies`, joints, 3)."""
        clips = self.clips
        place = bisect_left(clips, row.clip_id, key=lambda clip: clip.clip_id)
        where = f"{self._path}, clip {row.clip_id}"
        try:
            found = read_patiently(lambda: self._read_row(int(self._groups[place]), int(self._rows[place])), where)
        except (*MISSING, pa.ArrowInvalid) as error:
            raise UnreadableClipError(f"{where}: {error}") from error
        clip_id, num_frames, num_bodies, flat = found
        shape = (row.num_frames, num_bodies, len(self.skeleton.joints), 3)
        if (clip_id, num_frames, flat.size) != (row.clip_id, row.num_frames, int(np.prod(shape))):
            raise UnreadableClipError(
                f"{where}: {flat.size} numbers are not {' × '.join(map(str, shape))} "
                f"(frames, bodies, joints of {self.skeleton.name}, x y confidence)"
            )
        joints = flat.reshape(shape)
        if self._clamp:
            joints = joints.copy()
            np.clip(joints[..., 2], 0, 1, out=joints[..., 2])
        if not ((joints[..., 2] >= 0) & (joints[..., 2] <= 1)).all():
            raise UnreadableClipError(f"{where}: a confidence lies outside [0, 1]")
        joints = np.where(np.isfinite(joints).all(axis=-1, keepdims=True) & (joints[..., 2:] > 0), joints, np.float32(0))
        joints = joints if self._tracked else follow_bodies(joints)
        # The people with the highest confidence over the whole clip, in their original order.
        best = np.sort(np.argsort(-joints[..., 2].sum(axis=(0, 2)), kind="stable")[: self.max_bodies])
        packed = np.zeros((shape[0], self.max_bodies, *shape[2:]), np.float32)
        packed[:, : len(best)] = joints[:, best]
        return packed

    def _read_row(self, group: int, at: int) -> tuple[str, int, int, NDArray[np.float32]]:
        """Clip id, number of frames, number of bodies, and all numbers of one row.

        Raises:
            OSError: the storage failed.
            ArrowInvalid: the content is damaged.
        """
        metadata = _metadata(str(self._path), self._stamp)
        try:
            # The footer of a large file is read once per process; a reader serves one thread, and opening it costs little.
            with pq.ParquetFile(self._path, metadata=metadata) as file:
                table = file.read_row_group(group, columns=SCHEMA.names, use_threads=False).slice(at, 1).combine_chunks()
        except OSError as error:
            if error.errno is None and not isinstance(error, MISSING):  # not the system's: pyarrow's own, about the content
                raise pa.ArrowInvalid(str(error)) from error
            raise
        clip_id, num_frames, num_bodies = (table[name][0].as_py() for name in SCHEMA.names[:3])
        return clip_id, num_frames, num_bodies, np.asarray(flat_numbers(table["joints"].chunk(0)), np.float32)


@lru_cache(maxsize=2)
def _metadata(path: str, stamp: tuple[int, int]) -> pq.FileMetaData:
    """The footer of a file, read once per process.

    Raises:
        DataError: the file has changed since `stamp`, its size and time of modification, was taken.
    """
    stat = Path(path).stat()
    if (stat.st_size, stat.st_mtime_ns) != stamp:
        raise DataError(f"the estimated joints {path} changed while they were in use")
    return pq.read_metadata(path)


def _index(path: Path) -> Iterator[tuple[int, int, str, int, int]]:
    """Row group, row in it, clip id, number of frames and of bodies of every row.

    Raises:
        DataError: the file is missing, cannot be read or has other columns.
    """
    try:
        with pq.ParquetFile(path) as file:
            _check_schema(path, file)
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            table = file.read(columns=SCHEMA.names[:3])
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"the estimated joints {path} cannot be read: {error}") from None
    places = ((group, at) for group, size in enumerate(sizes) for at in range(size))
    columns = (table[name].to_pylist() for name in SCHEMA.names[:3])
    yield from ((*place, *row) for place, row in zip(places, zip(*columns, strict=True), strict=True))


def _check_schema(path: Path, file: pq.ParquetFile) -> None:
    found = file.schema_arrow
    kinds = {
        "clip_id": (pa.types.is_string, pa.types.is_large_string),
        "num_frames": (pa.types.is_integer,),
        "num_bodies": (pa.types.is_integer,),
        "joints": (_is_list_of_floats,),
    }
    for field in SCHEMA:
        if field.name not in found.names:
            raise DataError(f"the estimated joints {path} lack the column {field.name!r}; they have {', '.join(found.names)}")
        kind = found.field(field.name).type
        if not any(fits(kind) for fits in kinds[field.name]):
            raise DataError(f"column {field.name!r} of the estimated joints {path} must be {field.type}, is {kind}")
    for number in range(file.num_row_groups):
        size = file.metadata.row_group(number).total_byte_size
        if size > MAX_ROW_GROUP_BYTES and file.metadata.row_group(number).num_rows > 1:
            raise DataError(
                f"row group {number} of the estimated joints {path} has {size / 2**20:.0f} MiB, and all of it is read for each "
                f"of its clips; rewrite it with a few clips per row group (pyarrow: row_group_size=8)"
            )


def _is_list_of_floats(kind: pa.DataType) -> bool:
    """Also what pandas writes: large lists, and float64."""
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(lists and pa.types.is_floating(kind.value_type))
