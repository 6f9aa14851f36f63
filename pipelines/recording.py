"""Any video that a person has, frame by frame, as a player shows it.

`video.py` reads the files of NTU RGB+D. This module reads what cameras, phones, screens and editors write: more containers,
turned and mirrored pictures, non-square pixels, more than 8 bits, HDR, interlacing, alpha, a cover picture beside the video,
and clips that are cut by time out of files of any length. docs/data.md has the table.

Frames are counted in the order of the decoder's output, never by the header. Every frame counts once, however long it is shown.
"""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

from starlab.pipelines.containers import check_whole, format_of
from starlab.pipelines.hdr import HLG, PQ
from starlab.pipelines.picture import UPRIGHT, Developer, display_matrix, shown_size
from starlab.pipelines.retry import PatientFile, read_file
from starlab.pipelines.video import checked_packets

VIDEO_ENDINGS = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".gif"),
    *(".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".wmv", ".asf", ".flv", ".ogv"),
)
"""The format itself is what the first bytes of a file show. The library does not guess it, because some formats that a text
file can claim to have make it open other files."""
HELD_BYTES = 128 * 2**20
"""A file up to this size is read at once; of a larger one, the parts that are needed."""
MAX_PIXELS = 8192 * 4320
"""Of one frame; a small file may ask for any amount of memory."""
MAX_FRAMES = 20_000
"""Of one clip: eleven minutes at 30 a second. A clip is stored and read as one piece, and an action is shorter."""
SEEK_BACK_SECONDS = (0.5, 5.0, 60.0)
"""How far before a clip's start decoding begins at first, and where that was too late."""
SLACK_SECONDS = 0.5
"""How far a clip's end may be behind the end of its video."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A part of a video, by the time at which a player shows its frames."""

    start_seconds: float = 0.0
    """The first frame is the first that is shown at this time or later."""
    end_seconds: float = math.inf
    """The first frame that is not part of it is the first shown at this time or later."""

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole video."""
        return self.start_seconds <= 0 and self.end_seconds == math.inf


WHOLE = Cut()


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """What there is to know of a video, after all of it was decoded."""

    num_frames: int
    height: int
    width: int
    """Size in pixels as shown: upright and with square pixels."""
    seconds: float
    """Length; 0 where the file does not say."""
    codec: str
    marks: tuple[str, ...]
    """What is done to its frames: "turned", "HDR", "interlaced", "alpha", "non-square pixels"; and "no sound"."""


def read_recording(
    path: Path, num_frames: int | None, short_side_px: int, only: Collection[int] | None = None, cut: Cut = WHOLE
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Decode a video, or a part of it, on one thread and yield (frame number, frame), ascending.

    Args:
        path: The file, with one of `VIDEO_ENDINGS`.
        num_frames: How many frames the part must have, as `count_frames` counts them; None takes any number.
        short_side_px: Frames are shrunk to this short side by averaging over areas; never enlarged.
        only: Frame numbers (0-based, within the part) to yield instead of all; the others are decoded and checked as well.
        cut: The part.

    Yields:
        The number and the frame, uint8 (H, W, 3), RGB. Damage is raised where the decoder finds it, after earlier frames
        were yielded, so exhaust the iterator before using any frame.

    Raises:
        ValueError: the file is not such a video, is damaged or cut short, or does not have that number of frames.
        FileNotFoundError: it is missing.
        StorageError: the storage failed; nothing is known about the file.
    """
    developer, count = Developer(short_side_px), 0
    with _opened(path) as video:
        for count, frame in enumerate(video.frames(cut), start=1):
            if only is None or count - 1 in only:
                yield count - 1, developer.develop(frame, video.pixel_aspect)
    if num_frames is not None and count != num_frames:
        raise ValueError(f"it has {count} frames, {num_frames} expected: was the file changed?")


def timed_frames(path: Path, short_side_px: int) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Decode a whole video as `read_recording` does and yield (seconds since its beginning, frame).

    The name of the file may have any ending.
    """
    developer = Developer(short_side_px)
    with _opened(path, any_ending=True) as video:
        for seconds, frame in video.timed():
            yield seconds, developer.develop(frame, video.pixel_aspect)


def stated(path: Path) -> tuple[float | None, float]:
    """Frames per second (None if not known) and seconds (0 if not known) of a video by its header; raises as `timed_frames`."""
    with _opened(path, any_ending=True, whole=False) as video:
        return video.rate, video.seconds


def count_frames(path: Path, cut: Cut = WHOLE) -> int:
    """The number of frames of a video, or of a part of it, by decoding it; raises as `read_recording`."""
    count = 0
    with _opened(path) as video:
        for count, _ in enumerate(video.frames(cut), start=1):
            check_length(count)
    if not count:
        raise ValueError("it has no frame")
    return count


def check_length(num_frames: int) -> None:
    """Check that a clip is not longer than `MAX_FRAMES`.

    Raises:
        ValueError: it is; says what to do.
    """
    if num_frames > MAX_FRAMES:
        raise ValueError(
            f"it has more than {MAX_FRAMES:,} frames, the most of one clip: list its actions as clips of their own, with start "
            "and end in clips.csv"
        )


def look_at(path: Path) -> About:
    """Decode a whole video and say what it is; raises as `read_recording`."""
    count, marks = 0, dict[str, None]()
    with _opened(path) as video:
        height, width = shown_size(*video.size, video.pixel_aspect)
        if (height, width) != video.size:
            marks["non-square pixels"] = None
        for count, frame in enumerate(video.frames(WHOLE), start=1):
            check_length(count)
            matrix = display_matrix(frame)
            if matrix != UPRIGHT:
                marks["turned"] = None
                if count == 1 and matrix[0] == 0:
                    height, width = width, height
            if frame.color_trc in (PQ, HLG):
                marks["HDR"] = None
            elif frame.interlaced_frame:
                marks["interlaced"] = None
            if any(component.is_alpha for component in frame.format.components):
                marks["alpha"] = None
        if not video.has_sound:
            marks["no sound"] = None
        seconds, codec = video.seconds, video.codec
    if not count:
        raise ValueError("it has no frame")
    return About(num_frames=count, height=height, width=width, seconds=seconds, codec=codec, marks=tuple(marks))


class _Video:
    """One open video stream."""

    def __init__(self, container: av.container.InputContainer, container_format: str) -> None:
        self._container, self._format = container, container_format
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            pictures = " (only a cover picture)" if container.streams.video else ""
            raise ValueError(f"it has no video stream{pictures}")
        best = container.streams.best("video")
        self._stream = best if best in streams else streams[0]
        context = self._stream.codec_context
        if context is None:
            raise ValueError("its codec is not known")
        context.thread_count = 1  # the pipeline runs a task per core already
        context.options = {"max_pixels": str(MAX_PIXELS)} | ({"err_detect": "explode"} if context.name == "hevc" else {})
        self.codec, self.size = str(context.name), (int(context.height), int(context.width))
        if not all(self.size):
            raise ValueError("it does not say the size of its frames")
        if self.size[0] * self.size[1] > MAX_PIXELS:
            raise ValueError(f"its frames have {self.size[1]}×{self.size[0]} pixels, more than 8K")
        aspect = self._stream.sample_aspect_ratio
        self.pixel_aspect = float(aspect) if aspect else 1.0
        self.rate = float(self._stream.average_rate) if self._stream.average_rate else None
        self.has_sound = bool(container.streams.audio)
        duration, base = self._stream.duration, self._stream.time_base
        known = float(duration * base) if duration and base else (container.duration or 0) / 1e6
        self.seconds = max(0.0, known)

    def timed(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """All frames with their times in seconds, each checked; raises as `frames`."""
        return self._decode(-math.inf)

    def frames(self, cut: Cut) -> Iterator[av.VideoFrame]:
        """The frames of a part, each checked.

        Raises:
            ValueError: a frame is corrupt or of another size, or the part is not inside the video.
        """
        if cut.is_whole:
            yield from (frame for _, frame in self.timed())
            return
        last = None
        for seconds, frame in self._from(cut.start_seconds):
            if seconds >= cut.end_seconds - 1e-6:
                return
            last = seconds
            if seconds >= cut.start_seconds - 1e-6:
                yield frame
        if last is None or last < cut.start_seconds - 1e-6:
            raise ValueError(f"it ends at {last or 0:.2f} s, before the clip begins at {cut.start_seconds:g} s")
        if cut.end_seconds < math.inf and last + SLACK_SECONDS < cut.end_seconds:
            raise ValueError(f"it ends at {last:.2f} s, before the clip ends at {cut.end_seconds:g} s")

    def _from(self, start_seconds: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """Frames with their times, from the last key frame before a time at the latest."""
        base = self._stream.time_base
        if self._format in ("mp4", "matroska") and base:  # the only ones whose seeking was found to be exact
            for back in SEEK_BACK_SECONDS:
                if start_seconds - back <= 0:
                    break
                target = int((start_seconds - back) / base) + (self._stream.start_time or 0)
                self._container.seek(target, stream=self._stream, backward=True)
                found = self._decode(start_seconds)
                first = next(found, None)
                if first is not None and first[0] <= start_seconds:
                    yield first
                    yield from found
                    return
            self._container.seek(self._stream.start_time or 0, stream=self._stream, backward=True)
        yield from self._decode(start_seconds)

    def _decode(self, checked_from: float) -> Iterator[tuple[float, av.VideoFrame]]:
        base = self._stream.time_base
        packets = self._container.demux(self._stream)
        if self._format not in ("mpegts", "mpeg"):  # these may pad their packets with zeros
            packets = checked_packets(packets, self.codec)
        for number, frame in enumerate(frame for packet in packets for frame in packet.decode()):
            if self._format == "avi" or frame.pts is None or not base:
                seconds = number / (self.rate or 25.0)  # an AVI has no times of its own
            else:
                seconds = float((frame.pts - (self._stream.start_time or 0)) * base)
            if number == 0:
                display_matrix(frame)  # one that cannot be followed is found before the frames are counted
            if seconds >= checked_from and frame.is_corrupt:
                raise ValueError(f"the frame at {max(0.0, seconds):.2f} s is corrupt")
            if (frame.height, frame.width) != self.size:
                raise ValueError(
                    f"the frame at {max(0.0, seconds):.2f} s is {frame.height}×{frame.width}, the first ones are "
                    f"{self.size[0]}×{self.size[1]}"
                )
            yield seconds, frame


@contextmanager
def _opened(path: Path, *, any_ending: bool = False, whole: bool = True) -> Iterator[_Video]:
    if not any_ending and path.suffix.lower() not in VIDEO_ENDINGS:
        raise ValueError(f"not a video file that is read here: its name must end in {', '.join(VIDEO_ENDINGS)}; convert it")
    file = PatientFile(path)
    try:
        found = format_of(file.head)
        if not len(file):
            raise ValueError("the file is empty")
        if found is None:
            named = f"{path.suffix[1:].lower()} " if path.suffix.lower() in VIDEO_ENDINGS else ""
            raise ValueError(f"not a readable {named}video: its first bytes are of no video format known here")
        check_whole(file, found)
        held = whole and len(file) <= HELD_BYTES
        with av.open(io.BytesIO(read_file(path)) if held else file, format=found, buffer_size=2**18) as container:
            yield _Video(container, found)
    except av.error.FFmpegError as error:
        if file.failure is not None:
            raise file.failure from error
        raise ValueError(f"not a readable video, or damaged ({error.strerror or type(error).__name__})") from error
    finally:
        file.close()
