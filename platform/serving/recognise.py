"""Recognises the actions in one video: sliding windows → clips → probabilities.

Windows are sampled as the clips of the run's evaluations are. By default one covers as many frames as the median training clip,
and each starts a quarter of its length after the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from starlab.platform.errors import UserError
from starlab.platform.serving.joints_input import Joints, JointsOf
from starlab.platform.serving.recogniser import ModelCard, Recogniser
from starlab.platform.serving.video_input import TimedFrame, VideoError, VideoInput
from starlab.platform.serving.video_prediction import VideoPrediction, WindowPrediction
from starlab.platform.serving.windows import Clip, People, Window, are_apart, clips_of, sliding_windows

BATCH = 8
STRIDE_SHARE = 0.25
MAX_SECONDS = 86_400.0
"""Of a window and of a stride."""
_ASSUMED_RATE = 25.0
"""Frames per second of a camera or pipe, to convert seconds to frames."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How a video is cut."""

    window_seconds: float | None = None
    """Length of a window; None takes the frames of the median training clip, or the whole video if these are not known."""
    stride_seconds: float | None = None
    """Time between the starts of two windows; None is a quarter of the window."""
    people: People = "auto"

    def __post_init__(self) -> None:
        for name, value in (("--window", self.window_seconds), ("--stride", self.stride_seconds)):
            if value is not None and not 0 < value <= MAX_SECONDS:
                raise UserError(f"{name} is {value:g} s; it must be above 0 and at most {MAX_SECONDS:g}")


def recognise(
    recogniser: Recogniser,
    video: VideoInput,
    joints_of: JointsOf | None = None,
    sampling: Sampling | None = None,
    say: Callable[[WindowPrediction], None] = lambda _: None,
) -> VideoPrediction:
    """Recognise the actions in a video.

    Args:
        recogniser: The model.
        video: The video. A live one is read until it ends.
        joints_of: Returns the joints of a video; needed by a model that reads joints.
        sampling: How to cut the video.
        say: Called with the prediction of each window as soon as it is known.

    Raises:
        UserError: The video cannot be read, its joints are missing or do not fit, or nobody is seen in it.
    """
    windows: list[WindowPrediction] = []
    totals = Totals()
    found = cut(recogniser, video, joints_of, sampling or Sampling(), totals)
    while group := list(islice(found, 1 if video.is_live else BATCH)):
        clips = [(window, clip) for window, own in group for clip in own]
        if not clips:
            continue
        frames, joints = np.stack([clip.frames for _, clip in clips]), np.stack([clip.joints for _, clip in clips])
        probabilities = recogniser.probabilities(recogniser.logits(frames, joints))
        for (window, clip), values in zip(clips, probabilities, strict=True):
            windows.append(WindowPrediction(clip.person, window.start_seconds, window.end_seconds, values))
            say(windows[-1])
    return whole_prediction(recogniser, video, totals, windows)


def whole_prediction(card: ModelCard, video: VideoInput, totals: Totals, windows: list[WindowPrediction]) -> VideoPrediction:
    """Combine the predictions of all windows of a video.

    Raises:
        UserError: There are none.
    """
    if not windows:
        raise UserError(f"nobody is seen in {video.name} for long enough to be recognised: its joints have confidence 0")
    calibrated = card.temperature is not None
    return VideoPrediction(video.name, totals.frames, totals.seconds, card.classes, calibrated, tuple(windows))


@dataclass(slots=True)
class Totals:
    """What was read of a video."""

    frames: int = 0
    seconds: float = 0.0

    def count(self, frames: Iterator[TimedFrame]) -> Iterator[TimedFrame]:
        """Pass frames on and count them."""
        for frame in frames:
            self.frames += 1
            self.seconds = frame.seconds
            yield frame


def cut(
    card: ModelCard,
    video: VideoInput,
    joints_of: JointsOf | None,
    sampling: Sampling,
    totals: Totals | None = None,
) -> Iterator[tuple[Window, list[Clip]]]:
    """Yield each window of a video with its clips, which are none if nobody is seen in it.

    Raises:
        UserError: As `recognise`.
    """
    spec, totals = card.spec, totals or Totals()
    joints = _joints(card, video, joints_of)
    length, stride = _frames(card, video, sampling)
    # People who are cut out of the frames need more pixels than those who fill them.
    is_cut_out = spec.data.person_crop is not None or are_apart(joints, spec, sampling.people)
    short_side_px = spec.data.size * (2 if is_cut_out else 1)
    for window in sliding_windows(totals.count(video.frames(short_side_px)), length, stride):
        yield window, clips_of(window, joints, spec, sampling.people)


def _joints(card: ModelCard, video: VideoInput, joints_of: JointsOf | None) -> Joints | None:
    if not card.needs_joints:
        return None
    model = card.spec.model
    if joints_of is None:
        raise UserError(
            f"{card.name} reads joints ({card.why_joints}): name a file of them with --joints; docs/serving.md has its columns"
        )
    if video.is_live:
        raise UserError(f"{card.name} reads joints, and a pipe or camera has none; use a model with model.modality=rgb")
    frames = sum(1 for _ in video.frames(16))  # the header's count is wrong in many intact files
    joints = joints_of(video.source, frames)
    if joints.shape[0] != frames or joints.shape[2] != model.num_joints:
        raise UserError(
            f"the joints of {video.name} have the shape {joints.shape}, but the video has {frames} frames and "
            f"{card.name} reads {model.num_joints} joints a body"
        )
    return joints


def _frames(card: ModelCard, video: VideoInput, sampling: Sampling) -> tuple[int | None, int]:
    """Return the length of a window and the stride, in frames."""
    rate = video.frame_rate() or _ASSUMED_RATE
    seconds, stride = sampling.window_seconds, sampling.stride_seconds
    length = card.clip_frames if seconds is None else max(1, round(seconds * rate))
    if length is None and video.is_live:
        raise VideoError(f"{card.name} does not record how long its clips are, and {video.name} may never end: set --window")
    if stride is not None:
        return length, max(1, round(stride * rate))
    return length, max(1, round(STRIDE_SHARE * (length or 1)))
