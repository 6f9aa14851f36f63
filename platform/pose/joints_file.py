"""The Parquet file of estimated joints with what an estimator knows besides: which person is where, and the frames' size.

It is a file as `pipelines/estimated_joints.py` reads it, with more columns. The settings of the estimate are in the file's
metadata, so that a later call can tell whether it may keep a clip.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from starlab.pipelines.clip import DataError
from starlab.pipelines.estimated_joints import CLIPS_PER_ROW_GROUP, SCHEMA, TRACKED
from starlab.pipelines.storage import Draft, Folder
from starlab.platform.pose.estimate import ClipJoints

MORE_COLUMNS = pa.schema(
    [
        ("track_ids", pa.list_(pa.int32())),
        ("height_px", pa.int32()),
        ("width_px", pa.int32()),
        ("source_digest", pa.string()),
    ]
)
COLUMNS = pa.unify_schemas([SCHEMA, MORE_COLUMNS])
MAX_GROUP_BYTES = 8 * 2**20
"""A row group ends before it has more: a clip's row group is what is read for it."""
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class PoseSettings:
    """What decides the joints of a video."""

    estimator: str
    """"movenet", or module:function."""
    skeleton: str
    """The name of its skeleton."""
    model: str
    """The beginning of the SHA-256 of the estimator's weights; "" where it is not known."""
    long_side_px: int
    """Long side of the frames that MoveNet sees; 0 for another estimator, which sees the frames as they are."""
    every: int
    """Every so many frames are estimated, the others interpolated."""
    tracker: int = 1
    """Version of the tracker."""

    def text(self) -> str:
        """As JSON, for the file's metadata."""
        return json.dumps(asdict(self), sort_keys=True)

    def differences(self, other: PoseSettings) -> str:
        """What is set to another value in `other`, in words; "" if nothing is."""
        mine, theirs = asdict(self), asdict(other)
        return ", ".join(f"{name} {mine[name]} (now {theirs[name]})" for name in mine if mine[name] != theirs[name])


def row_bytes(clip_id: str, digest: str, found: ClipJoints, settings: PoseSettings) -> bytes:
    """A file with one clip."""
    num_frames, num_bodies = found.track_ids.shape
    columns = [
        pa.array([clip_id]),
        pa.array([num_frames], pa.int32()),
        pa.array([num_bodies], pa.int32()),
        pa.array([found.joints.ravel()], pa.list_(pa.float32())),
        pa.array([found.track_ids.ravel()], pa.list_(pa.int32())),
        pa.array([found.height_px], pa.int32()),
        pa.array([found.width_px], pa.int32()),
        pa.array([digest]),
    ]
    written = io.BytesIO()
    pq.write_table(pa.table(columns, schema=_schema(settings)), written, use_dictionary=False)
    return written.getvalue()


def settings_of(path: Path) -> PoseSettings | None:
    """The settings that a file was made with; None if it was not made here, or is damaged or missing."""
    try:
        metadata = pq.read_schema(path).metadata or {}
        return PoseSettings(**json.loads(metadata[TRACKED]))
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        return None


def clip_digests(path: Path) -> dict[str, str]:
    """The digest of the video of each clip in a file that was made here."""
    table = pq.read_table(path, columns=["clip_id", "source_digest"])
    return dict(zip(table["clip_id"].to_pylist(), table["source_digest"].to_pylist(), strict=True))


def tables(path: Path) -> Iterator[pa.Table]:
    """One table for each clip, in the order of the file."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            for row in range(len(table)):
                yield table.slice(row, 1)


def write_joints_file(path: Path, clips: Iterable[pa.Table], settings: PoseSettings) -> None:
    """Write clips, one table each, into one file, which appears under its name once it is complete."""
    schema = _schema(settings)
    with Draft(Folder(path.parent), path.name) as draft, pq.ParquetWriter(draft, schema, use_dictionary=False) as writer:
        group: list[pa.Table] = []
        for clip in clips:
            if group and (len(group) == CLIPS_PER_ROW_GROUP or sum(t.nbytes for t in group) + clip.nbytes > MAX_GROUP_BYTES):
                writer.write_table(pa.concat_tables(group))
                group = []
            group.append(clip.replace_schema_metadata(schema.metadata))
        if group:
            writer.write_table(pa.concat_tables(group))


def read_clips(path: Path) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.int32] | None]]:
    """Clip id, joints (T, M, N, 3) and track ids (T, M) of every clip in a file of estimated joints, whoever wrote it.

    The track ids are None where the file has none.

    Raises:
        DataError: the file is missing or has other columns.
    """
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"the estimated joints {path} cannot be read: {error}") from None
    if missing := [name for name in SCHEMA.names if name not in names]:
        raise DataError(f"the estimated joints {path} lack the column {missing[0]!r}; they have {', '.join(names)}")
    for table in tables(path):
        row = {name: table[name][0] for name in table.column_names}
        num_frames, num_bodies = row["num_frames"].as_py(), row["num_bodies"].as_py()
        flat = np.asarray(row["joints"].values, np.float32)
        if num_bodies and flat.size % (3 * num_frames * num_bodies):
            raise DataError(
                f"the estimated joints {path}: clip {row['clip_id']} has {flat.size} numbers, which fit no skeleton"
            )
        joints = flat.reshape(num_frames, num_bodies, -1, 3) if flat.size else np.zeros((num_frames, 0, 1, 3), np.float32)
        ids = None
        if "track_ids" in row:
            ids = np.asarray(row["track_ids"].values, np.int32).reshape(num_frames, num_bodies)
        yield row["clip_id"].as_py(), joints, ids


def _schema(settings: PoseSettings) -> pa.Schema:
    return COLUMNS.with_metadata({TRACKED: settings.text().encode()})
