"""The store's format, without Ray: what is written is what is read, and what is damaged is named."""

import dataclasses
import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from starlab.pipelines.clip import ClipRow, DataError, DecodedClip, EncodedClip, SkippedClip, UnreadableClipError
from starlab.pipelines.penn_action import PennActionSource
from starlab.pipelines.prepare import check_shard, shard_rows
from starlab.pipelines.rows import Rows, Subset
from starlab.pipelines.shards import INDEX_SCHEMA, StoredClip, read_index, whole_shard, write_index, write_shard
from starlab.pipelines.skeletons import NTU
from starlab.pipelines.statistics import store_statistics
from starlab.pipelines.storage import Draft, Folder
from starlab.pipelines.store import StoreSource


class TwoBodies:
    """Clips of two bodies with positions in metres, of the lengths given; what `spoil` names is spoilt."""

    def __init__(self, lengths: list[int], spoil: dict[str, str] | None = None) -> None:
        self.classes, self.skeleton, self.max_bodies, self.fingerprint = ("A901 bow", "A902 nod"), NTU, 2, "two bodies"
        self.clips = tuple(
            ClipRow(
                clip_id=f"S{i:03d}", label=i % 2, split="test" if i % 3 == 0 else "train", subject=f"P{i % 4}", num_frames=n
            )
            for i, n in enumerate(lengths)
        )
        self.skipped: tuple[SkippedClip, ...] = ()
        self.spoil = spoil or {}

    def read(self, row: ClipRow, frame_indices: list[int], min_side_px: int) -> DecodedClip:
        encoded = self.encode(row, 256)
        frames = [simplejpeg.decode_jpeg(encoded.jpegs[index], "RGB") for index in frame_indices]
        return DecodedClip(frames, encoded.joints[np.asarray(frame_indices)])

    def encode(self, row: ClipRow, short_side_px: int) -> EncodedClip:
        rng = np.random.default_rng(int(row.clip_id[1:]))
        shape = (row.num_frames, 2, 25, 3)
        pictures = [rng.integers(0, 256, (24, 40, 3), dtype=np.uint8) for _ in range(row.num_frames)]
        joints, metres = rng.random(shape, dtype=np.float32), rng.normal(size=shape).astype(np.float32)
        how = self.spoil.get(row.clip_id)
        if how == "unreadable":
            raise UnreadableClipError(f"{row.clip_id} is damaged")
        if how == "size":
            pictures[-1] = pictures[-1][:20]
        if how == "short":
            pictures = pictures[:-1]
        if how == "nan":
            joints[0, 0, 0, 0] = np.nan
        if how == "ghost":
            joints[:, 1] = 0
        return EncodedClip(tuple(simplejpeg.encode_jpeg(picture) for picture in pictures), joints, metres)


def write_store(root: Path | str, source: TwoBodies, clips_per_shard: int = 3) -> StoreSource:
    """As `prepare` does, in this process."""
    folder = Folder(root)
    records = [write_shard(folder, i, source, rows, 256) for i, rows in enumerate(shard_rows(source.clips, clips_per_shard))]
    clips = [StoredClip(**clip) for record in records for clip in record["clips"]]
    quarantine = {clip: reason for record in records for clip, reason in record["quarantine"].items()}
    shards = [{"sha256": r["sha256"], "num_bytes": r["num_bytes"], "clips": len(r["clips"])} for r in records]
    folder.write_json(
        "manifest.json",
        {
            "format": 1,
            "dataset": "two_bodies",
            "classes": source.classes,
            "skeleton": "ntu",
            "max_bodies": 2,
            "fingerprint": "f",
            "clips": len(clips),
            "frames": 0,
            "shards": shards,
            "index": write_index(folder, clips),
            "quarantine": quarantine,
        },
    )
    return StoreSource(root)


@settings(max_examples=15)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=9), clips_per_shard=st.integers(1, 4))
def test_every_clip_comes_back_as_it_was_wherever_it_lies(tmp_path_factory, lengths, clips_per_shard) -> None:
    source = TwoBodies(lengths)
    store = write_store(tmp_path_factory.mktemp("store"), source, clips_per_shard)
    assert store.clips == source.clips
    assert store.classes == source.classes
    for row in store.clips:
        assert _equal(store.encode(row, 99), source.encode(row, 256))
        order = [row.num_frames - 1, 0, 0]
        one, other = store.read(row, order, 16), source.read(row, order, 16)
        assert all((a == b).all() for a, b in zip(one.frames, other.frames, strict=True))
        assert (one.joints == other.joints).all()


def _equal(one: EncodedClip, other: EncodedClip) -> bool:
    assert one.joints_3d is not None
    assert other.joints_3d is not None
    return one.jpegs == other.jpegs and (one.joints == other.joints).all() and (one.joints_3d == other.joints_3d).all()


def test_a_clip_of_penn_action_reads_the_same_from_the_store_to_the_last_bit(small_source: PennActionSource, tmp_path) -> None:
    some = dataclasses.make_dataclass("Some", ["classes", "skeleton", "max_bodies", "clips", "encode"])
    source = some(small_source.classes, small_source.skeleton, 1, small_source.clips[:5], small_source.encode)
    folder = Folder(tmp_path)
    record = write_shard(folder, 0, source, source.clips, 256)
    for row, clip in zip(source.clips, record["clips"], strict=True):
        table = pq.ParquetFile(tmp_path / "shards/00000.parquet").read_row_group(clip["row"])
        jpegs = table["frames"][0].as_py()
        paths = sorted((small_source.root / "frames" / row.clip_id).glob("*.jpg"))
        assert jpegs == [path.read_bytes() for path in paths[: row.num_frames]]
        joints = np.array(table["joints"][0].as_py(), np.float32).reshape(row.num_frames, 1, 13, 3)
        assert (joints == small_source.read(row, range(row.num_frames), 16).joints).all()


def test_clips_that_do_not_fit_themselves_are_left_out_with_the_reason_and_nothing_of_them_is_written(tmp_path) -> None:
    spoil = {"S001": "unreadable", "S002": "size", "S003": "short", "S004": "nan"}
    store = write_store(tmp_path, TwoBodies([4] * 7, spoil), clips_per_shard=7)
    assert [row.clip_id for row in store.clips] == ["S000", "S005", "S006"]
    assert {clip.clip_id: clip.reason for clip in store.skipped} == {
        "S001": "S001 is damaged",
        "S002": "frames of different sizes [(20, 40), (24, 40)]",
        "S003": "3 frames, 4 of joints, 4 in the index",
        "S004": "a joint is not finite",
    }
    assert pq.ParquetFile(tmp_path / "shards/00000.parquet").num_row_groups == 3
    assert check_shard(store, 0, decode=True) == []


def test_one_row_group_holds_one_clip_so_that_a_read_touches_no_other(tmp_path) -> None:
    store = write_store(tmp_path, TwoBodies([3, 4, 5, 6]), clips_per_shard=4)
    file = pq.ParquetFile(tmp_path / "shards/00000.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [1, 1, 1, 1]
    assert [file.read_row_group(clip.row)["clip_id"][0].as_py() for clip in store.stored] == [c.clip_id for c in store.clips]


def test_equal_clips_give_equal_bytes(tmp_path) -> None:
    for name in ("one", "other"):
        write_store(tmp_path / name, TwoBodies([4, 2, 7]))
    one, other = (Folder(tmp_path / name) for name in ("one", "other"))
    assert one.names() == other.names()
    assert all(one.read(name) == other.read(name) for name in one.names())


def test_which_shard_a_clip_goes_to_depends_on_its_name_alone_and_mixes_neighbours() -> None:
    rows = TwoBodies([1] * 200).clips
    shards = shard_rows(rows, 20)
    assert shards == shard_rows(rows[::-1], 20)
    assert sorted(row.clip_id for shard in shards for row in shard) == [row.clip_id for row in rows]
    assert all(len(shard) == 20 for shard in shards)
    assert not any({f"S{first + i:03d}" for i in range(3)} <= {row.clip_id for row in shards[0]} for first in range(0, 198))


def test_a_source_travels_as_its_address_and_each_process_opens_it_once(tmp_path) -> None:
    store = write_store(tmp_path, TwoBodies([4] * 300), clips_per_shard=100)
    sent = pickle.dumps(store)
    assert len(sent) < 500
    first, second = pickle.loads(sent), pickle.loads(sent)
    assert first is second
    assert first.clips == store.clips
    manifest = dict(store.manifest, fingerprint="another")
    Folder(tmp_path).write_json("manifest.json", manifest)
    other = pickle.dumps(StoreSource(tmp_path)).replace(b"another", b"thirdly")
    with pytest.raises(DataError, match="changed while it was in use"):
        pickle.loads(other)


def test_a_clip_of_a_damaged_shard_is_unreadable_and_named(tmp_path) -> None:
    store = write_store(tmp_path, TwoBodies([4] * 6), clips_per_shard=3)
    path = tmp_path / "shards/00001.parquet"
    victim = next(clip for clip in store.stored if clip.shard == 1)
    row = store.find(victim.clip_id)
    whole = path.read_bytes()

    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnreadableClipError, match=r"00001\.parquet, row group \d: the shard has \d+ bytes, the manifest says"):
        store.read(row, [0], 16)
    path.unlink()
    with pytest.raises(UnreadableClipError, match=r"00001\.parquet"):
        store.read(row, [0], 16)
    # The same length, other bytes in the middle of a frame: the JPEG does not decode, or its hash differs.
    jpeg = store_bytes = whole
    place = store_bytes.index(_jpegs(TwoBodies([4] * 6), row)[0]) + 400
    path.write_bytes(jpeg[:place] + bytes(60) + jpeg[place + 60 :])
    assert whole_shard(store.folder, 1, hashed=True) is None
    assert check_shard(store, 1, decode=False) == ["shards/00001.parquet: its bytes are not those that were written"]
    with pytest.raises(UnreadableClipError, match="frame 0"):
        _ = StoreSource(tmp_path).read(row, [0], 16).frames[0]


def _jpegs(source: TwoBodies, row: ClipRow) -> tuple[bytes, ...]:
    return source.encode(row, 256).jpegs


def test_a_folder_that_is_no_store_is_told_apart_from_an_unfinished_and_a_damaged_one(tmp_path) -> None:
    with pytest.raises(DataError, match="is no prepared store"):
        StoreSource(tmp_path)
    Folder(tmp_path).write_json("plan.json", {"format": 1})
    with pytest.raises(DataError, match="not finished: the same `starlab prepare`"):
        StoreSource(tmp_path)
    store = write_store(tmp_path / "whole", TwoBodies([2, 2]))
    Folder(tmp_path / "whole").write("index.parquet", b"PAR1 no index PAR1")
    with pytest.raises(DataError, match=r"index\.parquet is not what was written: the same `starlab prepare` with --retry"):
        StoreSource(tmp_path / "whole")
    (tmp_path / "whole/index.parquet").unlink()
    with pytest.raises(DataError, match=r"index\.parquet cannot be read"):
        StoreSource(tmp_path / "whole")
    Folder(tmp_path / "whole").write_json("manifest.json", {**store.manifest, "format": 2})
    with pytest.raises(DataError, match="has format 2, this starlab reads 1"):
        StoreSource(tmp_path / "whole")


def test_a_store_is_read_through_a_uri_as_through_a_path(tmp_path) -> None:
    store = write_store(tmp_path, TwoBodies([3, 3]))
    by_uri = StoreSource(tmp_path.as_uri())
    assert by_uri.clips == store.clips
    assert (by_uri.read(store.clips[1], [2], 16).frames[0] == store.read(store.clips[1], [2], 16).frames[0]).all()
    with pytest.raises(DataError, match="names no file system"):
        Folder("nowhere://bucket/penn")


def test_a_store_lies_on_any_file_system_that_pyarrow_knows() -> None:
    """One in memory, behind the same interface as S3's."""
    uri = "fsspec+memory://bucket/penn"
    source = TwoBodies([3, 5, 2, 4], {"S003": "nan"})
    store = write_store(uri, source, clips_per_shard=2)
    assert [row.clip_id for row in store.clips] == ["S000", "S001", "S002"]
    assert all(_equal(store.encode(row, 256), source.encode(row, 256)) for row in store.clips)
    assert not store.folder.is_local
    assert [problem for shard in (0, 1) for problem in check_shard(store, shard, decode=True)] == []
    assert pickle.loads(pickle.dumps(store)).clips == store.clips


def test_a_file_is_whole_or_not_there_when_its_writer_fails(tmp_path) -> None:
    folder = Folder(tmp_path)

    def fail_half_way() -> None:
        with Draft(folder, "deep/down/file") as draft:
            draft.write(b"half")
            assert len(folder.names()) == 1
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert folder.names() == []
    folder.write("deep/down/file", b"whole")
    assert folder.read("deep/down/file") == b"whole"
    assert folder.size("deep") is None


def test_a_clip_that_is_not_there_is_named_with_the_nearest_or_the_reason(tmp_path) -> None:
    store = write_store(tmp_path, TwoBodies([2] * 5, {"S003": "unreadable"}))
    assert store.find("S004").clip_id == "S004"
    with pytest.raises(DataError, match="did you mean S00"):
        store.find("S0004")
    with pytest.raises(DataError, match="it is in quarantine: S003 is damaged"):
        store.find("S003")


def test_statistics_are_what_a_hand_counts(tmp_path) -> None:
    store = write_store(tmp_path, TwoBodies([4, 10, 2, 6, 3], {"S002": "unreadable", "S001": "ghost"}))
    statistics = store_statistics(store)
    bow, nod, everything = statistics.classes
    assert (bow.name, bow.train, bow.test, bow.mean_frames) == ("A901 bow", 1, 1, 3.5)
    assert (nod.name, nod.train, nod.test, nod.mean_frames) == ("A902 nod", 1, 1, 8)
    assert (everything.train, everything.test) == (2, 2)
    assert statistics.frames[0] == 3
    assert statistics.frames[4] == 10
    assert statistics.sizes == (("40×24", 4),)
    assert statistics.quarantine == (("S002", "S002 is damaged"),)
    # A body that is never there is no missing joint.
    assert everything.joints_unseen == 0
    assert statistics.frames_unseen == (0, 0)
    assert read_index(store.folder, store.manifest["index"]["sha256"]) == store.stored


def test_put_writes_in_place_reaches_the_disk_and_never_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr("os.fsync", lambda file: synced.append(str(Path(f"/proc/self/fd/{file}").readlink())))
    for move in ("replace", "rename"):
        monkeypatch.setattr(os, move, lambda *_: pytest.fail("a rename is a copy on S3"))
    folder = Folder(tmp_path / "new")
    folder.put("a/file", b"one")
    folder.put("a/file", b"three")
    assert folder.read("a/file") == b"three"
    assert synced == [str(tmp_path / "new/a/file"), str(tmp_path / "new/a")] * 2
    assert folder.names() == ["a/file"]
    assert (folder.has("a/file"), folder.has("a"), folder.folders()) == (True, False, ["a"])
    folder.delete("a")
    assert folder.folders() == []


def test_the_index_of_all_of_ntu_120_costs_a_process_less_than_20_megabytes(tmp_path: Path) -> None:
    """Counted by Arrow's and Python's own books, which no other process disturbs."""
    count, folder = 114_480, Folder(tmp_path)
    clip = StoredClip(
        clip_id="", label=0, split="train", subject="P001", num_frames=80, height=256, width=456, shard=0, row=0,
        num_bytes=1, joints_unseen=0.0, frames_unseen=0, sha256="0" * 64,
    )  # fmt: skip
    rows = {field.name: pa.repeat(pa.scalar(getattr(clip, field.name), field.type), count) for field in INDEX_SCHEMA}
    rows |= {
        "clip_id": pa.array([f"S001C001P{i:06d}R001A001" for i in range(count)]),
        "sha256": pa.array([f"{i:064x}" for i in range(count)]),
    }
    pq.write_table(pa.table(rows, schema=INDEX_SCHEMA), tmp_path / "index.parquet")
    index = {"sha256": folder.sha256("index.parquet")}
    manifest = {"format": 1, "classes": ["one"], "skeleton": "ntu", "max_bodies": 2, "fingerprint": "", "index": index}
    folder.write_json("manifest.json", manifest | {"quarantine": {}, "shards": []})
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    store = StoreSource(tmp_path)
    cost = pa.total_allocated_bytes() - before + tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(store.clips) == count
    assert store.clips[70_000].clip_id == store.find("S001C001P070000R001A001").clip_id
    assert cost < 20e6


def test_going_on_trusts_a_shard_with_a_record_and_only_retry_reads_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_store(tmp_path, TwoBodies([4, 10, 2])).folder
    hashed: list[str] = []
    sha256 = Folder.sha256
    monkeypatch.setattr(Folder, "sha256", lambda folder, name: hashed.append(name) or sha256(folder, name))
    record = whole_shard(folder, 0, hashed=False)
    assert record is not None
    assert record == whole_shard(folder, 0, hashed=True)
    assert hashed == ["shards/00000.parquet"]
    folder.write("shards/00000.parquet", folder.read("shards/00000.parquet")[:-1] + b"x")  # after its record
    assert whole_shard(folder, 0, hashed=False) is None
    os.utime(tmp_path / "shards/00000.parquet", (0, 0))
    assert whole_shard(folder, 0, hashed=False) == record
    assert whole_shard(folder, 0, hashed=True) is None
    folder.write("shards/00000.parquet", folder.read("shards/00000.parquet")[:-1])
    assert whole_shard(folder, 0, hashed=False) is None


@given(values=st.lists(st.text("abc", max_size=3), unique=True, max_size=12).map(sorted), wanted=st.text("abc", max_size=3))
def test_rows_are_a_sequence_that_is_searched_by_a_sorted_column(values: list[str], wanted: str) -> None:
    rows = Rows(pa.table({"name": pa.array(values, pa.string())}), lambda row: row["name"])
    assert rows == values
    assert [rows[place] for place in range(-len(values), len(values))] == values * 2
    assert rows[1:5] == tuple(values[1:5])
    assert rows.find("name", wanted) == (values.index(wanted) if wanted in values else None)
    for outside in (len(values), -len(values) - 1):
        with pytest.raises(IndexError):
            rows[outside]
    every_other = Subset(rows, range(0, len(values), 2))
    assert every_other == values[::2]
    assert every_other[1:] == tuple(values[::2][1:])
