"""Reads the frames of a video file, a pipe or a camera one after the other, as a player would show them.

Only the frames that are in use are in memory, so a video may be of any length and a pipe may never end.
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
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from starlab.pipelines.video import shrunk_size
from starlab.platform.errors import UserError

VIDEO_ENDINGS = (".3gp", ".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv")
"""Names of the files of a folder that are taken as videos."""
FORMATS = "mov,matroska,avi,mpegts,mpeg,gif,asf,h264,hevc"
"""Formats that are read. FFmpeg's others include lists that make it open further files and addresses."""
MAX_PIXELS = 8192 * 4320
"""Pixels of the largest frame that is decoded: a small file may ask for any amount of memory."""
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
        try:
            with self._open() as container:
                yield from self._decode(container, short_side_px)
        except av.error.FFmpegError as error:
            raise VideoError(f"{self.name} cannot be read as a video: {error.strerror or error}{self._hint()}") from error
        except (OSError, ValueError) as error:
            raise VideoError(f"{self.name} cannot be read as a video: {error}") from error

    def frame_rate(self) -> float | None:
        """Return the average frames per second that the file states; None for a live source or where it states none."""
        if self.is_live:
            return None
        try:
            with self._open() as container:
                rate = _picture_stream(container, self.name).average_rate
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"{self.name} cannot be read as a video: {error}") from error
        return float(rate) if rate else None

    def _open(self) -> Any:
        options = {"format_whitelist": FORMATS}
        if self.source == PIPE:
            return av.open(_Pipe(), options=options)
        if self.source.startswith(CAMERA):
            return av.open(self.source, format="v4l2")
        path = Path(self.source)
        if not path.is_file():
            raise VideoError(f"there is no video at {path}")
        if path.stat().st_size == 0:
            raise VideoError(f"{path} is empty")
        # A local file only: otherwise a name such as "concat:a|b" would be read as a protocol.
        return av.open(f"file:{path.resolve()}", options=options)

    def _decode(self, container: Any, short_side_px: int | None) -> Iterator[TimedFrame]:
        stream = _picture_stream(container, self.name)
        if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
            raise VideoError(
                f"{self.name} has frames of {stream.codec_context.width} × {stream.codec_context.height}, above 8K"
            )
        stream.thread_type = "AUTO"
        rate, shrink, first, last, count = float(stream.average_rate or 25), VideoReformatter(), None, 0.0, 0
        for frame in container.decode(stream):
            seconds = frame.time if frame.time is not None else (first or 0.0) + last + (1 / rate if count else 0)
            first = seconds if first is None else first
            last = max(last, seconds - first)  # time stamps of damaged files may go back
            if self.max_seconds is not None and last > self.max_seconds:
                raise VideoTooLongError(f"{self.name} is longer than {self.max_seconds:g} s, the longest video that is taken")
            height, width = frame.height, frame.width
            if short_side_px is not None:
                height, width = shrunk_size(height, width, short_side_px)
            small = shrink.reformat(frame, width=width, height=height, format="rgb24", interpolation="AREA")
            yield TimedFrame(last, _upright(np.asarray(small.to_ndarray(), np.uint8), frame.rotation))
            count += 1
        if not count:
            raise VideoError(f"{self.name} has no frame that can be decoded")

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


def _picture_stream(container: Any, name: str) -> Any:
    """Return the first stream of moving pictures; a cover picture is not one."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic and stream.codec_context is not None:
            return stream
    raise VideoError(f"{name} has no video stream that can be decoded, only {_what_it_has(container)}")


def _what_it_has(container: Any) -> str:
    return ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"


def _upright(pixels: NDArray[np.uint8], degrees: int) -> NDArray[np.uint8]:
    """Turn a frame by the angle (counterclockwise, a multiple of 90) that its file asks a player to apply."""
    turns = round(degrees / 90) % 4
    turned: NDArray[np.uint8] = np.ascontiguousarray(np.rot90(pixels, turns))
    return turned
