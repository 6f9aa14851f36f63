"""A prepared data set. An index says where each clip is: one range of one file.

    penn/
      plan.json               what is being prepared; the first file there
      shards/00000.parquet    some clips, one row group each, so that one read gets one clip
      shards/00000.json       written once the shard is complete: its hash, its clips, the clips left out
      index.parquet           a row per clip: label, split, size, shard and row group
      manifest.json           counts, hashes, quarantine; the last file, without which a store does not exist

`shards.py` defines the contents of the files, `prepare.py` writes them. Reading never goes through Ray Data's Parquet reader,
which loses row groups of a path listed twice.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from starlab.pipelines.clip import (
    ClipRow,
    DataError,
    DecodedClip,
    EncodedClip,
    SkippedClip,
    UnreadableClipError,
    as_split,
    find_clip,
    short_digest,
)
from starlab.pipelines.custom.description import CustomData, skeleton_from_dict
from starlab.pipelines.datasets import find_skeleton
from starlab.pipelines.decode import NO_SHRINK, decode_jpeg
from starlab.pipelines.lazy_frames import LazyFrames
from starlab.pipelines.ntu_names import Protocol, parse_name
from starlab.pipelines.retry import MISSING, read_patiently
from starlab.pipelines.rows import Rows
from starlab.pipelines.shards import Joints, StoredClip, describe_clip, read_index, read_index_table, shard_name
from starlab.pipelines.storage import Folder

FORMAT = 1
"""Version of the format; increased with every change that an older reader would not understand."""
MANIFEST, PLAN = "manifest.json", "plan.json"
_OPEN_SHARDS = 64
_INDEX_COLUMNS = ("clip_id", "label", "split", "subject", "num_frames", "shard", "row")
"""Columns of the index that reading needs; the others are loaded for statistics and checks only."""


def read_manifest(folder: Folder) -> dict[str, Any]:
    """The manifest of a complete store.

    Raises:
        DataError: it is not a store, not complete, or of another format.
    """
    manifest = folder.read_json(MANIFEST)
    if manifest is None:
        if folder.read_json(PLAN) is not None:
            raise DataError(f"{folder.uri} is not finished: the same `starlab prepare` resumes where it stopped")
        raise DataError(f"{folder.uri} is no prepared store (no {MANIFEST} in it): make one with `starlab prepare`")
    if manifest["format"] != FORMAT:
        raise DataError(f"{folder.uri} has format {manifest['format']}, this starlab reads {FORMAT}: prepare it again")
    return manifest


def is_store(uri: str | Path) -> bool:
    """Whether the folder has a store, complete or not."""
    return any(Folder(uri).size(name) is not None for name in (MANIFEST, PLAN))


def read_custom(manifest: Mapping[str, Any]) -> CustomData | None:
    """What a store says of a data set of one's own; None where it was prepared from another one."""
    if (given := manifest.get("custom")) is None:
        return None
    return CustomData(
        classes=tuple(manifest["classes"]),
        skeleton=skeleton_from_dict(given["skeleton"]),
        max_bodies=manifest["max_bodies"],
        may_flip=given["may_flip"],
        sided_classes=tuple(given["sided_classes"]),
    )


class StoreSource:
    """The clips of a store (`clip.ClipSource`). It pickles as its address; each process opens the store once and keeps it."""

    def __init__(self, uri: str | Path, protocol: Protocol | None = None) -> None:
        """Read the manifest and the index.

        Args:
            uri: A path, or any URI that pyarrow knows.
            protocol: NTU's official split; None keeps the one that the clips were prepared with.

        Raises:
            DataError: it is not a store, or not a complete one.
        """
        self.folder = Folder(uri)
        self.manifest = read_manifest(self.folder)
        self.classes: tuple[str, ...] = tuple(self.manifest["classes"])
        self.custom = read_custom(self.manifest)
        self.skeleton = self.custom.skeleton if self.custom else find_skeleton(self.manifest["skeleton"])
        self.max_bodies: int = self.manifest["max_bodies"]
        self.fingerprint: str = self.manifest["fingerprint"]
        for shard in range(len(self.manifest["shards"])):
            self.folder.check_inside(f"{shard_name(shard)}.parquet")
        self._protocol = protocol
        self._index = Rows(read_index_table(self.folder, self.manifest["index"]["sha256"], _INDEX_COLUMNS), dict)
        self.clips: Rows[ClipRow] = Rows(self._index.table, partial(_row, protocol=protocol))
        self.skipped = tuple(SkippedClip(clip_id=name, reason=why) for name, why in sorted(self.manifest["quarantine"].items()))
        self.notes: Mapping[str, str] = self.manifest.get("notes", {})
        """What a user should know of clips that are used all the same, by clip id."""
        self.about: tuple[str, ...] = tuple((self.manifest.get("custom") or {}).get("about", ()))
        """What a user should know of the splits."""
        self._threads = threading.local()  # a Parquet reader serves one thread

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (self.folder.uri, self.fingerprint, self._protocol)

    def find(self, clip_id: str) -> ClipRow:
        """The clip of that name.

        Raises:
            DataError: no such clip; the message gives the reason of a clip in quarantine.
        """
        place = self.clips.find("clip_id", clip_id)
        return find_clip(self, clip_id, self.folder.uri) if place is None else self.clips[place]

    @cached_property
    def stored(self) -> Rows[StoredClip]:
        """The whole index, loaded when it is first used."""
        return read_index(self.folder, self.manifest["index"]["sha256"])

    def stored_in(self, shard: int) -> list[StoredClip]:
        """The clips of one shard, in the order of their row groups."""
        here = self.stored.table.filter(pc.field("shard") == shard).sort_by("row")
        return [StoredClip(**values) for values in here.to_pylist()]

    @cached_property
    def content(self) -> str:
        """Digest of the manifest, which lists every shard with its checksum: other pixels give another one."""
        return short_digest(self.manifest)

    def read(self, row: ClipRow, frame_indices: Sequence[int], min_side_px: int) -> DecodedClip:
        """Load the clip in one read; see `clip.ClipSource.read`. Each frame is decoded when it is taken from the result.

        A frame that is resized at once is still in the processor's cache: a clip of 16 frames takes 6 % less processor time.
        """
        jpegs, joints, _ = self._load(row, ("frames", "joints"))
        decode = partial(self._decode, row, jpegs, min_side_px=min_side_px)
        return DecodedClip(LazyFrames(decode, frame_indices), joints[np.asarray(frame_indices)])

    def encode(self, row: ClipRow, short_side_px: int) -> EncodedClip:
        """The clip as it is stored, whatever `short_side_px` says; see `clip.ClipSource.encode`."""
        jpegs, joints, joints_3d = self._load(row, ("frames", "joints", "joints_3d"))
        for index in range(len(jpegs)):
            self._decode(row, jpegs, index, NO_SHRINK)
        return EncodedClip(tuple(jpeg.as_py() for jpeg in jpegs), joints, joints_3d)

    def joints(self, row: ClipRow) -> Joints:
        """The joints of a whole clip, (n, M, N, 3), without reading its frames.

        Raises:
            UnreadableClipError: they cannot be read.
        """
        shard, number = self._place(row)
        where = self._where(shard, number)
        try:
            group = read_patiently(lambda: self._row_group(shard, number, ("joints",)), where)
            flat = group.column("joints").chunk(0)[0].values.to_numpy()
            found: Joints = flat.reshape(row.num_frames, self.max_bodies, len(self.skeleton.joints), 3)
        except (*MISSING, pa.ArrowException, ValueError, IndexError) as error:
            raise UnreadableClipError(f"{where}: {error}") from error
        return found

    def check(self, stored: StoredClip, decode: bool) -> None:
        """Read a whole clip and compare it with the index.

        Raises:
            UnreadableClipError: it cannot be read, or differs from what was written.
        """
        row = self.find(stored.clip_id)
        jpegs, joints, joints_3d = self._load(row, ("frames", "joints", "joints_3d"))
        if decode:
            for index in range(len(jpegs)):
                self._decode(row, jpegs, index, NO_SHRINK)
        encoded = EncodedClip(tuple(jpeg.as_py() for jpeg in jpegs), joints, joints_3d)
        found = replace(describe_clip(row, encoded, stored.shard, stored.row), digest=stored.digest)
        if stored.joints_outside is None:
            found = replace(found, joints_outside=None)
        if found != stored:
            place = self._where(stored.shard, stored.row)
            raise UnreadableClipError(f"{place}: its frames or joints are not what the index says")

    def _load(self, row: ClipRow, columns: tuple[str, ...]) -> tuple[pa.Array, Joints, Joints | None]:
        """The clip's JPEGs (not copied), its joints, and its joints in metres if `columns` names them and they exist."""
        shard, group_number = self._place(row)
        try:
            group = read_patiently(lambda: self._row_group(shard, group_number, columns), self._where(shard, group_number))
            jpegs = group.column("frames").chunk(0)[0].values
            shape = (row.num_frames, self.max_bodies, len(self.skeleton.joints), 3)
            joints = group.column("joints").chunk(0)[0].values.to_numpy().reshape(shape)
            metres = group.column("joints_3d").chunk(0)[0].values if "joints_3d" in columns else None
            if len(jpegs) != row.num_frames:
                raise ValueError(f"{len(jpegs)} frames, the index says {row.num_frames}")
            return jpegs, joints, None if metres is None else metres.to_numpy().reshape(shape)
        except (*MISSING, pa.ArrowException, ValueError, IndexError) as error:
            raise UnreadableClipError(f"{self._where(shard, group_number)}: {error}") from error

    def _place(self, row: ClipRow) -> tuple[int, int]:
        """The clip's shard and its row group there."""
        place = self._index.find("clip_id", row.clip_id)
        if place is None:
            raise DataError(f"no clip {row.clip_id} in {self.folder.uri}")
        values = self._index[place]
        return values["shard"], values["row"]

    def _row_group(self, shard: int, number: int, columns: tuple[str, ...]) -> pa.Table:
        """One row group of a shard.

        Raises:
            ValueError: the shard is damaged.
            OSError: it is missing, or the storage failed.
        """
        try:
            return self._reader(shard).read_row_group(number, columns=list(columns), use_threads=False)
        except OSError as error:
            self._readers().pop(shard, None)
            # pyarrow raises OSError for damaged content as well; only the hash tells the two apart.
            if not isinstance(error, MISSING) and self._is_damaged(shard):
                raise ValueError(str(error)) from error
            raise

    def _is_damaged(self, shard: int) -> bool:
        expected: str = self.manifest["shards"][shard]["sha256"]
        return self.folder.sha256(shard_name(shard) + ".parquet") != expected

    def _decode(self, row: ClipRow, jpegs: pa.Array, index: int, min_side_px: int) -> NDArray[np.uint8]:
        try:
            return decode_jpeg(memoryview(jpegs[index].as_buffer()).cast("B"), min_side_px)
        except (ValueError, IndexError) as error:
            raise UnreadableClipError(f"{self._where(*self._place(row))}, frame {index}: {error}") from error

    def _reader(self, shard: int) -> pq.ParquetFile:
        """This thread's reader of a shard; the last few stay open, with their footers."""
        readers = self._readers()
        reader = readers.pop(shard, None)
        if reader is None:
            name = shard_name(shard) + ".parquet"
            size, expected = self.folder.size(name), self.manifest["shards"][shard]["num_bytes"]
            if size != expected:
                raise ValueError(f"the shard has {size} bytes, the manifest says {expected}")
            reader = pq.ParquetFile(self.folder.open(name), pre_buffer=not self.folder.is_local)
            if len(readers) >= _OPEN_SHARDS:
                readers.popitem(last=False)[1].close(force=True)
        readers[shard] = reader
        return reader

    def _readers(self) -> OrderedDict[int, pq.ParquetFile]:
        """This thread's open readers by shard, the last one used at the end."""
        if not hasattr(self._threads, "readers"):
            self._threads.readers = OrderedDict()
        readers: OrderedDict[int, pq.ParquetFile] = self._threads.readers
        return readers

    def _where(self, shard: int, row_group: int) -> str:
        return f"{self.folder.uri}/{shard_name(shard)}.parquet, row group {row_group}"


@lru_cache(maxsize=4)
def _opened(uri: str, fingerprint: str, protocol: Protocol | None) -> StoreSource:
    """This process's one reader of a store, so that an index of 100,000 clips is not unpickled for every task.

    Raises:
        DataError: the folder now holds another store.
    """
    source = StoreSource(uri, protocol)
    if source.fingerprint != fingerprint:
        raise DataError(
            f"{uri} changed while it was in use: fingerprint {source.fingerprint}, {fingerprint} when it was opened"
        )
    return source


def _row(values: dict[str, Any], protocol: Protocol | None) -> ClipRow:
    return ClipRow(
        clip_id=values["clip_id"],
        label=values["label"],
        split=as_split(values["split"]) if protocol is None else parse_name(values["clip_id"]).split(protocol),
        subject=values["subject"],
        num_frames=values["num_frames"],
    )
