"""Files, pipes and folders as sources of frames: each right, or one clear line."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from starlab.pipelines.recording import read_recording
from starlab.platform.serving.video_input import VideoError, VideoInput, VideoTooLongError, find_videos


def test_frames_come_in_order_with_their_times(videos: Path, make: Any) -> None:
    frames = list(VideoInput(str(videos / "one.mp4")).frames())
    assert [frame.seconds for frame in frames] == pytest.approx([number / 20 for number in range(40)])
    for frame, made in zip(frames, make.frames(), strict=True):
        assert np.abs(frame.pixels.astype(int) - made).mean() < 4
    assert VideoInput(str(videos / "one.mp4")).frame_rate() == 20
    assert next(VideoInput(str(videos / "one.mp4")).frames(24)).pixels.shape == (24, 32, 3)


def test_a_video_with_gaps_keeps_its_times(tmp_path: Path, make: Any) -> None:
    path, times = tmp_path / "gaps.mkv", [0, 40, 500, 1500]
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt, stream.time_base = 48, 64, "yuv420p", Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        for pixels, milliseconds in zip(make.frames(4), times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = milliseconds, Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    assert [frame.seconds for frame in VideoInput(str(path)).frames()] == pytest.approx([at / 1000 for at in times])


@pytest.mark.parametrize("matrix", [(-1, 0, 0, 1), (0, 1, 1, 0)])
def test_a_mirrored_video_is_shown_as_training_sees_it(tmp_path: Path, make: Any, matrix: tuple[int, ...]) -> None:
    path, (a, b, c, d) = tmp_path / "mirrored.mp4", (number * 2**16 for number in matrix)
    data = make.video(tmp_path / "a.mp4", make.frames()).read_bytes()
    upright = struct.pack(">9i", 2**16, 0, 0, 0, 2**16, 0, 0, 0, 2**30)
    assert data.count(upright) == 2, "of the movie and of its track"
    whole, _, rest = data.partition(upright)
    path.write_bytes(whole + upright + rest.replace(upright, struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 2**30)))
    first = next(VideoInput(str(path)).frames()).pixels
    expected = make.frames()[0][:, ::-1] if matrix[0] else make.frames()[0].transpose(1, 0, 2)
    assert first.shape == expected.shape
    assert np.abs(first.astype(int) - expected).mean() < 4
    [(_, trained)] = read_recording(path, None, 9999, only={0})
    assert np.array_equal(first, trained)


def test_a_damaged_video_is_refused_and_not_silently_short(videos: Path, tmp_path: Path) -> None:
    whole = (videos / "one.mp4").read_bytes()
    (tmp_path / "short.mp4").write_bytes(whole[: len(whole) - 20])
    with pytest.raises(VideoError, match=r"short.mp4 cannot be read as a video: it is cut short"):
        list(VideoInput(str(tmp_path / "short.mp4")).frames())


def test_a_live_stream_is_read_from_a_pipe(tmp_path: Path, make: Any) -> None:
    path = make.video(tmp_path / "stream.ts", make.frames(), container="mpegts")
    code = "from starlab.platform.serving.video_input import VideoInput\nprint(sum(1 for _ in VideoInput('-').frames(24)))"
    with path.open("rb") as stream:
        found = subprocess.run(
            [sys.executable, "-c", code], stdin=stream, capture_output=True, text=True, timeout=120, check=True
        )
    assert found.stdout.strip() == "40"


def test_garbage_in_a_pipe_is_one_clear_line() -> None:
    code = (
        "from starlab.platform.serving.video_input import VideoInput, VideoError\n"
        "try:\n    list(VideoInput('-').frames())\nexcept VideoError as error:\n    print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], input=b"garbage" * 99, capture_output=True, timeout=120, check=True)
    assert found.stdout.startswith(b"stdin cannot be read as a video: ")
    assert b"pipe mkv, webm or ts" in found.stdout


def test_bad_files_are_one_clear_line(tmp_path: Path, videos: Path) -> None:
    (tmp_path / "garbage.mp4").write_bytes(os.urandom(5000))
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "cut.mp4").write_bytes((videos / "one.mp4").read_bytes()[:900])
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")
    with wave.open(str(tmp_path / "sound.avi"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(8000))
    for name, says in {
        "garbage.mp4": "garbage.mp4 cannot be read as a video: ",
        "empty.mp4": "empty.mp4 is empty",
        "cut.mp4": "cut.mp4 cannot be read as a video: ",
        "list.mp4": "list.mp4 cannot be read as a video: ",
        "sound.avi": "sound.avi cannot be read as a video: ",
        "missing.mp4": "there is no video at ",
    }.items():
        with pytest.raises(VideoError, match=says):
            list(VideoInput(str(tmp_path / name)).frames())


def test_a_longer_video_than_allowed_is_refused_on_the_way(videos: Path) -> None:
    with pytest.raises(VideoTooLongError, match=r"one.mp4 is longer than 0.5 s, the longest video that is taken"):
        list(VideoInput(str(videos / "one.mp4"), max_seconds=0.5).frames())


def test_folders_are_searched_for_videos(videos: Path, tmp_path: Path) -> None:
    found = find_videos([str(videos), "-", "/dev/video0"])
    assert [Path(path).name for path in found[:3]] == ["three.mp4", "one.mp4", "two.mp4"]
    assert found[3:] == ["-", "/dev/video0"]
    with pytest.raises(VideoError, match=r"holds no video"):
        find_videos([str(tmp_path)])
    with pytest.raises(VideoError, match=r"there is no video at"):
        find_videos([str(tmp_path / "no.mp4")])


@pytest.mark.skipif(Path("/dev/video7").exists(), reason="this machine has such a camera")
def test_a_camera_that_is_not_there_is_one_clear_line() -> None:
    with pytest.raises(VideoError, match=r"/dev/video7 cannot be read as a video: No such file"):
        next(VideoInput("/dev/video7").frames())


def test_a_name_is_never_taken_for_a_protocol(videos: Path, tmp_path: Path) -> None:
    odd = tmp_path / "concat:a|b.mp4"
    shutil.copy(videos / "one.mp4", odd)
    assert sum(1 for _ in VideoInput(str(odd)).frames(16)) == 40
