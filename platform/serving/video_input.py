"""Reads the frames of a video file, a pipe or a camera one after the other, as a player would show them.

A file is read by the reader that training uses (`pipelines/recording.py`), so a model sees the frames that it would be trained
on. Only the frames that are in use are in memory, so a video may be of any length and a pipe may never end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

from starlab.pipelines.decode import NO_SHRINK
from starlab.pipelines.picture import Developer
from starlab.pipelines.recording import MAX_PIXELS, VIDEO_ENDINGS, stated, timed_frames
from starlab.platform.errors import UserError

PIPE_FORMATS = "mov,matroska,avi,mpegts,mpeg,gif,asf,flv,ogg,h264,hevc"
"""Formats that are read from a pipe. FFmpeg's others include lists that make it open further files and addresses."""
PIPE, CAMERA = "-", "/dev/video"


class VideoError(UserError):
    """A video cannot be read. The message names it and says why."""


class VideoTooLongError(VideoError):
    """A video is longer than the limit."""


@dataclass(frozen=True, slots=True)
class TimedFrame:
    """One frame of a video."""

    seconds: float
    """Time since the first frame."""
    pixels: NDArray[np.uint8]
    """(H, W, 3), RGB, upright."""


@dataclass(frozen=True, slots=True)
class VideoInput:
    """A source of frames: the path of a file, "-" for standard input, or a camera such as /dev/video0."""

    source: str
    max_seconds: float | None = None
    """Longest video that is read; None is no limit."""

    @property
    def is_live(self) -> bool:
        """Whether the source can be read once only."""
        return self.source == PIPE or self.source.startswith(CAMERA)

    @property
    def name(self) -> str:
        """Name of the video in results."""
        return {PIPE: "stdin"}.get(self.source, self.source)

    def frames(self, short_side_px: int | None = None) -> Iterator[TimedFrame]:
        """Yield the frames in the order in which they are shown.

        Args:
            short_side_px: Frames are shrunk to this short side by averaging over areas, never enlarged; None keeps the size.

        Raises:
            VideoError: It is missing, empty, or not a video, has no frame, or is damaged. Frames before the damage were
                yielded by then.
            VideoTooLongError: It is longer than `max_seconds`.
        """
        count, last = 0, 0.0
        try:
            for seconds, pixels in self._pictures(NO_SHRINK if short_side_px is None else short_side_px):
                last = max(last, seconds)  # time stamps of damaged files may go back
                if self.max_seconds is not None and last > self.max_seconds:
                    raise VideoTooLongError(
                        f"{self.name} is longer than {self.max_seconds:g} s, the longest video that is taken"
                    )
                yield TimedFrame(last, pixels)
                count += 1
        except av.error.FFmpegError as error:
            raise VideoError(f"{self.name} cannot be read as a video: {error.strerror or error}{self._hint()}") from error
        except (OSError, ValueError) as error:
            raise VideoError(f"{self.name} cannot be read as a video: {error}") from error
        if not count:
            raise VideoError(f"{self.name} has no frame that can be decoded")

    def frame_rate(self) -> float | None:
        """Return the average frames per second that the file states; None for a live source or where it states none."""
        if self.is_live:
            return None
        try:
            return stated(self._file())[0]
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"{self.name} cannot be read as a video: {error}") from error

    def _pictures(self, short_side_px: int) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """The time since the first frame and the picture of each frame."""
        if self.is_live:
            with self._open() as container:
                yield from _as_they_come(container, self.name, short_side_px)
            return
        first: float | None = None
        for seconds, pixels in timed_frames(self._file(), short_side_px):
            first = seconds if first is None else first
            yield seconds - first, pixels

    def _file(self) -> Path:
        path = Path(self.source)
        if not path.is_file():
            raise VideoError(f"there is no video at {path}")
        if path.stat().st_size == 0:
            raise VideoError(f"{path} is empty")
        return path

    def _open(self) -> Any:
        if self.source == PIPE:
            return av.open(_Pipe(), options={"format_whitelist": PIPE_FORMATS})
        return av.open(self.source, format="v4l2")

    def _hint(self) -> str:
        if self.source != PIPE:
            return ""
        return "; an mp4 file whose index is at its end cannot be read from a pipe: name the file, or pipe mkv, webm or ts"


def find_videos(sources: list[str]) -> list[str]:
    """Replace each folder by the videos in it and below it, in order of their names. Other sources stay as they are.

    Raises:
        VideoError: A folder holds no video, or a file is missing.
    """
    found: list[str] = []
    for source in sources:
        path = Path(source)
        if source == PIPE or source.startswith(CAMERA):
            found.append(source)
        elif path.is_dir():
            inside = sorted(str(file) for file in path.rglob("*") if file.suffix.lower() in VIDEO_ENDINGS and file.is_file())
            if not inside:
                raise VideoError(f"the folder {path} holds no video; names must end in {', '.join(VIDEO_ENDINGS)}")
            found += inside
        elif path.is_file():
            found.append(source)
        else:
            raise VideoError(f"there is no video at {path}")
    return found


class _Pipe:
    """Standard input without the ability to seek, so that FFmpeg reads it from front to end."""

    def read(self, size: int) -> bytes:
        return os.read(sys.stdin.fileno(), size)  # returns what is there, so a live stream is read as it comes


def _as_they_come(container: Any, name: str, short_side_px: int) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """The time since the first frame and the picture of each frame of a live source."""
    stream = _picture_stream(container, name)
    if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
        raise VideoError(f"{name} has frames of {stream.codec_context.width} × {stream.codec_context.height}, above 8K")
    stream.thread_type = "AUTO"
    developer, aspect = Developer(short_side_px), float(stream.sample_aspect_ratio or 1)
    step, first, last = 1 / float(stream.average_rate or 25), None, 0.0
    for frame in container.decode(stream):
        seconds = frame.time if frame.time is not None else 0.0 if first is None else first + last + step
        first = seconds if first is None else first
        last = seconds - first
        yield last, developer.develop(frame, aspect)


def _picture_stream(container: Any, name: str) -> Any:
    """Return the first stream of moving pictures; a cover picture is not one."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic and stream.codec_context is not None:
            return stream
    raise VideoError(f"{name} has no video stream that can be decoded, only {_what_it_has(container)}")


def _what_it_has(container: Any) -> str:
    return ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
