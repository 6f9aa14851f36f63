"""Draws what was recognised into a video: joints, the action of each person, and a timeline with the current time."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from starlab.pipelines.contact_sheet import draw_joints
from starlab.pipelines.skeletons import Skeleton
from starlab.platform.errors import UserError
from starlab.platform.serving.joints_input import Joints
from starlab.platform.serving.video_input import TimedFrame, VideoInput
from starlab.platform.serving.video_prediction import Segment, VideoPrediction

ENDINGS = (".mp4", ".mkv", ".mov")
LEAST_HEIGHT_PX = 360
"""Smaller videos are enlarged by a whole factor, so that the text can be read."""
ROW_PX = 26
_TIME_BASE = Fraction(1, 1000)
_INK, _PAPER, _CURSOR = (245, 245, 245), (24, 24, 28), (255, 80, 80)
_COLORS = ((78, 121, 167), (225, 129, 44), (89, 141, 79), (176, 88, 90), (118, 183, 178), (148, 103, 135), (156, 117, 95))


def write_annotated(
    path: Path, video: VideoInput, prediction: VideoPrediction, joints: Joints | None = None, skeleton: Skeleton | None = None
) -> None:
    """Write an H.264 video with the time stamps of the original, without its sound.

    Args:
        path: The file to write; its name ends in .mp4, .mkv or .mov.
        video: The video that was recognised, which is read once more.
        prediction: What was recognised in it.
        joints: (n, bodies, N, 3) to draw; None draws none.
        skeleton: The bones between them.

    Raises:
        UserError: The name has another ending, or the file cannot be written.
    """
    check_ending(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")  # its ending, which names the format, stays
    try:
        _write(draft, video, _Painter(prediction, joints, skeleton))
        draft.replace(path)
    except (OSError, av.error.FFmpegError) as error:
        raise UserError(f"{path} cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            draft.unlink()


def check_ending(path: Path) -> None:
    """Refuse a name that no annotated video can have.

    Raises:
        UserError: It does not end in one of `ENDINGS`.
    """
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"--video is {path}; its name must end in .mp4, .mkv or .mov")


class _Painter:
    """Draws the frames of one video."""

    def __init__(self, prediction: VideoPrediction, joints: Joints | None, skeleton: Skeleton | None) -> None:
        self._joints, self._skeleton = joints, skeleton
        self._seconds = max(prediction.seconds, 1e-3)
        self._segments = prediction.timeline()
        self._people = prediction.people
        actions = dict.fromkeys(segment.action for segment in self._segments)
        self._colors = {action: _COLORS[index % len(_COLORS)] for index, action in enumerate(actions)}
        self._strip: NDArray[np.uint8] | None = None

    def paint(self, number: int, frame: TimedFrame) -> NDArray[np.uint8]:
        """Return the frame of that number with everything drawn, RGB, with even sides."""
        height, width = frame.pixels.shape[:2]
        scale = -(-LEAST_HEIGHT_PX // height) if height < LEAST_HEIGHT_PX else 1
        picture = (
            cv2.resize(frame.pixels, (width * scale, height * scale), interpolation=cv2.INTER_CUBIC)
            if scale > 1
            else frame.pixels
        )
        if self._joints is not None and self._skeleton is not None and number < len(self._joints):
            picture = draw_joints(picture.astype(np.uint8), self._joints[number], self._skeleton)
        else:
            picture = picture.copy()
        now = [s for s in self._segments if s.start_seconds <= frame.seconds < s.end_seconds or s is self._segments[-1]]
        for row, person in enumerate(self._people):
            current = next((segment for segment in now if segment.person == person), None)
            if current is not None and current.start_seconds <= frame.seconds:
                self._label(picture, row, number, current)
        strip = self._timeline(picture.shape[1]).copy()
        place = min(round(frame.seconds / self._seconds * strip.shape[1]), strip.shape[1] - 1)
        cv2.line(strip, (place, 0), (place, strip.shape[0] - 1), _CURSOR, 2)
        whole = np.concatenate([picture, strip])
        even: NDArray[np.uint8] = np.pad(whole, ((0, whole.shape[0] % 2), (0, whole.shape[1] % 2), (0, 0)), mode="edge").astype(
            np.uint8
        )
        return even

    def _label(self, picture: NDArray[np.uint8], row: int, number: int, segment: Segment) -> None:
        """Write the action: above the person if their joints are known, else in the upper left corner."""
        text = f"{_who(segment.person)}{segment.action} {segment.probability:.0%}"
        size, thickness = 0.55, 1
        (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, thickness)
        left, top = 6, 6 + row * (height + 12)
        if segment.person is not None and self._joints is not None and number < len(self._joints):
            body = self._joints[number, segment.person]
            seen = body[body[:, 2] > 0]
            if not len(seen):
                return
            left = round(float(seen[:, 0].min()) * picture.shape[1])
            low, high = float(seen[:, 1].min()), float(seen[:, 1].max())
            top = round((low - 0.12 * (high - low)) * picture.shape[0]) - height - 10  # above the head
        left = int(np.clip(left, 0, max(0, picture.shape[1] - width - 8)))
        top = int(np.clip(top, 0, max(0, picture.shape[0] - height - 10)))
        cv2.rectangle(picture, (left, top), (left + width + 8, top + height + 10), self._colors[segment.action], -1)
        where = (left + 4, top + height + 4)
        cv2.putText(picture, text, where, cv2.FONT_HERSHEY_SIMPLEX, size, _INK, thickness, cv2.LINE_AA)

    def _timeline(self, width: int) -> NDArray[np.uint8]:
        """Draw a row per person, with a bar per segment. The same for every frame but for the cursor."""
        if self._strip is None:
            strip = np.full((ROW_PX * max(1, len(self._people)), width, 3), _PAPER, np.uint8)
            for segment in self._segments:
                row = self._people.index(segment.person)
                start, end = (round(at / self._seconds * width) for at in (segment.start_seconds, segment.end_seconds))
                top = row * ROW_PX
                cv2.rectangle(
                    strip, (start + 1, top + 2), (max(start + 1, end - 2), top + ROW_PX - 3), self._colors[segment.action], -1
                )
                label = f"{_who(segment.person)}{segment.action}"
                while label and cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)[0][0] > end - start - 8:
                    label = label[:-1]
                cv2.putText(strip, label, (start + 5, top + 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, _INK, 1, cv2.LINE_AA)
            self._strip = strip
        return self._strip


def _who(person: int | None) -> str:
    return "" if person is None else f"{person + 1}: "


def _write(path: Path, video: VideoInput, painter: _Painter) -> None:
    frames = video.frames()
    first = next(frames)
    picture = painter.paint(0, first)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=round(video.frame_rate() or 25) or 25, options={"crf": "20"})
        stream.height, stream.width, stream.pix_fmt, stream.time_base = *picture.shape[:2], "yuv420p", _TIME_BASE
        stream.codec_context.time_base = _TIME_BASE
        last = -1
        for number, frame in _numbered(first, frames):
            drawn = painter.paint(number, frame)
            if drawn.shape != picture.shape:  # a video may change its size on the way
                drawn = np.asarray(cv2.resize(drawn, picture.shape[1::-1]), np.uint8)
            encoded = av.VideoFrame.from_ndarray(drawn, format="rgb24")
            last = encoded.pts = max(last + 1, round(frame.seconds * 1000))
            encoded.time_base = _TIME_BASE
            container.mux(stream.encode(encoded))
        container.mux(stream.encode())


def _numbered(first: TimedFrame, rest: Iterable[TimedFrame]) -> Iterable[tuple[int, TimedFrame]]:
    yield 0, first
    yield from enumerate(rest, start=1)
