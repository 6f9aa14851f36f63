"""Frames of one's own videos: the right ones, the same from folder and store, and splits that say where they come from."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from starlab.experiments.ablation import load_ablation
from starlab.experiments.spec import SpecError, load_search, load_spec, spec_from_dict
from starlab.pipelines import recording
from starlab.pipelines.browse import open_place, open_to_prepare
from starlab.pipelines.clip import DataError, UnreadableClipError
from starlab.pipelines.custom.description import DESCRIPTION
from starlab.pipelines.custom.listing import LIST
from starlab.pipelines.custom.source import CustomSource, open_custom
from starlab.pipelines.estimated_joints import EstimatedJoints, write_joints
from starlab.pipelines.prepare import StoreLayout, prepare, verify
from starlab.pipelines.skeletons import COCO, NO_JOINTS
from starlab.pipelines.sources import DataConfig, open_source
from starlab.pipelines.store import StoreSource

Write = Callable[..., Path]


def number_on(frame: np.ndarray) -> int:
    fields = np.array_split(frame[: len(frame) // 2].mean(axis=(0, 2)), 8)
    return sum((field[len(field) // 4 : -len(field) // 4].mean() > 128) << bit for bit, field in enumerate(fields))


def numbers(source: CustomSource | StoreSource, clip_id: str) -> list[int]:
    row = next(row for row in source.clips if row.clip_id == clip_id)
    return [number_on(frame) for frame in source.read(row, range(row.num_frames), 48).frames]


def test_every_frame_of_every_clip_is_read_in_order(folder: Path) -> None:
    source = CustomSource(folder)
    assert source.classes == ("sit", "stand")
    assert [row.num_frames for row in source.clips] == [6, 7, 8, 9, 10] * 2
    assert [row.label for row in source.clips] == [0] * 5 + [1] * 5
    for row in source.clips:
        assert numbers(source, row.clip_id) == list(range(row.num_frames))
    row = source.clips[4]
    assert [number_on(frame) for frame in source.read(row, [9, 0, 9, 3], 48).frames] == [9, 0, 9, 3]
    joints = source.read(row, [1, 2], 48).joints
    assert (joints.shape, joints.any()) == ((2, 1, 1, 3), False)


def test_a_source_pickles_and_reads_the_same(folder: Path) -> None:
    source = CustomSource(folder)
    other = pickle.loads(pickle.dumps(source))
    assert (other.clips, other.fingerprint) == (source.clips, source.fingerprint)
    assert numbers(other, "sit0") == list(range(6))


def test_clips_are_cut_by_time_wherever_the_key_frames_are(folder: Path, write_video: Write) -> None:
    write_video(folder / "long.mp4", 120, rate=10, keys=25)
    parts = ["sit,0,1.2", "stand,3.15,4.05", "sit,11.5,", "sit,2.5,2.6"]
    lines = ["path,split,label,start,end", *(f"long.mp4,train,{part}" for part in parts)]
    (folder / LIST).write_text("\n".join(lines))
    source = CustomSource(folder)
    assert numbers(source, "long_0-1.2") == list(range(12))
    assert numbers(source, "long_3.15-4.05") == list(range(32, 41))
    assert numbers(source, "long_11.5-") == list(range(115, 120))
    assert numbers(source, "long_2.5-2.6") == [25]
    assert {row.subject for row in source.clips} == {"long.mp4"}, "clips of one video stay on one side"


@pytest.mark.parametrize(
    ("cut", "reason"),
    [("12,13", "before the clip begins at 12 s"), ("1,9", "before the clip ends at 9 s"), ("0.01,0.05", "it has no frame")],
)
def test_a_part_that_is_not_in_the_video_is_left_out_with_the_reason(
    folder: Path, write_video: Write, cut: str, reason: str
) -> None:
    write_video(folder / "long.mp4", 40, rate=10)
    others = ["long.mp4,sit,0,1,train", "long.mp4,stand,1,2,train"]
    (folder / LIST).write_text("\n".join(["path,label,start,end,split", f"long.mp4,sit,{cut},train", *others]))
    source = CustomSource(folder)
    assert len(source.clips) == 2
    assert reason in source.skipped[0].reason


def test_the_length_that_a_list_gives_is_believed_and_checked_when_the_clip_is_read(folder: Path) -> None:
    (folder / LIST).write_text("path,label,frames,split\nsit/sit0.mp4,sit,6,train\nstand/stand0.mp4,stand,9,test\n")
    source = CustomSource(folder)
    assert numbers(source, "sit0") == list(range(6))
    with pytest.raises(UnreadableClipError, match="it has 6 frames, 9 expected"):
        numbers(source, "stand0")


def test_a_folder_of_pictures_is_a_clip_in_the_order_of_its_numbers(
    folder: Path, numbered_frame: Callable[[int], np.ndarray]
) -> None:
    pictures = folder / "sit" / "drawn"
    pictures.mkdir()
    for number in range(12):
        frame = numbered_frame(number)
        cv2.imwrite(str(pictures / f"frame{number}.png"), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    (folder / "stand" / "shot").mkdir()
    for number in range(3):
        jpeg = simplejpeg.encode_jpeg(numbered_frame(number))
        (folder / "stand" / "shot" / f"{number}.jpg").write_bytes(jpeg)
    source = CustomSource(folder)
    assert numbers(source, "drawn") == list(range(12))
    row = next(row for row in source.clips if row.clip_id == "shot")
    assert source.encode(row, 256).jpegs[1] == (folder / "stand" / "shot" / "1.jpg").read_bytes()


def test_a_damaged_video_is_left_out_and_the_others_are_used(folder: Path) -> None:
    path = folder / "sit" / "sit0.mp4"
    path.write_bytes(path.read_bytes()[:-200])
    (folder / "stand" / "stand0.mp4").write_text("<html>")
    source = CustomSource(folder)
    assert len(source.clips) == 8
    assert [clip.clip_id for clip in source.skipped] == ["sit0", "stand0"]
    assert "cut short" in source.skipped[0].reason
    assert "first bytes are of no video format" in source.skipped[1].reason


def test_too_few_clips_for_a_test_part_is_an_error_that_says_so(folder: Path) -> None:
    (folder / LIST).write_text("path,label\nsit/sit0.mp4,sit\nstand/stand0.mp4,stand\n")
    with pytest.raises(DataError, match="no test part can be drawn: 2 clips of 2 subjects or videos"):
        CustomSource(folder)


def test_the_split_is_drawn_by_clip_and_says_the_leak(folder: Path) -> None:
    source = CustomSource(folder)
    assert sum(row.split == "test" for row in source.clips) == 2
    assert {row.label for row in source.clips if row.split == "test"} == {0, 1}
    assert "clip by clip. Clips of one person" in source.about[0]
    assert CustomSource(folder).clips == source.clips
    (folder / DESCRIPTION).write_text("split_seed: 7\n")
    assert [row.split for row in CustomSource(folder).clips] != [row.split for row in source.clips]


def test_whole_subjects_are_drawn_where_all_are_named(folder: Path) -> None:
    lines = [f"{label}/{label}{number}.mp4,{label},p{number % 3}" for label in ("sit", "stand") for number in range(5)]
    (folder / LIST).write_text("\n".join(["path,label,subject", *lines]))
    source = CustomSource(folder)
    assert "whole subjects at a time" in source.about[0]
    sides = {row.subject: row.split for row in source.clips}
    assert all(row.split == sides[row.subject] for row in source.clips)
    assert set(sides.values()) == {"train", "test"}


def test_a_subject_on_both_sides_of_a_given_split_is_said(folder: Path) -> None:
    (folder / LIST).write_text(
        "path,label,split,subject\nsit/sit0.mp4,sit,train,ann\nstand/stand0.mp4,stand,train,bob\nsit/sit1.mp4,sit,test,ann\n"
        "stand/stand1.mp4,stand,validation,cem\n"
    )
    source = CustomSource(folder)
    assert source.about == (
        "1 subjects are in train and in test (ann): the test also measures how well they are recognised, so it is optimistic "
        "about new people",
    )
    assert [row.split for row in source.clips] == ["train", "test", "train", "validation"]


@pytest.mark.usefixtures("local_ray")
def test_a_store_has_the_fingerprint_the_splits_and_the_facts_of_its_folder(folder: Path, tmp_path: Path) -> None:
    (folder / DESCRIPTION).write_text("flip: false\nsided_classes: [sit]\n")
    raw, about = open_to_prepare("custom", folder, None, None)
    store = prepare(raw, "custom", tmp_path / "store", StoreLayout(clips_per_shard=4))
    assert (store.fingerprint, store.clips, store.about) == (raw.fingerprint, raw.clips, about)
    assert verify(tmp_path / "store", decode=True)[1] == []
    assert numbers(store, "stand4") == list(range(10))
    configs = [DataConfig(dataset="custom", store=str(place), frames=4) for place in (folder, tmp_path / "store")]
    assert configs[0].custom == configs[1].custom
    opened = open_source(configs[1], tmp_path)
    assert isinstance(opened, StoreSource)
    assert (opened.custom, opened.skeleton) == (configs[0].custom, NO_JOINTS)
    specs = [load_spec("demo", [*RGB, f"data.store={place}"]) for place in (folder, tmp_path / "store")]
    assert specs[0].run_id(raw.fingerprint) == specs[1].run_id(store.fingerprint)


@pytest.mark.usefixtures("local_ray")
def test_a_store_takes_over_other_settings_and_other_clips_with_retry_only(
    folder: Path, tmp_path: Path, write_video: Write
) -> None:
    def prepared(**options: bool) -> StoreSource:
        return prepare(open_custom(folder), "custom", tmp_path / "store", StoreLayout(clips_per_shard=4), **options)

    prepared()
    (folder / DESCRIPTION).write_text("flip: false\n")
    with pytest.raises(DataError, match=r"other settings than data.yaml and the list give now: take them over with --retry"):
        prepared()
    custom = prepared(retry=True).custom
    assert custom is not None
    assert not custom.may_flip
    write_video(folder / "sit" / "sit9.mp4", 12)
    with pytest.raises(DataError, match="other files, or files that have changed"):
        prepared()
    assert len(prepared(retry=True).clips) == 11


RGB = ["data.dataset=custom", "model.modality=rgb", "data.augment=none"]


def test_without_joints_only_a_model_of_pixels_is_accepted(folder: Path) -> None:
    spec = load_spec("demo", [*RGB, f"data.store={folder}"])
    assert (spec.model.num_classes, spec.model.num_joints, spec.data.custom and spec.data.custom.classes) == (
        2,
        1,
        ("sit", "stand"),
    )
    with pytest.raises(SpecError, match=r"model.modality is both, but .*mine has no joints: use model.modality=rgb"):
        load_spec("demo", ["data.dataset=custom", f"data.store={folder}"])


def test_the_stored_spec_of_a_run_searches_and_ablations_know_the_data(folder: Path, tmp_path: Path) -> None:
    spec = load_spec("demo", [*RGB, f"data.store={folder}"])
    stored = json.loads(json.dumps(spec.to_dict()))
    data = {"dataset": "custom", "store": str(folder), "augment": "none"}
    base = {"base": "demo", "data": data, "model": {"modality": "rgb"}}
    (tmp_path / "s.yaml").write_text(json.dumps(base | {"space": {"model.layers": {"int": [1, 2]}}}))
    rows = [{"name": "FF", "set": {"model.encoder": "FF"}}, {"name": "FZ", "set": {"model.encoder": "FZ"}}]
    about = {"claim": "A claim.", "source": "", "cost": "little", "reference": "FF", "seeds": 2}
    (tmp_path / "a.yaml").write_text(json.dumps(base | about | {"rows": rows}))
    search, ablation = load_search(str(tmp_path / "s.yaml")), load_ablation(str(tmp_path / "a.yaml"))
    shutil.rmtree(folder)
    assert spec_from_dict(stored, "stored") == spec
    assert search.spec_of({"model.layers": 2}).data.custom == spec.data.custom
    assert [ablation.spec_of(row, 1).data.custom for row in ablation.rows] == [spec.data.custom] * 2


def test_a_clip_may_not_be_longer_than_a_clip_can_be(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MAX_FRAMES", 8)
    source = CustomSource(folder)
    assert [clip.clip_id for clip in source.skipped] == ["sit3", "sit4", "stand3", "stand4"]
    assert "more than 8 frames, the most of one clip: list its actions as clips" in source.skipped[0].reason


def test_flip_is_refused_where_the_folder_says_so(folder: Path) -> None:
    flip = [*RGB, f"data.store={folder}", "data.augment=standard", "data.flip=true"]
    load_spec("demo", flip)
    (folder / DESCRIPTION).write_text("flip: false\n")
    with pytest.raises(SpecError, match=r"data.yaml says flip: false"):
        load_spec("demo", flip)
    (folder / DESCRIPTION).write_text("sided_classes: [sit]\n")
    with pytest.raises(SpecError, match=r"classes that name a side \(sit\)"):
        load_spec("demo", flip)


def test_a_run_knows_its_data_without_the_folder_and_refuses_other_classes(folder: Path, tmp_path: Path) -> None:
    config = DataConfig(dataset="custom", store=str(folder), frames=4)
    kept = replace(config, store=str(tmp_path / "gone"))
    assert kept.facts().classes == ("sit", "stand")
    (folder / "stand").rename(folder / "lie")
    with pytest.raises(DataError, match=r"has the classes lie, sit, but data.custom.classes are sit, stand"):
        open_source(config, tmp_path)


def joints_of(source: CustomSource, joints: int = 17, people: int = 1) -> list[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        (row.clip_id, rng.uniform(0.1, 0.9, (row.num_frames, people, joints, 3)).astype(np.float32)) for row in source.clips
    ]


@pytest.mark.usefixtures("local_ray")
def test_joints_that_the_description_names_are_read_stored_and_part_of_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    given = joints_of(CustomSource(folder))
    write_joints(folder / "joints.parquet", given)
    (folder / DESCRIPTION).write_text("joints: joints.parquet\nskeleton: coco\n")
    raw = open_custom(folder)
    assert raw.skeleton == COCO
    row = raw.clips[3]
    assert np.array_equal(raw.read(row, [2, 0], 48).joints, dict(given)[row.clip_id][[2, 0]])
    store = prepare(raw, "custom", tmp_path / "store")
    assert (store.fingerprint, store.clips) == (raw.fingerprint, raw.clips)
    assert np.array_equal(store.read(row, [2, 0], 48).joints, dict(given)[row.clip_id][[2, 0]])
    spec = load_spec("demo", ["data.dataset=custom", f"data.store={tmp_path / 'store'}"])
    assert spec.model.num_joints == 17
    lines: list[str] = []
    for place in (folder, tmp_path / "store"):
        open_source(replace(spec.data, store=str(place)), tmp_path, lines.append)
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert "clip by clip" in lines[0]
    write_joints(folder / "joints.parquet", [(name, joints * np.float32(0.5)) for name, joints in given])
    assert open_custom(folder).fingerprint != raw.fingerprint


def test_joints_given_for_preparing_or_by_a_spec_are_the_same_data(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "joints.parquet"
    write_joints(path, joints_of(CustomSource(folder)))
    prepared, _ = open_to_prepare("custom", folder, path, "coco")
    overrides = ["data.dataset=custom", f"data.store={folder}", f"data.estimated_joints={path}", "data.estimated_skeleton=coco"]
    spec = load_spec("demo", overrides)
    opened = open_source(spec.data, tmp_path)
    assert isinstance(opened, EstimatedJoints)
    assert opened.fingerprint == prepared.fingerprint
    assert spec.model.num_joints == 17
    assert open_place(str(folder), None, path, "coco").skeleton == COCO


def test_joints_of_another_skeleton_are_refused(folder: Path) -> None:
    write_joints(folder / "joints.parquet", joints_of(CustomSource(folder), joints=25))
    (folder / DESCRIPTION).write_text("joints: joints.parquet\nskeleton: coco\n")
    with pytest.raises(DataError, match=r"clip \w+ has 25 joints, the skeleton coco has 17"):
        open_custom(folder)


@pytest.mark.parametrize(
    ("dataset", "joints", "skeleton", "message"),
    [
        ("custom", "joints.parquet", None, "give both, --joints and --skeleton"),
        ("custom", None, "coco", "give both, --joints and --skeleton"),
        ("custom", "joints.parquet", "openpose", "unknown skeleton 'openpose'"),
        ("penn_action", "joints.parquet", "coco", "--joints is for data sets of your own"),
        ("customs", None, None, "unknown data set 'customs'; did you mean 'custom'"),
    ],
)
def test_what_cannot_be_prepared_is_refused(
    folder: Path, dataset: str, joints: str | None, skeleton: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_to_prepare(dataset, folder, folder / joints if joints else None, skeleton)
