"""Which data sets a spec can name, and what it must say of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starlab.experiments.spec import SpecError, load_spec
from starlab.pipelines.clip import DataError
from starlab.pipelines.estimated_joints import EstimatedJoints, write_joints
from starlab.pipelines.generated.ntu import SyntheticNtuConfig
from starlab.pipelines.ntu import NtuSource
from starlab.pipelines.skeletons import COCO, NTU
from starlab.pipelines.sources import DATASETS, DataConfig, open_source

SMALL = SyntheticNtuConfig(train_performers=2, test_performers=1, cameras=2, height_px=90, min_frames=40, max_frames=44)


def ntu_data(**changed: Any) -> DataConfig:
    return DataConfig(**({"dataset": "synthetic_ntu", "protocol": "xsub", "synthetic_ntu": SMALL} | changed))


def test_the_classes_the_skeleton_and_two_bodies_come_from_the_data_set() -> None:
    for name, classes in (("ntu60_xsub", 60), ("ntu60_xview", 60), ("ntu120_xsub", 120), ("ntu120_xset", 120)):
        spec = load_spec(name)
        assert (spec.model.num_classes, spec.model.num_joints, spec.model.max_bodies) == (classes, 25, 2)
        assert spec.data.protocol == name.partition("_")[2]
        assert spec.data.store == str(Path.cwd() / "data" / spec.data.dataset)
        assert (spec.train.epochs, spec.train.global_batch, spec.model.layers) == (300, 16, 3)


@pytest.mark.parametrize(
    ("experiment", "override", "message"),
    [
        ("ntu60_xsub", "data.protocol=xset", "data.protocol is xset; ntu60 is split by one of: xsub, xview"),
        ("ntu120_xsub", "data.protocol=xview", "data.protocol is xview; ntu120 is split by one of: xsub, xset"),
        ("ntu60_xsub", "data.protocol=null", "data.protocol is None; ntu60 is split by one of: xsub, xview"),
        ("ntu60_xsub", "data.protocol=cross_subject", "data.protocol is 'cross_subject'; it must be 'xsub', 'xview' or 'xset'"),
        (
            "demo",
            "data.protocol=xsub",
            "data.protocol is xsub, but synthetic_penn_action has one official split: remove the key",
        ),
        ("ntu60_xsub", "data.store=null", "data.store is missing"),
        ("demo", "data.estimated_skeleton=openpose", "must be 'coco', 'penn_action' or 'ntu'"),
        ("demo", "data.estimated_joints=j.parquet", "give both, the file and whose joints it holds"),
        ("demo", "data.estimated_skeleton=coco", "give both, the file and whose joints it holds"),
    ],
)
def test_a_split_or_an_estimator_that_does_not_apply_is_an_error_that_says_what_does(
    experiment: str, override: str, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        load_spec(experiment, [override])


def test_generated_ntu_has_classes_that_name_a_side_and_is_never_flipped() -> None:
    with pytest.raises(ValueError, match="A951_left_waves_then_right"):
        ntu_data(augment="standard", flip=True)


def test_generated_ntu_is_written_under_the_runs_folder_and_read_again(tmp_path: Path) -> None:
    tiny = replace(SMALL, train_performers=1, cameras=1, max_frames=40)
    said: list[str] = []
    source = open_source(ntu_data(synthetic_ntu=tiny), tmp_path, said.append)
    assert isinstance(source, NtuSource)
    assert source.root.parent == tmp_path / "data"
    assert source.root.name.startswith("synthetic-ntu-")
    assert len(source.clips) == 12
    assert len(said) == 1
    again = open_source(ntu_data(synthetic_ntu=tiny, protocol="xset"), tmp_path, said.append)
    assert (again.fingerprint, len(said)) == (source.fingerprint, 1)
    assert [row.split for row in again.clips] != [row.split for row in source.clips]


def test_estimated_joints_lie_over_the_data_set_with_their_own_skeleton(ntu_folder: Path, tmp_path: Path) -> None:
    plain = open_source(ntu_data(store=str(ntu_folder)), tmp_path)
    path = tmp_path / "coco.parquet"
    write_joints(path, ((row.clip_id, np.full((row.num_frames, 3, 17, 3), 0.5, np.float32)) for row in plain.clips))
    data = ntu_data(store=str(ntu_folder), estimated_joints=str(path), estimated_skeleton="coco")
    source = open_source(data, tmp_path)
    assert isinstance(source, EstimatedJoints)
    assert (data.facts().skeleton, DATASETS["synthetic_ntu"].skeleton) == (COCO, NTU)
    assert source.read(source.clips[0], [0, 3], 48).joints.shape == (2, 2, 17, 3)
    overrides = [
        "data.dataset=synthetic_ntu",
        "data.protocol=xsub",
        f"data.estimated_joints={path}",
        "data.estimated_skeleton=coco",
    ]
    spec = load_spec("demo", overrides)
    assert (spec.model.num_joints, spec.model.max_bodies, spec.model.num_classes) == (17, 2, 6)
    moved = replace(spec, data=replace(spec.data, estimated_joints="elsewhere.parquet"))
    assert moved.run_id(source.fingerprint) == spec.run_id(source.fingerprint) != spec.run_id(plain.fingerprint)


def test_a_real_data_set_is_looked_for_where_the_spec_says(tmp_path: Path) -> None:
    for dataset, protocol in (("ntu60", "xview"), ("ntu120", "xset")):
        data = DataConfig(dataset=dataset, protocol=protocol, store=str(tmp_path / "nowhere"))  # type: ignore[arg-type]
        with pytest.raises(DataError, match=r"no folder at .*nowhere: expected S001C001P001R001A001_rgb\.avi"):
            open_source(data, tmp_path)


def test_the_settings_of_generated_ntu_are_plain_json() -> None:
    spec = load_spec("demo", ["data.dataset=synthetic_ntu", "data.protocol=xset", "data.synthetic_ntu.height_px=90"])
    assert json.loads(json.dumps(spec.to_dict()))["data"]["synthetic_ntu"]["height_px"] == 90
    with pytest.raises(SpecError, match="height_px must be a multiple of 18"):
        load_spec("demo", ["data.dataset=synthetic_ntu", "data.protocol=xset", "data.synthetic_ntu.height_px=100"])


@pytest.mark.parametrize(("frames", "pattern"), [("1", "FF"), ("5", "FF"), ("6", "ZB")])
def test_any_number_of_frames_is_fine_unless_the_attention_splits_them(frames: str, pattern: str) -> None:
    spec = load_spec("demo", [f"data.frames={frames}", f"model.encoder={pattern}", f"model.decoder={pattern}"])
    assert spec.data.frames == spec.model.frames == int(frames)


@pytest.mark.parametrize("pattern", ["FZ", "B", "ZB"])
def test_odd_frames_under_an_attention_that_splits_them_are_refused_with_the_key_and_two_ways_out(pattern: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec("demo", ["data.frames=15", f"model.encoder={pattern}", "model.decoder=FF"])
    assert "data.frames is 15; it must be even, because encoder" in str(caught.value)
    assert "use an even number such as 16, or 'FF' for both" in str(caught.value)
    with pytest.raises(SpecError, match=r"data.frames is 0; it must be at least 1"):
        load_spec("demo", ["data.frames=0", "model.encoder=FF", "model.decoder=FF"])


def test_ntu_with_estimated_joints_needs_no_kinect_skeleton(ntu_folder: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(ntu_folder, tmp_path / "videos"))
    whole = open_source(ntu_data(store=str(root)), tmp_path)
    lengths = {row.clip_id: row.num_frames for row in whole.clips}
    path = tmp_path / "coco.parquet"
    write_joints(path, ((name, np.full((frames, 2, 17, 3), 0.5, np.float32)) for name, frames in lengths.items()))
    data = ntu_data(store=str(root), estimated_joints=str(path), estimated_skeleton="coco")
    before = open_source(data, tmp_path)
    (root / "nturgb+d_skeletons" / f"{whole.clips[0].clip_id}.skeleton").unlink()
    (root / "nturgb+d_skeletons" / f"{whole.clips[1].clip_id}.skeleton").write_bytes(b"40\r\nnot read any more\r\n")
    some = open_source(data, tmp_path)
    shutil.rmtree(root / "nturgb+d_skeletons")
    none = open_source(data, tmp_path)
    assert some.clips[0].num_frames == lengths[some.clips[0].clip_id]
    assert list(none.clips) == list(before.clips) == list(whole.clips)
    for row in none.clips[:2]:
        one, other = before.read(row, [3, 7], 48), none.read(row, [3, 7], 48)
        np.testing.assert_array_equal(one.frames, other.frames)
        np.testing.assert_array_equal(one.joints, other.joints)
    with pytest.raises(DataError, match="no skeleton"):
        open_source(ntu_data(store=str(root)), tmp_path)


def test_clamping_is_for_estimated_joints_alone_and_changes_a_run_only_where_it_is_on() -> None:
    with pytest.raises(SpecError, match=r"there are no data\.estimated_joints"):
        load_spec("demo", ["data.clamp_confidence=true"])
    estimated = ["data.estimated_joints=j.parquet", "data.estimated_skeleton=coco"]
    off, on = load_spec("demo", estimated), load_spec("demo", [*estimated, "data.clamp_confidence=true"])
    assert off.run_id("x") != on.run_id("x")
