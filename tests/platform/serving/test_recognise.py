"""From a model and a video to a prediction, and what is said where joints or the model do not fit."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from typer.testing import CliRunner

from starlab.experiments.spec import load_spec
from starlab.pipelines.estimated_joints import write_joints
from starlab.platform.cli import app
from starlab.platform.cluster.connect import Cluster
from starlab.platform.errors import UserError
from starlab.platform.serving.joints_input import joints_from_file
from starlab.platform.serving.predict import Failure, PredictRequest, predict_video, predict_videos
from starlab.platform.serving.recognise import Sampling, recognise
from starlab.platform.serving.recogniser import Place, Recogniser, locate
from starlab.platform.serving.video_input import VideoInput
from starlab.platform.serving.video_prediction import VideoPrediction
from starlab.platform.serving.windows import Window, clips_of


def test_the_probabilities_of_a_window_are_those_of_its_clip_at_the_temperature(recogniser: Recogniser, videos: Path) -> None:
    skeleton = recogniser.spec.data.facts().skeleton
    joints_of = joints_from_file(videos / "joints.parquet", skeleton)
    video = VideoInput(str(videos / "one.mp4"))
    found = recognise(recogniser, video, joints_of, Sampling(window_seconds=1.0, stride_seconds=0.5))
    assert [(w.start_seconds, w.end_seconds) for w in found.windows] == [(0.0, 1.0), (0.5, 1.5), (1.0, 2.0)]
    assert (found.frames, found.calibrated) == (40, True)
    frames = list(video.frames(recogniser.spec.data.size))
    [clip] = clips_of(Window(10, frames[10:30]), joints_of(str(video.source), 40), recogniser.spec, "auto")
    logits = recogniser.logits(clip.frames[None], clip.joints[None]).astype(np.float64)
    assert recogniser.temperature == 2.0
    expected = np.exp(logits / 2) / np.exp(logits / 2).sum()
    np.testing.assert_allclose(found.windows[1].probabilities, expected[0], rtol=1e-4)


def test_the_window_is_the_median_training_clip_unless_set(
    recogniser: Recogniser, videos: Path, make: Any, tmp_path: Path
) -> None:
    joints_of = joints_from_file(videos / "joints.parquet", recogniser.spec.data.facts().skeleton)
    found = recognise(recogniser, VideoInput(str(videos / "one.mp4")), joints_of)
    assert {round(w.end_seconds - w.start_seconds, 3) for w in found.windows} == {16 / 20}
    assert found.windows[1].start_seconds == 4 / 20
    unknown = make.model(
        tmp_path / "old", load_spec("demo", ["data.frames=4", "data.size=24"]), clip_frames=None, temperature=None
    )
    [whole] = recognise(unknown.load(), VideoInput(str(videos / "one.mp4")), joints_of).windows
    assert (whole.start_seconds, whole.end_seconds) == (0.0, 2.0)


def test_a_model_without_joints_takes_none(rgb_place: Place, videos: Path) -> None:
    recogniser = rgb_place.load()
    assert len(recognise(recogniser, VideoInput(str(videos / "one.mp4"))).windows) == 7
    with pytest.raises(UserError, match=r"reads no joints .*: leave --joints out"):
        PredictRequest(place=rgb_place, joints=videos / "joints.parquet").joints_of(recogniser)


def test_a_model_that_finds_the_joints_itself_takes_none(learned_place: Place, videos: Path) -> None:
    recogniser = learned_place.load()
    assert not recogniser.needs_joints
    assert recognise(recogniser, VideoInput(str(videos / "one.mp4"))).windows
    with pytest.raises(UserError, match=r"reads no joints \(model.pose is learned\): leave --joints out"):
        PredictRequest(place=learned_place, joints=videos / "joints.parquet").joints_of(recogniser)


def test_joints_that_are_missing_or_do_not_fit_are_said(
    recogniser: Recogniser, videos: Path, make: Any, tmp_path: Path
) -> None:
    video = VideoInput(str(videos / "one.mp4"))
    with pytest.raises(UserError, match=r"reads joints \(model.modality is both\): name a file of them with --joints"):
        recognise(recogniser, video)
    with pytest.raises(UserError, match=r"a pipe or camera has none"):
        recognise(recogniser, VideoInput("-"), lambda *_: make.joints())
    skeleton = recogniser.spec.data.facts().skeleton
    for rows, says in {
        ("other", 40, 13): "has no joints of .*one.mp4: no clip_id is its path, name or stem; it has, for example, other",
        ("one", 39, 13): "has joints of 39 frames of one, but the video has 40 frames",
        ("one", 40, 17): "needs these",  # of another data set
    }.items():
        clip_id, frames, joints = rows
        path = tmp_path / "j.parquet"
        write_joints(path, [(clip_id, make.joints(1, frames, joints))])
        with pytest.raises(UserError, match=says):
            recognise(recogniser, video, joints_from_file(path, skeleton))
    write_joints(tmp_path / "nobody.parquet", [("one", np.zeros((40, 1, 13, 3), np.float32))])
    with pytest.raises(UserError, match=r"nobody is seen in .*one.mp4"):
        recognise(recogniser, video, joints_from_file(tmp_path / "nobody.parquet", skeleton))
    with pytest.raises(UserError, match=r"cannot be read"):
        joints_from_file(tmp_path / "none.parquet", skeleton)


def test_the_annotated_video_has_the_frames_and_times_of_the_original_and_shows_the_timeline(
    recogniser: Recogniser, videos: Path, tmp_path: Path
) -> None:
    joints_of = joints_from_file(videos / "joints.parquet", recogniser.spec.data.facts().skeleton)
    target = tmp_path / "new" / "out.mp4"
    predict_video(recogniser, str(videos / "two.mp4"), joints_of=joints_of, annotated=target)
    frames = list(VideoInput(str(target)).frames())
    assert [frame.seconds for frame in frames] == pytest.approx([number / 20 for number in range(40)], abs=2e-3)
    height, width = frames[0].pixels.shape[:2]
    assert (height, width) == (48 * 8 + 2 * 26, 64 * 8)  # enlarged, with a row of the timeline for each person
    early, late = (frames[number].pixels[48 * 8 :, :, 0].astype(int).mean(axis=0) for number in (4, 30))
    assert int(np.argmax(early - late)) == pytest.approx(4 / 39 * width, abs=4)  # the cursor is red
    assert int(np.argmax(late - early)) == pytest.approx(30 / 39 * width, abs=4)
    assert list(target.parent.iterdir()) == [target]
    with pytest.raises(UserError, match=r"its name must end in .mp4"):
        predict_video(recogniser, str(videos / "one.mp4"), joints_of=joints_of, annotated=tmp_path / "out.gif")
    with av.open(str(target)) as container:
        assert container.streams.video[0].codec_context.name == "h264"


def test_a_model_is_found_by_its_folder_and_a_wrong_name_says_what_there_is(place: Place, tmp_path: Path) -> None:
    assert locate(str(place.model), tmp_path) == place
    with pytest.raises(UserError, match=r"no run or experiment 'nothing'"):
        locate("nothing", tmp_path)
    assert place.model is not None
    damaged = tmp_path / "damaged"
    shutil.copytree(place.model, damaged)
    (damaged / "weights.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match=r"cannot be loaded"):
        locate(str(damaged), tmp_path).load()


@pytest.mark.slow
def test_a_folder_is_recognised_in_parallel_and_a_bad_video_does_not_stop_the_others(
    local_ray: Cluster, place: Place, videos: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"garbage" * 100)
    names = [str(videos / "one.mp4"), str(videos / "more" / "three.mp4"), str(tmp_path / "bad.mp4")]
    request = PredictRequest(place=place, joints=videos / "joints.parquet", sampling=Sampling(window_seconds=1.0))
    found = {result.video: result for result in predict_videos(request, names, [tmp_path / "a.mp4", None, None])}
    assert set(found) == set(names)
    bad = found[names[2]]
    assert isinstance(bad, Failure)
    assert "cannot be read as a video" in bad.problem
    own = found[names[0]]
    assert isinstance(own, VideoPrediction)
    recogniser = place.load()
    alone = predict_video(recogniser, names[0], joints_of=request.joints_of(recogniser), sampling=request.sampling)
    for one, other in zip(own.windows, alone.windows, strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=1e-4)
        assert dataclasses.replace(one, probabilities=other.probabilities) == other
    assert (tmp_path / "a.mp4").is_file()


def test_the_command_prints_json_and_refuses_what_does_not_go_together(place: Place, videos: Path, tmp_path: Path) -> None:
    run, joints = str(place.model), ["--joints", str(videos / "joints.parquet")]
    done = CliRunner().invoke(app, ["predict", run, str(videos / "one.mp4"), *joints, "--json", "--top", "2"])
    assert done.exit_code == 0, done.output
    [found] = json.loads(done.stdout)
    assert len(found["people"][0]["top"]) == 2
    parquet = tmp_path / "w.parquet"
    done = CliRunner().invoke(app, ["predict", run, str(videos / "two.mp4"), *joints, "--parquet", str(parquet)])
    assert "person 2" in done.stdout
    assert f"parquet  {parquet}: 14 windows" in done.stdout
    for arguments, says in {
        (str(videos / "one.mp4"), "--window", "0"): "--window is 0 s; it must be above 0",
        ("-", str(videos / "one.mp4")): "a pipe or camera is recognised alone",
        (str(videos / "one.mp4"), "--video", str(tmp_path)): "it must be a file such as out.mp4",
        (str(videos), "--video", "out.mp4"): "it must be a folder for several videos",
    }.items():
        refused = CliRunner().invoke(app, ["predict", run, *arguments])
        assert isinstance(refused.exception, UserError)
        assert says in str(refused.exception)


def test_a_model_of_pixels_whose_clips_are_cropped_to_people_needs_their_joints(rgb_place: Place, videos: Path) -> None:
    whole = rgb_place.load()
    cropped = dataclasses.replace(
        whole, spec=dataclasses.replace(whole.spec, data=dataclasses.replace(whole.spec.data, person_crop=0.25))
    )
    assert (whole.needs_joints, cropped.needs_joints) == (False, True)
    with pytest.raises(UserError, match=r"model.modality is rgb, data.person_crop 0.25"):
        recognise(cropped, VideoInput(str(videos / "one.mp4")), None)
    joints_of = joints_from_file(videos / "joints.parquet", whole.spec.data.facts().skeleton)
    video = VideoInput(str(videos / "one.mp4"))
    assert not np.array_equal(
        recognise(cropped, video, joints_of).windows[0].probabilities, recognise(whole, video, None).windows[0].probabilities
    )
