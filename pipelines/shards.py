"""The files of a store and how they are written: shards of clips, each with a record, and the index of all clips.

A shard holds several clips, one row group each, so that one read gets one clip. Equal clips give equal bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from starlab.pipelines.clip import ClipRow, ClipSource, DataError, EncodedClip, UnreadableClipError, as_split
from starlab.pipelines.decode import jpeg_size
from starlab.pipelines.rows import Rows
from starlab.pipelines.storage import Draft, Folder

INDEX = "index.parquet"
Joints = NDArray[np.float32]
"""(n, M, N, 3)"""

_BYTES = pa.field("element", pa.binary(), nullable=False)
_FLOATS = pa.field("element", pa.float32(), nullable=False)
SHARD_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("action", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("subject", pa.string()),
        pa.field("frames", pa.list_(_BYTES), nullable=False),  # JPEGs in decode order
        pa.field("joints", pa.list_(_FLOATS), nullable=False),  # (n, M, N, 3) flattened: x, y of the frame, confidence
        pa.field("joints_3d", pa.list_(_FLOATS)),  # (n, M, N, 3) flattened: metres
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredClip:
    """A row of the index."""

    clip_id: str
    label: int
    split: str
    subject: str | None
    num_frames: int
    height: int
    width: int
    """Size of its frames in pixels."""
    shard: int
    row: int
    """Row group in the shard."""
    num_bytes: int
    """Size of its JPEGs."""
    joints_unseen: float
    """Share of joints with confidence 0, over the bodies that occur in the clip."""
    frames_unseen: int
    """Frames without any joint."""
    sha256: str
    """Digest of its JPEGs and joints."""
    joints_outside: int | None = None
    """Visible joints outside the frame. None in stores of earlier versions, as is `digest`."""
    digest: str | None = None
    """What the index of the authors' files said of the clip (`ClipRow.digest`), with the frames' size if it was changed."""

    def row_in_source(self) -> ClipRow:
        """The clip as the authors' files have it."""
        return ClipRow(
            clip_id=self.clip_id,
            label=self.label,
            split=as_split(self.split),
            subject=self.subject,
            num_frames=self.num_frames,
            digest=self.digest or "",
        )


ADDED_LATER = ("joints_outside", "digest")
"""Columns that the index of an earlier version lacks."""
INDEX_SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=name in ("subject", *ADDED_LATER))
        for name, kind in {
            "clip_id": pa.string(),
            "label": pa.int32(),
            "split": pa.string(),
            "subject": pa.string(),
            "num_frames": pa.int32(),
            "height": pa.int32(),
            "width": pa.int32(),
            "shard": pa.int32(),
            "row": pa.int32(),
            "num_bytes": pa.int64(),
            "joints_unseen": pa.float64(),
            "frames_unseen": pa.int32(),
            "sha256": pa.string(),
            "joints_outside": pa.int64(),
            "digest": pa.string(),
        }.items()
    ]
)


def shard_name(shard: int) -> str:
    """Name of a shard's files, without the ending."""
    return f"shards/{shard:05d}"


def write_shard(folder: Folder, shard: int, source: ClipSource, rows: Sequence[ClipRow], short_side_px: int) -> dict[str, Any]:
    """Write the readable clips into one shard, then its record, which is returned. Equal clips give equal bytes."""
    clips: list[StoredClip] = []
    quarantine: dict[str, str] = {}
    notes: dict[str, str] = {}
    with Draft(folder, shard_name(shard) + ".parquet") as draft:
        with pq.ParquetWriter(
            draft, SHARD_SCHEMA, compression="NONE", use_dictionary=False, write_statistics=False, store_schema=False
        ) as writer:
            for row in rows:
                try:
                    encoded = source.encode(row, short_side_px)
                    clip = describe_clip(row, encoded, shard, len(clips))  # before any of its bytes are written
                except UnreadableClipError as error:
                    quarantine[row.clip_id] = str(error)
                    continue
                writer.write_table(_table(row, encoded, source.classes[row.label]))
                clips.append(clip)
                if encoded.note is not None:
                    notes[row.clip_id] = encoded.note
        record = {
            "sha256": draft.sha256(),
            "num_bytes": draft.num_bytes,
            "clips": [asdict(clip) for clip in clips],
            "quarantine": quarantine,
            "notes": notes,
        }
    folder.write_json(shard_name(shard) + ".json", record)
    return record


def whole_shard(folder: Folder, shard: int, *, hashed: bool) -> dict[str, Any] | None:
    """The record of a complete shard; else None.

    Its bytes are read and hashed only if `hashed`, or if it was modified after its record was written.
    """
    name, record_name = (shard_name(shard) + ending for ending in (".parquet", ".json"))
    record = folder.read_json(record_name)
    if record is None or folder.size(name) != record["num_bytes"]:
        return None
    if (hashed or folder.modified(name) > folder.modified(record_name)) and folder.sha256(name) != record["sha256"]:
        return None
    return record


def is_of(record: dict[str, Any], rows: Sequence[ClipRow]) -> bool:
    """Whether a shard's record is of these clips, as the authors' files have them now; those in quarantine are not compared."""
    stored = {clip["clip_id"]: StoredClip(**clip).row_in_source() for clip in record["clips"]}
    now = {row.clip_id: row for row in rows}
    return stored.keys() | record["quarantine"].keys() == now.keys() and all(
        clip == now[clip_id] and _of_files(clip.digest) == now[clip_id].digest for clip_id, clip in stored.items()
    )


def write_index(folder: Folder, clips: Sequence[StoredClip]) -> dict[str, Any]:
    """Write the index, sorted by clip id; returns its hash and size."""
    ordered = sorted(clips, key=lambda clip: clip.clip_id)
    table = pa.Table.from_pylist([asdict(clip) for clip in ordered], schema=INDEX_SCHEMA)
    with Draft(folder, INDEX) as draft:
        pq.write_table(table, draft, compression="zstd", store_schema=False)
        return {"sha256": draft.sha256(), "num_bytes": draft.num_bytes}


def read_index(folder: Folder, sha256: str) -> Rows[StoredClip]:
    """Every clip of a store, sorted by clip id; raises as `read_index_table`."""
    return Rows(read_index_table(folder, sha256), lambda values: StoredClip(**values))


def read_index_table(folder: Folder, sha256: str, columns: Sequence[str] = INDEX_SCHEMA.names) -> pa.Table:
    """The index with the named columns of `INDEX_SCHEMA`, a row per clip, sorted by clip id.

    Raises:
        DataError: the index is missing, or has another hash.
    """
    fix = "the same `starlab prepare` with --retry rewrites it"
    try:
        data = folder.read(INDEX)
    except OSError as error:
        raise DataError(f"{folder.uri}/{INDEX} cannot be read: {error}; {fix}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(f"{folder.uri}/{INDEX} is not what was written: {fix}")
    repeated = [name for name in ("split", "subject") if name in columns]  # a few values over and over
    with pq.ParquetFile(pa.BufferReader(data), read_dictionary=repeated) as file:
        there = [name for name in columns if name not in ADDED_LATER or name in file.schema_arrow.names]
        table = file.read(columns=there, use_threads=False)
    for name in columns:
        if name not in there:
            table = table.append_column(name, pa.nulls(len(table), INDEX_SCHEMA.field(name).type))
    return table.select(list(columns))


def describe_clip(row: ClipRow, encoded: EncodedClip, shard: int, row_group: int) -> StoredClip:
    """Check that the parts of a clip fit each other, and return its row of the index.

    Raises:
        UnreadableClipError: they do not fit.
    """
    counts = {len(encoded.jpegs), len(encoded.joints), row.num_frames}
    if encoded.joints_3d is not None:
        counts.add(len(encoded.joints_3d))
    if len(counts) > 1:
        raise UnreadableClipError(
            f"{len(encoded.jpegs)} frames, {len(encoded.joints)} of joints, {row.num_frames} in the index"
        )
    if not np.isfinite(encoded.joints).all():
        raise UnreadableClipError("a joint is not finite")
    sizes = {jpeg_size(jpeg) for jpeg in encoded.jpegs}
    if len(sizes) > 1:
        raise UnreadableClipError(f"frames of different sizes {sorted(sizes)}")
    seen = encoded.joints[..., 2] > 0  # (n, M, N)
    inside = ((encoded.joints[..., :2] >= 0) & (encoded.joints[..., :2] <= 1)).all(axis=-1)
    bodies = seen.any(axis=(0, 2))
    digest = hashlib.sha256()
    for part in (*encoded.jpegs, _plain(encoded.joints), b"" if encoded.joints_3d is None else _plain(encoded.joints_3d)):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    (height, width), *_ = sizes
    return StoredClip(
        clip_id=row.clip_id,
        label=row.label,
        split=row.split,
        subject=row.subject,
        num_frames=row.num_frames,
        height=height,
        width=width,
        shard=shard,
        row=row_group,
        num_bytes=sum(map(len, encoded.jpegs)),
        joints_unseen=float(1 - seen[:, bodies].mean()) if bodies.any() else 1.0,
        frames_unseen=int((~seen.any(axis=(1, 2))).sum()),
        sha256=digest.hexdigest(),
        joints_outside=int((seen & ~inside).sum()),
        digest=row.digest if encoded.scaled_to_px is None else f"{row.digest}@{encoded.scaled_to_px}",
    )


def _of_files(digest: str) -> str:
    """The part of `StoredClip.digest` that the authors' files decide."""
    return digest.partition("@")[0]


def _plain(joints: Joints) -> bytes:
    return np.ascontiguousarray(joints, "<f4").tobytes()


def _table(row: ClipRow, encoded: EncodedClip, action: str) -> pa.Table:
    columns: list[Any] = [[row.clip_id], [action], [row.split], [row.subject], [list(encoded.jpegs)], [encoded.joints.ravel()]]
    columns.append([None if encoded.joints_3d is None else encoded.joints_3d.ravel()])
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SHARD_SCHEMA, strict=True)]
    return pa.table(arrays, schema=SHARD_SCHEMA)
