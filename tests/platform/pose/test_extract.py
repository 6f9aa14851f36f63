"""`starlab data pose` over Ray Data with a small estimator: the same for any number of workers, resumable, extensible."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from starlab.pipelines.clip import DataError
from starlab.pipelines.datasets import DATASETS
from starlab.pipelines.estimated_joints import EstimatedJoints
from starlab.pipelines.skeletons import COCO
from starlab.platform.errors import UserError
from starlab.platform.pose import parts
from starlab.platform.pose.clips import VideoFiles, open_clips
from starlab.platform.pose.estimators import pose_settings
from starlab.platform.pose.extract import Extraction, extract
from starlab.platform.pose.joints_file import read_clips, settings_of
from starlab.platform.pose.pictures import write_pictures
from starlab.platform.pose.progress import PoseProgress

pytestmark = pytest.mark.slow

ESTIMATOR = """
import os, time
import numpy as np

POSE = np.random.default_rng(0).uniform(0, 0.4, (17, 2))

def brightness(frames):
    "One person, whose place is the brightness of the frame."
    time.sleep(float(os.environ.get("SLOW", "0")))
    joints = np.full((len(frames), 2, 17, 3), 0.7, np.float32)
    joints[..., :2] = POSE
    joints[..., 0] += frames.mean(axis=(1, 2, 3))[:, None, None] / 600
    joints[:, 1] = 0
    return joints

def wrong(frames):
    return np.zeros((len(frames), 1, 5, 3))

def failing(frames):
    raise RuntimeError("out of ideas")
"""
NAME = "brightness_estimator:brightness"
WriteVideo = Callable[..., None]


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with an estimator in it."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "brightness_estimator.py").write_text(ESTIMATOR)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    sys.modules.pop("brightness_estimator", None)
    return folder


@pytest.fixture
def videos(tmp_path: Path, write_video: WriteVideo) -> Path:
    for number in range(5):
        write_video(tmp_path / "videos" / f"v{number}.mp4", num_frames=10 + number, shade=20 + 20 * number)
    return tmp_path / "videos"


def joints_of(path: Path) -> dict[str, np.ndarray]:
    return {clip_id: joints for clip_id, joints, _ in read_clips(path)}


def run(
    videos: Path, out: Path, every: int = 1, workers: int | None = None, told: list[PoseProgress] | None = None
) -> Extraction:
    progress = [] if told is None else told
    return extract(open_clips(str(videos)), out, pose_settings(NAME, every=every), workers=workers, on_progress=progress.append)


@pytest.mark.usefixtures("local_ray")
def test_the_file_is_the_same_for_any_number_of_workers_and_says_how_it_was_made(
    code: Path, videos: Path, tmp_path: Path
) -> None:
    told: list[PoseProgress] = []
    first = run(videos, tmp_path / "one.parquet", workers=1, told=told)
    run(videos, tmp_path / "three.parquet", workers=3)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "three.parquet").read_bytes()
    assert (first.videos, first.kept, first.bad) == (5, 0, {})
    assert told[-1].videos_done == 5
    assert told[-1].line().startswith("   5/5 videos  60 frames")
    found = joints_of(tmp_path / "one.parquet")
    assert {name: joints.shape for name, joints in found.items()} == {f"v{n}": (10 + n, 1, 17, 3) for n in range(5)}
    settings = settings_of(tmp_path / "one.parquet")
    assert settings is not None
    assert (settings.estimator, settings.skeleton, settings.every) == (NAME, "coco", 1)
    table = pq.read_table(tmp_path / "one.parquet")
    assert (table["height_px"].to_pylist(), table["width_px"].to_pylist()) == ([48] * 5, [64] * 5)
    assert table["track_ids"].to_pylist()[0] == [0] * 10
    assert [path.name for path in tmp_path.iterdir() if "parts" in path.name] == []


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("header_says", [45, 90])
def test_a_long_video_is_shared_by_the_workers_and_has_the_same_joints(
    code: Path, tmp_path: Path, write_video: WriteVideo, monkeypatch: pytest.MonkeyPatch, header_says: int
) -> None:
    write_video(tmp_path / "long" / "a.mp4", num_frames=45)
    write_video(tmp_path / "long" / "b.mp4", num_frames=5)
    run(tmp_path / "long", tmp_path / "whole.parquet", workers=1)
    monkeypatch.setattr(parts, "LEAST_FRAMES", 16)
    monkeypatch.setattr(VideoFiles, "length", lambda _, number: (header_says, 5)[number])
    told: list[PoseProgress] = []
    assert run(tmp_path / "long", tmp_path / "parts.parquet", workers=2, told=told).bad == {}
    assert (tmp_path / "parts.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert told[-1].videos_done == 2
    assert told[0].seconds_left is None or told[0].seconds_left >= 0


@pytest.mark.usefixtures("local_ray")
def test_a_long_video_that_is_damaged_says_why(
    code: Path, tmp_path: Path, write_video: WriteVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "long" / "a.mp4", num_frames=45)
    write_video(tmp_path / "long" / "b.mp4", num_frames=5)
    whole = (tmp_path / "long" / "a.mp4").read_bytes()
    (tmp_path / "long" / "a.mp4").write_bytes(whole[: len(whole) - 200])
    monkeypatch.setattr(parts, "LEAST_FRAMES", 16)
    monkeypatch.setattr(VideoFiles, "length", lambda _, number: (45, 5)[number])
    bad = run(tmp_path / "long", tmp_path / "joints.parquet", workers=2).bad
    assert list(bad) == ["a"]
    assert "cut short" in bad["a"]


@pytest.mark.usefixtures("local_ray")
def test_a_second_call_estimates_only_what_is_new_or_has_changed(
    code: Path, videos: Path, tmp_path: Path, write_video: WriteVideo
) -> None:
    out = tmp_path / "joints.parquet"
    run(videos, out)
    before = joints_of(out)
    told: list[PoseProgress] = []
    assert run(videos, out, told=told).kept == 5
    assert told == []
    write_video(videos / "v1.mp4", num_frames=7, shade=100)
    write_video(videos / "extra.mp4", num_frames=3)
    (videos / "v4.mp4").unlink()
    assert run(videos, out, told=told).kept == 3
    assert told[-1].frames_done == 10
    after = joints_of(out)
    assert list(after) == ["extra", "v0", "v1", "v2", "v3"]
    assert len(after["v1"]) == 7
    for name in ("v0", "v2", "v3"):
        np.testing.assert_array_equal(after[name], before[name])


def test_two_calls_at_once_do_not_write_one_file(code: Path, videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "joints.parquet"
    with (tmp_path / ".joints.parquet.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"another process estimates joints into .*joints\.parquet: wait for it, or name"):
            run(videos, out)


@pytest.mark.usefixtures("local_ray")
def test_joints_by_other_settings_are_not_mixed_in(code: Path, videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "joints.parquet"
    run(videos, out)
    with pytest.raises(DataError, match=r"has joints by other settings: every 1 \(now 3\)\. Name another file, or .* --fresh"):
        run(videos, out, every=3)
    (tmp_path / "other.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="was not made by `starlab data pose`"):
        run(videos, tmp_path / "other.parquet")
    settings = pose_settings(NAME, every=3)
    assert extract(open_clips(str(videos)), out, settings, fresh=True).kept == 0
    assert settings_of(out) == settings


@pytest.mark.usefixtures("local_ray")
def test_videos_that_cannot_be_read_are_listed_and_the_others_estimated(code: Path, videos: Path, tmp_path: Path) -> None:
    (videos / "v2.mp4").write_bytes((videos / "v2.mp4").read_bytes()[:-300])
    found = run(videos, tmp_path / "joints.parquet")
    assert (found.videos, list(found.bad)) == (4, ["v2"])
    assert "v2.mp4" in found.bad["v2"]
    for path in videos.iterdir():
        path.write_text("no video")
    with pytest.raises(DataError, match="none of the 5 videos can be read; the first, v0: "):
        run(videos, tmp_path / "none.parquet")
    assert not (tmp_path / "none.parquet").exists()


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("wrong", r"shape \(8, 1, 5, 3\) for 8 frames"),
        ("failing", r"^the estimator failed on v\d: RuntimeError: out of ideas$"),
    ],
)
def test_an_estimator_that_fails_ends_the_call_with_one_line(
    code: Path, videos: Path, tmp_path: Path, name: str, says: str
) -> None:
    settings = pose_settings(f"brightness_estimator:{name}")
    with pytest.raises(UserError, match=says):
        extract(open_clips(str(videos)), tmp_path / "joints.parquet", settings)


@pytest.mark.usefixtures("local_ray")
def test_a_data_set_trains_on_the_file_as_it_is(code: Path, small_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "joints.parquet"
    run(small_folder, out)
    frames = DATASETS["synthetic_penn_action"].open(small_folder, None)
    source = EstimatedJoints(frames, out, COCO)
    assert len(source.clips) == len(frames.clips)
    row = source.clips[7]
    np.testing.assert_array_equal(source.read(row, [0, 3], 48).joints, joints_of(out)[row.clip_id][[0, 3]])


@pytest.mark.usefixtures("local_ray")
def test_pictures_show_each_video_with_its_joints(code: Path, videos: Path, tmp_path: Path) -> None:
    run(videos, tmp_path / "joints.parquet")
    assert write_pictures(open_clips(str(videos)), tmp_path / "joints.parquet", tmp_path / "pictures") == 5
    assert all(path.stat().st_size > 500 for path in (tmp_path / "pictures").iterdir())


def test_an_estimator_that_cannot_be_imported_and_settings_out_of_range_are_refused(code: Path) -> None:
    with pytest.raises(
        UserError, match="unknown estimator 'openpose': name movenet, or a function of yours as module:function"
    ):
        pose_settings("openpose")
    with pytest.raises(UserError, match=r"brightness_estimator:darkness cannot be imported from .*darkness"):
        pose_settings("brightness_estimator:darkness")
    with pytest.raises(UserError, match="every 0 frames cannot be estimated"):
        pose_settings(NAME, every=0)
    with pytest.raises(UserError, match="unknown skeleton 'body25'; there are: coco"):
        pose_settings(NAME, skeleton="body25")
    with pytest.raises(UserError, match="a long side of 10 px"):
        pose_settings(long_side_px=10)


def test_a_killed_extraction_keeps_the_videos_that_were_finished(code: Path, videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "joints.parquet"
    command = [sys.executable, "-m", "starlab.platform.cli", "data", "pose", str(videos), str(out), "--estimator", NAME]
    command += ["--workers", "1"]
    environment = {**os.environ, "RAY_TMPDIR": str(tmp_path)} | ({"RAY_ADDRESS": "local"})
    slow = subprocess.Popen(command, env={**environment, "SLOW": "1.5"}, stdout=subprocess.PIPE, start_new_session=True)
    parts = tmp_path / "joints.parquet.parts"
    deadline = time.monotonic() + 200
    while len(list(parts.glob("*.parquet"))) < 2:
        assert time.monotonic() < deadline
        assert slow.poll() is None
        time.sleep(0.1)
    os.killpg(slow.pid, signal.SIGKILL)
    slow.communicate()
    finished = len(list(parts.glob("*.parquet")))
    assert not out.exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"5 videos, {finished} of them estimated earlier, 0 bad" in done.stdout
    assert not parts.exists()
    assert list(joints_of(out)) == [f"v{number}" for number in range(5)]
