"""`starlab predict --pose`: what is refused before anything is estimated, and the whole way where the pose model is here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from starlab.experiments.spec import load_spec
from starlab.pipelines.generated.penn_action import SyntheticConfig, draw_clip
from starlab.platform.cli import app
from starlab.platform.cluster.connect import Cluster
from starlab.platform.errors import UserError
from starlab.platform.pose.joints_file import read_clips
from starlab.platform.pose.model_file import load_model
from starlab.platform.pose_run import joints_for_prediction
from starlab.platform.serving.predict import PredictRequest
from starlab.platform.serving.recogniser import ModelCard, Place


def has_pose_model() -> bool:
    try:
        load_model()
    except UserError:
        return False
    return True


@pytest.fixture
def coco_place(tmp_path: Path, make: Any) -> Place:
    keys = ["data.frames=4", "data.size=24", "model.dim=16", "model.heads=2", "data.store=people"]
    estimated = ["data.estimated_joints=joints.parquet", "data.estimated_skeleton=coco"]
    place: Place = make.model(tmp_path / "coco", load_spec("penn_action", [*keys, *estimated, "model.weights=none"]))
    return place


def refused(card: ModelCard, *videos: str) -> str:
    with pytest.raises(UserError) as raised, joints_for_prediction(videos, card):
        pass
    return str(raised.value)


def test_what_cannot_be_estimated_for_a_model_is_refused_first(place: Place, rgb_place: Place, coco_place: Place) -> None:
    assert "reads no joints (model.modality is rgb): leave --pose out" in refused(rgb_place.card(), "a.mp4")
    says = refused(place.card(), "a.mp4")
    assert "was trained on the joints of the skeleton penn_action, and --pose estimates those of coco" in says
    assert "record it to a file first" in refused(coco_place.card(), "-")
    assert "the joints of notes.txt cannot be estimated: its name must end in .mp4" in refused(coco_place.card(), "notes.txt")


def test_a_model_that_reads_joints_says_how_to_give_them(place: Place, rgb_place: Place) -> None:
    with pytest.raises(UserError, match=r"reads joints .*: estimate them with --pose, or name a file of them with --joints"):
        PredictRequest(place=place).joints_of(place.card())
    assert PredictRequest(place=rgb_place).joints_of(rgb_place.card()) is None


@pytest.mark.slow
@pytest.mark.skipif(not has_pose_model(), reason="the pose model is not here: starlab data pose-model")
def test_one_command_estimates_the_joints_and_names_the_actions(
    coco_place: Place, local_ray: Cluster, tmp_path: Path, make: Any
) -> None:
    frames = draw_clip(SyntheticConfig(size_px=192, min_frames=20, max_frames=24), "wave_then_squat", "train", 0, 0).render()
    make.video(tmp_path / "videos" / "one.mp4", list(frames))
    shutil.copy(tmp_path / "videos" / "one.mp4", tmp_path / "videos" / "two.mp4")  # another encoding may differ
    (tmp_path / "videos" / "bad.mp4").write_bytes(b"nothing" * 99)
    kept = tmp_path / "kept.parquet"
    command = ["predict", str(coco_place.model), str(tmp_path / "videos"), "--pose", "--joints", str(kept), "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1, done.output  # one video is bad
    assert [Path(one["video"]).name for one in json.loads(done.stdout)] == ["one.mp4", "two.mp4"]
    assert "bad.mp4 cannot be read as a video" in done.stderr
    assert "pose     3 videos" in done.stderr
    found = {Path(clip_id).name: joints for clip_id, joints, _ in read_clips(kept)}
    assert found.keys() == {"one.mp4", "two.mp4"}
    seen = (found["one.mp4"][:, 0, :, 2] > 0).any(axis=1).mean()
    assert seen > 0.9
    np.testing.assert_array_equal(found["one.mp4"], found["two.mp4"])
