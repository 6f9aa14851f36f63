"""One data set has one identity: the authors' files and a store that was prepared from them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import simplejpeg

from starlab.pipelines.clip import ClipRow, ClipSource, DataError, identity, short_digest
from starlab.pipelines.datasets import open_authors_files
from starlab.pipelines.generated.penn_action import SYNTHETIC_CLASSES
from starlab.pipelines.penn_action import PennActionSource
from starlab.pipelines.prepare import StoreLayout, prepare, verify
from starlab.pipelines.store import StoreSource

PENN, NTU = "synthetic_penn_action", "synthetic_ntu"


@pytest.fixture
def penn(small_folder: Path, tmp_path: Path) -> Path:
    """Some clips of each split, to change."""
    root = tmp_path / "penn"
    (root / "labels").mkdir(parents=True)
    for clip_id in ("0001", "0002", "0003", "0008", "0009"):
        shutil.copy(small_folder / "labels" / f"{clip_id}.mat", root / "labels")
        shutil.copytree(small_folder / "frames" / clip_id, root / "frames" / clip_id)
    return root


@pytest.fixture
def ntu(ntu_folder: Path, tmp_path: Path) -> Path:
    root = tmp_path / "ntu"
    root.mkdir()
    for clip_id in ("S001C002P001R001A951", "S001C001P001R001A901", "S002C001P002R001A953"):
        shutil.copy(ntu_folder / "nturgb+d_rgb" / f"{clip_id}_rgb.avi", root)
        shutil.copy(ntu_folder / "nturgb+d_skeletons" / f"{clip_id}.skeleton", root)
    return root


def prepared(root: Path, dataset: str, place: Path, **settings: int) -> StoreSource:
    return prepare(
        open_authors_files(dataset, root), dataset, place, StoreLayout(clips_per_shard=2, **settings), max_bad_fraction=0.5
    )


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("dataset", [PENN, NTU])
def test_a_folder_and_its_store_have_the_same_fingerprint(dataset: str, request, tmp_path: Path) -> None:
    root: Path = request.getfixturevalue("penn" if dataset == PENN else "ntu")
    raw = open_authors_files(dataset, root)
    store = prepared(root, dataset, tmp_path / "store")
    assert store.fingerprint == raw.fingerprint == StoreSource(tmp_path / "store").fingerprint
    assert store.clips == raw.clips
    elsewhere = Path(shutil.copytree(root, tmp_path / "elsewhere"))
    assert open_authors_files(dataset, elsewhere).fingerprint == store.fingerprint


@pytest.mark.usefixtures("local_ray")
def test_a_store_without_a_clip_has_the_fingerprint_of_a_folder_without_it(penn: Path, tmp_path: Path) -> None:
    (penn / "frames/0002/000001.jpg").write_bytes(b"")
    store = prepared(penn, PENN, tmp_path / "store")
    assert [clip.clip_id for clip in store.skipped] == ["0002"]
    assert store.fingerprint != open_authors_files(PENN, penn).fingerprint
    shutil.rmtree(penn / "frames/0002")
    assert store.fingerprint == open_authors_files(PENN, penn).fingerprint


@pytest.mark.usefixtures("local_ray")
def test_frames_of_another_size_are_other_data_unless_they_are_the_authors(penn: Path, ntu: Path, tmp_path: Path) -> None:
    assert prepared(penn, PENN, tmp_path / "penn48", short_side_px=48).fingerprint == open_authors_files(PENN, penn).fingerprint
    raw = open_authors_files(NTU, ntu).fingerprint
    assert prepared(ntu, NTU, tmp_path / "ntu48", short_side_px=48).fingerprint != raw
    # The videos are 90 pixels high: neither size shrinks them.
    assert prepared(ntu, NTU, tmp_path / "ntu128", short_side_px=128).fingerprint == raw


def another_picture(root: Path) -> None:
    path = root / "frames/0002/000003.jpg"
    path.write_bytes(simplejpeg.encode_jpeg(simplejpeg.decode_jpeg(path.read_bytes())[::-1].copy(), quality=80))


def another_label(root: Path) -> None:
    shutil.copy(root / "labels/0001.mat", root / "labels/0002.mat")


def another_video(root: Path) -> None:
    """Of the same length in bytes."""
    path = root / "S001C001P001R001A901_rgb.avi"
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(bytes(data))


def another_skeleton(root: Path) -> None:
    path = root / "S001C001P001R001A901.skeleton"
    path.write_bytes(path.read_bytes() + b"\r\n")


def another_performer(root: Path) -> None:
    for ending in ("_rgb.avi", ".skeleton"):
        (root / f"S002C001P002R001A953{ending}").rename(root / f"S002C001P004R001A953{ending}")


@pytest.mark.parametrize(
    ("dataset", "change"),
    [
        (PENN, another_picture),
        (PENN, another_label),
        (PENN, lambda root: (root / "labels/0003.mat").unlink()),
        (NTU, another_video),
        (NTU, another_skeleton),
        (NTU, another_performer),
        (NTU, lambda root: (root / "S001C001P001R001A901_rgb.avi").unlink()),
    ],
)
def test_changed_data_have_another_fingerprint(dataset: str, change: Callable[[Path], None], request) -> None:
    root: Path = request.getfixturevalue("penn" if dataset == PENN else "ntu")
    before = open_authors_files(dataset, root).fingerprint
    change(root)
    assert open_authors_files(dataset, root).fingerprint != before


def test_an_identity_depends_on_no_order_and_on_no_official_split() -> None:
    clips = [
        ClipRow(clip_id=str(i), label=i % 2, split="train", subject=None, num_frames=9, digest=short_digest(i))
        for i in range(5)
    ]
    other = [
        ClipRow(clip_id=c.clip_id, label=c.label, split="test", subject=None, num_frames=9, digest=c.digest) for c in clips
    ]
    assert identity(("a", "b"), clips) == identity(("a", "b"), other[::-1])
    assert identity(("a", "c"), clips) != identity(("a", "b"), clips) != identity(("a", "b"), clips[1:])
    assert short_digest("ab", "c") != short_digest("a", "bc")


@pytest.mark.usefixtures("local_ray")
def test_retry_rewrites_what_changed_in_the_source_and_nothing_else(penn: Path, tmp_path: Path) -> None:
    place = tmp_path / "store"
    prepared(penn, PENN, place)
    times = {path.name: path.stat().st_mtime_ns for path in (place / "shards").glob("*.parquet")}
    another_picture(penn)
    with pytest.raises(DataError, match=r"was begun with source_fingerprint .* with --retry"):
        prepared(penn, PENN, place)
    source = open_authors_files(PENN, penn)
    store = prepare(source, PENN, place, StoreLayout(clips_per_shard=2), retry=True)
    assert store.fingerprint == source.fingerprint
    changed = [name for name, then in times.items() if (place / "shards" / name).stat().st_mtime_ns != then]
    assert len(changed) == 1
    assert verify(place, decode=True)[1] == []

    (penn / "labels/0001.mat").unlink()
    (penn / "labels/0002.mat").unlink()
    source = open_authors_files(PENN, penn)
    store = prepare(source, PENN, place, StoreLayout(clips_per_shard=2), retry=True)
    assert (store.clips, store.fingerprint) == (source.clips, source.fingerprint)
    assert sorted(path.name for path in (place / "shards").iterdir()) == [
        f"0000{i}.{e}" for i in (0, 1) for e in ("json", "parquet")
    ]


@pytest.mark.usefixtures("local_ray")
def test_a_store_of_an_earlier_version_opens_with_its_old_fingerprint(penn: Path, tmp_path: Path) -> None:
    place = tmp_path / "store"
    prepared(penn, PENN, place)
    as_earlier_version(place)
    store = StoreSource(place)
    assert store.fingerprint == "of its own bytes"
    assert store.stored[0].joints_outside is None
    assert verify(place, decode=True)[1] == []
    assert prepared(penn, PENN, place).fingerprint == "of its own bytes"
    manifest = (place / "manifest.json").read_bytes()
    (place / "manifest.json").unlink()
    with pytest.raises(DataError, match="begun by another version of starlab, whose fingerprints differ"):
        prepared(penn, PENN, place)
    (place / "manifest.json").write_bytes(manifest)
    source = open_authors_files(PENN, penn)
    assert prepare(source, PENN, place, StoreLayout(clips_per_shard=2), retry=True).fingerprint == source.fingerprint


def as_earlier_version(place: Path) -> None:
    """Take away what earlier versions did not write."""
    import pyarrow.parquet as pq

    from starlab.pipelines.storage import Folder

    folder = Folder(place)
    table = pq.read_table(place / "index.parquet").drop(["joints_outside", "digest"])
    pq.write_table(table, place / "index.parquet", compression="zstd", store_schema=False)
    for name in [name for name in folder.names() if name.endswith(".json")]:
        value = json.loads(folder.read(name))
        value.pop("fingerprints", None)
        value.pop("notes", None)
        for clip in value.get("clips", []) if "shards/" in name else []:
            del clip["joints_outside"], clip["digest"]
        if name == "manifest.json":
            value["fingerprint"] = "of its own bytes"
            value["index"] = {"sha256": folder.sha256("index.parquet"), "num_bytes": folder.size("index.parquet")}
        if "source_fingerprint" in value:
            value["source_fingerprint"] = "of an earlier version"
        (place / name).write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def test_the_sources_classes_are_part_of_the_identity(penn: Path) -> None:
    one: ClipSource = PennActionSource(penn, SYNTHETIC_CLASSES)
    assert PennActionSource(penn, SYNTHETIC_CLASSES[::-1]).fingerprint != one.fingerprint
