"""A new data set is its reader and one entry of the table."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from starlab.experiments.spec import SpecError, load_spec
from starlab.pipelines.clip import ClipRow, DataError, DecodedClip, EncodedClip, SkippedClip
from starlab.pipelines.datasets import DATASETS, Dataset, Generator, differs_from_official, not_official, open_authors_files
from starlab.pipelines.prepare import StoreLayout, prepare
from starlab.pipelines.schedule import Schedule, TrainPlan
from starlab.pipelines.skeletons import Skeleton
from starlab.pipelines.sources import generated_clips_per_class, generated_folder, is_generated, open_source
from starlab.pipelines.store import StoreSource
from starlab.pipelines.stream import StreamLimits, train_batches

STICK = Skeleton(name="stick", joints=("top", "bottom"), mirror=(0, 1), bones=((0, 1),))


class NumberedClips:
    """A folder with a `clips.txt` of lines "name action split"; every pixel of a clip is its line's number."""

    def __init__(self, root: Path) -> None:
        lines = [line.split() for line in (root / "clips.txt").read_text().splitlines()]
        self.classes, self.skeleton, self.max_bodies = ("sit", "stand"), STICK, 1
        self.clips = tuple(
            ClipRow(clip_id=name, label=self.classes.index(action), split=split, subject=None, num_frames=6)  # type: ignore[arg-type]
            for name, action, split in sorted(lines)
        )
        self.skipped: tuple[SkippedClip, ...] = ()
        self.fingerprint = "numbered"

    def read(self, row: ClipRow, frame_indices: Sequence[int], min_side_px: int) -> DecodedClip:
        frame = np.full((20, 24, 3), int(row.clip_id), np.uint8)
        return DecodedClip([frame] * len(frame_indices), np.full((len(frame_indices), 1, 2, 3), 0.5, np.float32))

    def encode(self, row: ClipRow, short_side_px: int) -> EncodedClip:
        decoded = self.read(row, range(6), short_side_px)
        return EncodedClip(tuple(simplejpeg.encode_jpeg(frame) for frame in decoded.frames), decoded.joints, None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of `my_lab`, whose entry is in the table while the test runs."""
    root = tmp_path / "files"
    root.mkdir()
    lines = [f"{number:03d} {('sit', 'stand')[number % 2]} {'test' if number % 5 == 0 else 'train'}" for number in range(40)]
    (root / "clips.txt").write_text("\n".join(lines))
    entry = Dataset(classes=("sit", "stand"), skeleton=STICK, max_bodies=1, open=lambda root, protocol: NumberedClips(root))
    monkeypatch.setitem(DATASETS, "my_lab", entry)
    return root


@pytest.mark.usefixtures("local_ray")
def test_a_reader_and_an_entry_are_enough_for_a_spec_a_store_and_a_stream(folder: Path, tmp_path: Path) -> None:
    overrides = [
        "data.dataset=my_lab",
        f"data.store={folder}",
        "data.frames=4",
        "data.size=16",
        "data.decode=worker",
        "data.augment=none",
    ]
    spec = load_spec("demo", overrides)
    assert (spec.model.num_classes, spec.model.num_joints, spec.model.max_bodies) == (2, 2, 1)
    raw = open_source(spec.data, tmp_path)
    store = prepare(open_authors_files("my_lab", folder), "my_lab", tmp_path / "store", StoreLayout(clips_per_shard=16))
    prepared = open_source(replace(spec.data, store=str(tmp_path / "store")), tmp_path)
    assert isinstance(prepared, StoreSource)
    assert prepared.skeleton == STICK
    assert prepared.clips == store.clips == raw.clips
    plan = TrainPlan(Schedule(0, 40), tuple(range(40)), 8, 0, 1, 0)
    limits = StreamLimits(cpus=0.5, cpus_per_task=0.5, object_store_bytes=40_000_000)
    for source in (raw, prepared):
        [batch] = islice(train_batches(source, spec.data, plan, 3, limits), 1)
        assert batch.frames.shape == (8, 4, 16, 16, 3)
        assert batch.joints.shape == (8, 4, 1, 2, 3)
        assert batch.labels.tolist() == [source.clips[clip].label for clip in batch.clips]
        assert np.abs(batch.frames[:, 0, 0, 0, 0].astype(int) - batch.clips).max() <= 2  # JPEG


def test_a_name_that_is_not_in_the_table_is_an_error_with_the_nearest_one() -> None:
    with pytest.raises(
        SpecError, match=r"unknown data set 'penn_acton'; did you mean 'penn_action'\? Known: penn_action, ntu60"
    ):
        load_spec("demo", ["data.dataset=penn_acton"])
    with pytest.raises(DataError, match=r"did you mean 'synthetic-ntu'\? Known: penn-action, ntu60"):
        open_authors_files("synthetic_nut", Path())


def test_a_generated_data_set_says_how_it_is_written_where_and_how_large(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[object] = []

    def write(root: Path, settings: object, workers: int) -> None:
        written.append(settings)
        folder.rename(root)

    generator = Generator(section="synthetic", folder="lab", write=write, clips_per_class=lambda settings: (16, 4))
    monkeypatch.setitem(DATASETS, "my_lab", replace(DATASETS["my_lab"], generator=generator))
    data = load_spec("demo", ["data.dataset=my_lab"]).data  # needs no data.store
    assert is_generated(data)
    assert generated_clips_per_class(data) == (16, 4)
    place = generated_folder(data, tmp_path)
    assert place.name.startswith("lab-")
    place.parent.mkdir()
    assert len(open_source(data, tmp_path).clips) == 40
    assert written == [data.synthetic]


def test_the_folders_of_generated_people_keep_their_names(tmp_path: Path) -> None:
    """A folder that was generated before is found again."""
    assert generated_folder(load_spec("demo").data, tmp_path).name == "synthetic-071436ab"
    ntu = load_spec("demo", ["data.dataset=synthetic_ntu", "data.protocol=xsub"]).data
    assert generated_folder(ntu, tmp_path).name == "synthetic-ntu-e348b2bb"
    assert generated_clips_per_class(ntu) == (24, 6)
    assert generated_clips_per_class(load_spec("demo").data) == (80, 32)


def test_only_a_generated_data_set_can_go_without_a_place() -> None:
    assert [name for name, dataset in DATASETS.items() if dataset.generator] == [
        "synthetic_penn_action",
        "synthetic_bystanders",
        "synthetic_ntu",
    ]
    with pytest.raises(SpecError, match=r"data.store is missing: name the folder that holds penn_action"):
        load_spec("demo", ["data.dataset=penn_action"])


def test_a_partial_download_is_told_from_the_official_counts() -> None:
    for name, protocol, train, test in (
        ("penn_action", None, 1258, 1068),
        ("ntu60", "xsub", 40_091, 16_487),
        ("ntu60", "xview", 37_646, 18_932),
        ("ntu120", "xsub", 63_026, 50_919),
        ("ntu120", "xset", 54_468, 59_477),
    ):
        assert differs_from_official(name, protocol, train, test) is None  # type: ignore[arg-type]
        said = differs_from_official(name, protocol, train - 300, test)  # type: ignore[arg-type]
        assert said is not None
        assert f"{train - 300:,} train and {test:,} test clips where {name}" in said
        assert f"officially has {train:,} and {test:,}: is the download complete?" in said
    clips = [ClipRow(clip_id="1", label=0, split="train", subject=None, num_frames=9)]
    assert not_official("penn_action", None, clips) == differs_from_official("penn_action", None, 1, 0) is not None
    assert not_official("synthetic_ntu", "xsub", clips) is None
    assert differs_from_official("synthetic_ntu", "xsub", 1, 1) is None


def test_what_an_operating_system_leaves_behind_is_no_sample(small_folder: Path, ntu_folder: Path, tmp_path: Path) -> None:
    for folder, name, protocol in ((small_folder, "synthetic_penn_action", None), (ntu_folder, "synthetic_ntu", "xsub")):
        clean = DATASETS[name].open(folder, protocol)  # type: ignore[arg-type]
        littered = Path(shutil.copytree(folder, tmp_path / name))
        for path in [littered, *littered.rglob("*")]:
            if path.is_dir():
                for litter in (".DS_Store", "Thumbs.db", "desktop.ini"):
                    (path / litter).write_bytes(b"system")
            elif path.parent.name in ("labels", "0001", "nturgb+d_rgb", "nturgb+d_skeletons"):
                (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7")
        shutil.copytree(folder, littered / "__MACOSX")
        found = DATASETS[name].open(littered, protocol)  # type: ignore[arg-type]
        assert (found.clips, found.skipped, found.fingerprint) == (clean.clips, clean.skipped, clean.fingerprint)
