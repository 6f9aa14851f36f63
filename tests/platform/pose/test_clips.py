"""Which videos there are at a place, under which names, and how their frames come."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from starlab.pipelines.clip import DataError, UnreadableClipError
from starlab.pipelines.datasets import DATASETS
from starlab.pipelines.penn_action import PennActionSource
from starlab.platform.pose.clips import open_clips

WriteVideo = Callable[..., None]


def shades(place: Path, clip_id: str) -> list[int]:
    clips = open_clips(str(place))
    return [int(frame.mean()) for frame in clips.frames(clips.clip_ids.index(clip_id))]


def test_a_file_and_a_folder_have_the_names_of_their_files(tmp_path: Path, write_video: WriteVideo) -> None:
    write_video(tmp_path / "one.mp4")
    write_video(tmp_path / "deep" / "two.mov")
    assert open_clips(str(tmp_path / "one.mp4")).clip_ids == ["one"]
    clips = open_clips(str(tmp_path))
    assert clips.clip_ids == ["one", "two"]
    assert len(list(pickle.loads(pickle.dumps(clips)).frames(1))) == 6
    write_video(tmp_path / "deep" / "one.mp4")
    assert open_clips(str(tmp_path)).clip_ids == ["deep__one", "deep__two", "one"]
    write_video(tmp_path / "one.avi")
    with pytest.raises(DataError, match="would both be clip one: rename one of the two"):
        open_clips(str(tmp_path))


def test_a_folder_of_pictures_is_a_video(tmp_path: Path) -> None:
    (tmp_path / "wave").mkdir()
    for number in (2, 10, 1):
        cv2.imwrite(str(tmp_path / "wave" / f"frame_{number}.png"), np.full((48, 64, 3), 10 * number, np.uint8))
    assert shades(tmp_path, "wave") == [10, 20, 100]
    cv2.imwrite(str(tmp_path / "wave" / "frame_11.png"), np.full((50, 64, 3), 0, np.uint8))
    with pytest.raises(UnreadableClipError, match="frames of different sizes: 64×48 and 64×50"):
        shades(tmp_path, "wave")


def test_a_list_names_clips_and_cuts_them_out_of_their_videos(tmp_path: Path, write_video: WriteVideo) -> None:
    write_video(tmp_path / "long.mp4", num_frames=8)
    (tmp_path / "clips.csv").write_text("path,label,start,end,clip_id\nlong.mp4,a,0,0.3,first\nlong.mp4,b,0.5,,rest\n")
    assert open_clips(str(tmp_path)).clip_ids == ["first", "rest"]
    assert len(shades(tmp_path, "first")) == 3
    assert len(shades(tmp_path, "rest")) == 3


def test_a_data_sets_clips_have_its_names_and_its_number_of_frames(
    small_folder: Path, small_source: PennActionSource, ntu_folder: Path
) -> None:
    penn = open_clips(str(small_folder))
    assert list(penn.clip_ids) == [row.clip_id for row in small_source.clips]
    assert len(list(penn.frames(3))) == small_source.clips[3].num_frames
    ntu = open_clips(str(ntu_folder))
    row = DATASETS["synthetic_ntu"].open(ntu_folder, "xsub").clips[0]
    assert len(list(ntu.frames(ntu.clip_ids.index(row.clip_id)))) == row.num_frames


def test_a_video_that_changes_has_another_digest(tmp_path: Path, write_video: WriteVideo) -> None:
    write_video(tmp_path / "a.mp4")
    before = open_clips(str(tmp_path)).digest(0)
    assert open_clips(str(tmp_path)).digest(0) == before
    write_video(tmp_path / "a.mp4", shade=60)
    assert open_clips(str(tmp_path)).digest(0) != before


@pytest.mark.parametrize(
    ("name", "says"), [("x.txt", "is not a video that is read here"), ("none", "neither a video nor a folder at")]
)
def test_what_is_no_video_is_refused(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(DataError, match=says):
        open_clips(str(tmp_path / name))
    with pytest.raises(DataError, match=r"no video .* and no folder of pictures below"):
        open_clips(str(tmp_path))


def test_a_damaged_video_is_unreadable_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"not a video at all")
    with pytest.raises(UnreadableClipError, match=r"bad\.mp4: "):
        shades(tmp_path, "bad")
