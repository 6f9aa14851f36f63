"""`starlab data init` writes what the other commands read, and never over a file."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from starlab.experiments.spec import load_spec
from starlab.pipelines.clip import DataError
from starlab.pipelines.custom.look import init_folder
from starlab.pipelines.custom.source import CustomSource, open_custom
from starlab.pipelines.skeletons import COCO

Write = Callable[..., Path]


def init(root: Path) -> tuple[Path | None, str]:
    lines: list[str] = []
    return init_folder(root, lines.append), "\n".join(lines)


def test_a_folder_per_class_gets_a_list_settings_and_an_experiment_that_loads(folder: Path) -> None:
    before = CustomSource(folder)
    experiment, said = init(folder)
    assert experiment == folder / "mine.yaml"
    for part in ("10 of 10 videos can be read", "6 to 10 frames, median 8; 80×48 (10)", "sit (5), stand (5)", "pixels alone"):
        assert part in said
    after = CustomSource(folder)
    assert (after.fingerprint, after.clips) == (before.fingerprint, before.clips)
    assert all(clip.frames for clip in after.description.clips), "the list says the lengths, so nothing is decoded again"
    spec = load_spec(str(experiment))
    assert (spec.model.modality, spec.data.store, spec.data.flip) == ("rgb", str(folder), True)


def test_a_second_call_keeps_every_file(folder: Path) -> None:
    init(folder)
    files = {path: path.read_text() for path in folder.iterdir() if path.is_file()}
    assert len(files) == 3
    (folder / "data.yaml").write_text("flip: false\n")
    _, said = init(folder)
    assert "wrote" not in said
    assert said.count("kept") == 3
    assert (folder / "data.yaml").read_text() == "flip: false\n"
    assert (folder / "clips.csv").read_text() == files[folder / "clips.csv"]


def test_a_video_that_cannot_be_read_is_named_and_not_listed(folder: Path) -> None:
    (folder / "sit" / "broken.mp4").write_bytes((folder / "sit" / "sit0.mp4").read_bytes()[:-100])
    _, said = init(folder)
    assert "left out sit/broken.mp4: it is cut short" in said
    assert "broken" not in (folder / "clips.csv").read_text()


def test_videos_without_a_folder_per_class_get_a_list_whose_labels_are_to_be_filled_in(
    tmp_path: Path, write_video: Write
) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write_video(tmp_path / name)
    experiment, said = init(tmp_path)
    assert experiment is None
    assert "fill in the column label" in said
    text = (tmp_path / "clips.csv").read_text()
    assert text == "path,label,split,subject,clip_id,frames\na.mp4,,,,,8\nb.mp4,,,,,8\nc.mp4,,,,,8\n"
    with pytest.raises(DataError, match="line 2: no label"):
        init(tmp_path)
    lines = text.splitlines()
    labelled = [lines[0], "a.mp4,sit,train,,,8", "b.mp4,stand,train,,,8", "c.mp4,sit,test,,,8"]
    (tmp_path / "clips.csv").write_text("\n".join(labelled))
    assert init(tmp_path)[0] is not None
    assert len(CustomSource(tmp_path).clips) == 3


def test_a_pickle_of_joints_in_the_folder_is_converted_and_its_skeleton_found(folder: Path) -> None:
    annotations = [
        {
            "frame_dir": row.clip_id,
            "img_shape": (48, 80),
            "total_frames": row.num_frames,
            "keypoint": np.full((1, row.num_frames, 17, 2), 20, np.float16),
            "keypoint_score": np.full((1, row.num_frames, 17), 0.5, np.float16),
        }
        for row in CustomSource(folder).clips
    ]
    (folder / "pose.pkl").write_bytes(pickle.dumps({"annotations": annotations}))
    experiment, said = init(folder)
    assert "17 joints, taken for coco" in said
    source = open_custom(folder)
    assert (len(source.clips), source.skeleton) == (10, COCO)
    assert source.read(source.clips[0], [0], 48).joints[0, 0, 0].tolist() == pytest.approx([20.5 / 80, 20.5 / 48, 0.5])
    spec = load_spec(str(experiment))
    assert (spec.model.modality, spec.model.num_joints) == ("both", 17)


def test_a_class_that_names_a_side_switches_the_flip_off(folder: Path) -> None:
    (folder / "sit").rename(folder / "turn: left, twice")
    experiment, _ = init(folder)
    assert 'sided_classes: ["turn: left, twice"]' in (folder / "data.yaml").read_text()
    assert CustomSource(folder).facts.sided_classes == ("turn: left, twice",)
    assert not load_spec(str(experiment)).data.flip


@pytest.mark.parametrize("name", ["mine too ü", "_x", "a:b#c"])
def test_any_name_of_a_folder_gives_an_experiment_that_loads(folder: Path, name: str) -> None:
    root = folder.rename(folder.with_name(name))
    experiment, _ = init(root)
    assert load_spec(str(experiment)).data.store == str(root)


def test_a_folder_with_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder at"):
        init(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no video and no folder of pictures"):
        init(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.mp4").write_text("text")
    with pytest.raises(DataError, match="none of the 1 videos"):
        init(tmp_path)
    assert not (tmp_path / "clips.csv").exists()
