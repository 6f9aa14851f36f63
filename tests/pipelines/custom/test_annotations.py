"""Others' joints become one file, and a pickle runs no code."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starlab.pipelines.clip import DataError
from starlab.pipelines.custom.annotations import convert_joints
from starlab.pipelines.custom.pickles import read_pickle
from starlab.pipelines.estimated_joints import clip_lengths


def pyskl(**changed: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    annotation = {
        "frame_dir": "v_01",
        "label": 3,
        "img_shape": (240, 320),
        "original_shape": (240, 320),
        "total_frames": 5,
        "keypoint": rng.uniform(0, 200, (2, 5, 17, 2)).astype(np.float16),
        "keypoint_score": rng.uniform(0.1, 1, (2, 5, 17)).astype(np.float16),
    }
    return annotation | changed


def write(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_and_arrays_come_back_as_they_were(tmp_path: Path, protocol: int) -> None:
    value = {
        "split": {"train": ["a", "b"]},
        "annotations": [pyskl(), (1, 2.5, None, True, b"bytes")],
        "order": OrderedDict(a=1),
        "arrays": [
            np.arange(6).reshape(2, 3),
            np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            np.array([1, 2], ">i4"),
            np.array(["x", "yy"]),
            np.zeros((0, 3)),
            np.float32(1.5),
            np.int64(7),
        ],
    }
    found = read_pickle(write(tmp_path / "a.pkl", value, protocol))
    np.testing.assert_equal(found, value)
    assert found["arrays"][2].dtype == np.dtype(">i4")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


class EvilState(dict[str, int]):
    def __setstate__(self, state: object) -> None:
        raise AssertionError("it ran")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Evil(), f"{os.system.__module__}.system"),
        ({"annotations": [pyskl(keypoint=Evil())]}, f"{os.system.__module__}.system"),
        (EvilState(a=1), "EvilState"),
        (Fraction(1, 3), "fractions.Fraction"),
        (np.dtype("i4").newbyteorder, "builtins.getattr"),
        (eval, "builtins.eval"),
    ],
)
def test_a_pickle_that_wants_code_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: object, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"wants to run .*{name}, which is refused"):
        read_pickle(write(tmp_path / "a.pkl", value))
    assert not (tmp_path / "ran").exists()


def test_an_array_of_objects_is_refused_and_so_is_damage(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only numbers and text are read"):
        read_pickle(write(tmp_path / "a.pkl", np.array([{}, None], object)))
    path = write(tmp_path / "b.pkl", pyskl())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="not a readable pickle"):
        read_pickle(path)
    path.write_text("clip,joints\n")
    with pytest.raises(DataError, match="not a readable pickle"):
        read_pickle(path)


def test_a_part_that_a_small_file_refers_to_again_and_again_is_made_once(tmp_path: Path) -> None:
    value: list[Any] = [0]
    for _ in range(60):
        value = [value, value]
    found = read_pickle(write(tmp_path / "a.pkl", value))
    assert found[0] is found[1]


@pytest.mark.parametrize("wrapped", [False, True])
def test_pyskl_becomes_fractions_of_the_frame(tmp_path: Path, wrapped: bool) -> None:
    annotations = [pyskl(), pyskl(frame_dir="videos/v_02", keypoint_score=None)]
    value = {"split": {}, "annotations": annotations} if wrapped else annotations
    made = convert_joints(write(tmp_path / "a.pkl", value), tmp_path / "joints.parquet")
    assert (made.clips, made.num_joints, made.max_bodies, made.skeleton) == (2, 17, 2, "coco")
    assert clip_lengths(tmp_path / "joints.parquet") == {"v_01": 5, "v_02": 5}
    [first, second] = read_joints(tmp_path / "joints.parquet")
    keypoint = annotations[0]["keypoint"].astype(np.float32)
    np.testing.assert_allclose(first[2, 1, 4, :2], (keypoint[1, 2, 4] + 0.5) / [320, 240], rtol=1e-5)
    np.testing.assert_array_equal(first[..., 2], annotations[0]["keypoint_score"].astype(np.float32).transpose(1, 0, 2))
    assert (second[..., 2] == 1).all()


def read_joints(path: Path) -> list[np.ndarray]:
    import pyarrow.parquet as pq

    rows = pq.read_table(path).to_pylist()
    return [np.array(row["joints"], np.float32).reshape(row["num_frames"], row["num_bodies"], -1, 3) for row in rows]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "has no clip"),
        ({"joints": []}, "no list of annotations"),
        ([pyskl(keypoint=np.zeros((1, 5, 25, 3)))], "3-D joints are not places in a picture"),
        ([pyskl(img_shape=None)], "no 'img_shape'"),
        ([pyskl(total_frames=6)], "total_frames is 6, but keypoint has 5"),
        ([pyskl(keypoint_score=np.ones((2, 5, 16)))], "keypoint_score is"),
        ([{"frame_dir": "a"}], "no 'keypoint'; it has frame_dir"),
        ([pyskl(), pyskl()], "has clip v_01 twice"),
        (
            [pyskl(), pyskl(frame_dir="b", keypoint=np.ones((1, 5, 13, 2)), keypoint_score=np.ones((1, 5, 13)))],
            "clip b has 13 joints, earlier ones 17",
        ),
        ([3], "not a mapping"),
    ],
)
def test_annotations_that_do_not_fit_are_refused_and_leave_no_file(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        convert_joints(write(tmp_path / "a.pkl", value), tmp_path / "joints.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pkl"]


def coco(**changed: Any) -> dict[str, Any]:
    images = [{"id": 10 - number, "file_name": f"{number:03d}.jpg", "width": 200, "height": 100} for number in range(3)]
    points = [value for joint in range(17) for value in (joint, 50, 2 if joint else 1)]
    annotations = [
        {"image_id": 10, "keypoints": points, "track_id": 5},
        {"image_id": 8, "keypoints": points, "track_id": 5},
        {"image_id": 8, "keypoints": points, "track_id": 2},
        {"image_id": 9, "bbox": [0, 0, 1, 1]},
    ]
    return {"images": images, "annotations": annotations} | changed


def test_coco_files_become_clips_with_people_in_the_columns_of_their_tracks(tmp_path: Path) -> None:
    folder = tmp_path / "json"
    folder.mkdir()
    (folder / "clip.json").write_text(json.dumps(coco()))
    made = convert_joints(folder, tmp_path / "joints.parquet")
    assert (made.clips, made.num_joints, made.max_bodies) == (1, 17, 2)
    [joints] = read_joints(tmp_path / "joints.parquet")
    assert joints.shape == (3, 2, 17, 3)
    assert joints[..., 2].any(axis=-1).tolist() == [[False, True], [False, False], [True, True]]
    np.testing.assert_allclose(joints[0, 1, 16], [16.5 / 200, 50.5 / 100, 1.0])
    assert joints[0, 1, 0, 2] == 0.5, "labelled, but hidden"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "not COCO's format"),
        ("{", "cannot be read"),
        (json.dumps(coco(images=[])), "no images"),
        (json.dumps(coco(annotations=[])), "no joints"),
        (json.dumps(coco(annotations=[{"image_id": 1, "keypoints": [1, 2, 3]}])), "image 1, which is not in the list"),
        (
            json.dumps(coco(images=[{"id": 10}], annotations=[{"image_id": 10, "keypoints": [1, 2, 3]}])),
            "lacks something.*width",
        ),
        (json.dumps(coco(annotations=[{"image_id": 10, "keypoints": [1, 2]}])), "lacks something"),
    ],
)
def test_a_json_file_that_does_not_fit_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    folder = tmp_path / "json"
    folder.mkdir()
    (folder / "clip.json").write_text(text)
    with pytest.raises(DataError, match=message):
        convert_joints(folder, tmp_path / "joints.parquet")
    assert not (tmp_path / "joints.parquet").exists()


def test_a_file_of_joints_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "joints.parquet").write_bytes(b"mine")
    with pytest.raises(DataError, match="exists: name another file"):
        convert_joints(write(tmp_path / "a.pkl", [pyskl()]), tmp_path / "joints.parquet")
    with pytest.raises(DataError, match=r"neither a pickle .* nor a folder of JSON files"):
        convert_joints(tmp_path / "a.txt", tmp_path / "other.parquet")
