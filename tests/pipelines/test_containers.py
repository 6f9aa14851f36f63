"""Intact videos whose headers miscount are read as a player shows them; videos that were cut short are not."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np
import pytest

from starlab.pipelines.containers import check_whole, frames_in_avi_index
from starlab.pipelines.video import CONTAINERS, decode_video

SAMPLES = Path(__file__).parents[3] / "shared" / "samples" / "videos"
FRAMES = 24


def picture(number: int) -> np.ndarray:
    """The number in six fields."""
    frame = np.full((48, 96, 3), 40, np.uint8)
    for bit in range(6):
        frame[:, bit * 16 : bit * 16 + 16] = 220 if number >> bit & 1 else 40
    return frame


def numbers(path: Path, num_frames: int | range) -> list[int]:
    frames = [frame for _, frame in decode_video(path, num_frames, 48)]
    return [sum((frame[:, bit * 16 + 4 : bit * 16 + 12].mean() > 128) << bit for bit in range(6)) for frame in frames]


def write(path: Path, codec: str = "libx264", options: dict[str, str] | None = None, **container: str) -> None:
    with av.open(str(path), "w", container_options={"fflags": "+bitexact", **container}) as file:
        stream = file.add_stream(codec, rate=30, options={"g": "9999", "bf": "2", **(options or {})})
        stream.width, stream.height, stream.pix_fmt = 96, 48, "yuv420p"
        stream.thread_count = 1
        for number in range(FRAMES):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        file.mux(stream.encode())


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_an_avi_with_dropped_slots_gives_the_frames_that_it_has(tmp_path: Path, codec: str, with_empty_slots) -> None:
    path = tmp_path / "clip.avi"
    write(path, codec)
    path.write_bytes(with_empty_slots(path.read_bytes(), {3, 4, 17}))
    with av.open(str(path)) as file:
        assert file.streams.video[0].frames == FRAMES + 3
    assert numbers(path, FRAMES) == list(range(FRAMES))
    assert frames_in_avi_index(path.read_bytes()[-4096:]) == FRAMES


def test_a_fragmented_mp4_gives_all_of_its_frames(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write(path, options={"g": "8"}, movflags="frag_keyframe")
    with av.open(str(path)) as file:
        assert file.streams.video[0].frames < FRAMES
    assert numbers(path, FRAMES) == list(range(FRAMES))


def test_an_edit_list_hides_frames_as_it_does_in_a_player(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 8
    count, duration, start = struct.unpack_from(">IIi", data, at)
    assert count == 1
    with av.open(str(path)) as file:
        ticks = round(float(1 / (30 * file.streams.video[0].time_base)))
    struct.pack_into(">Ii", data, at + 4, duration, start + 5 * ticks)
    path.write_bytes(data)
    with av.open(str(path)) as file:
        assert file.streams.video[0].frames == FRAMES
    assert numbers(path, FRAMES - 5) == list(range(5, FRAMES))


@pytest.mark.parametrize("name", ["clip.avi", "clip.mp4"])
def test_a_video_that_was_cut_short_is_not_read_whatever_length_is_allowed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write(path, **({"movflags": "faststart"} if name.endswith("mp4") else {}))
    whole = path.read_bytes()
    check_whole(whole, CONTAINERS[path.suffix])
    check_whole(whole + bytes(100), CONTAINERS[path.suffix])
    for end in range(len(whole) - 700, len(whole), 9):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"cut short|not a readable"):
            numbers(path, range(1, FRAMES + 3))


def test_a_size_that_a_recorder_never_filled_in_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    write(path)
    data = path.read_bytes()
    for size in (0, 0xFFFFFFFF):
        check_whole(data[:4] + struct.pack("<I", size) + data[8:], "avi")
    assert frames_in_avi_index(data) == FRAMES
    assert frames_in_avi_index(data[:-1]) is None
    assert frames_in_avi_index(b"idx1") is None
    assert frames_in_avi_index(b"") is None


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the sample videos are not here")
@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("ax_sample.avi", 96),
        ("ax_sample_partially_fragmented.mp4", 30),
        ("ax_sample_rotate_and_reflect.mp4", 30),
        ("hf_66x50.mov", 82),
    ],
)
def test_real_videos_whose_headers_miscount_have_the_frames_that_a_player_shows(
    name: str, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONTAINERS, ".mov", "mp4")
    assert len(list(decode_video(SAMPLES / name, frames, 32))) == frames


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the sample videos are not here")
def test_a_real_damaged_video_is_refused_whatever_length_is_allowed() -> None:
    with pytest.raises(ValueError, match="not a readable mp4 video"):
        list(decode_video(SAMPLES / "decord_corrupted.mp4", range(1, 60), 32))
