"""Cuts a video into sliding windows, and a window into the clips that a model takes: one per person, or one of all.

A window is treated as a clip of an evaluation: the same frames are picked, and frames and joints are fitted in the same way.

Letters: n frames of a video, T frames of a clip, H W pixels, M bodies, N joints.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from starlab.experiments.spec import Spec
from starlab.pipelines.augment import fit
from starlab.pipelines.clip import DecodedClip
from starlab.pipelines.sampling import pick_frames
from starlab.platform.errors import UserError
from starlab.platform.serving.video_input import TimedFrame

People = Literal["auto", "together", "each"]
SEEN_SHARE = 0.5
"""A person is recognised in a window if at least this share of the picked frames shows a joint of theirs."""
MAX_WINDOW_BYTES = 2**30
"""Memory of the frames of one window."""
ROOM = 1.6
"""Side of the square that is cut out around one of several people, over the longer side of the box around their joints."""


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive frames of a video."""

    first: int
    """Number of the first frame, from 0."""
    frames: list[TimedFrame]

    @property
    def start_seconds(self) -> float:
        """Time of the first frame, to the millisecond."""
        return round(self.frames[0].seconds, 3)

    @property
    def end_seconds(self) -> float:
        """Time at which the last frame ends, if it is shown for as long as those before it; to the millisecond."""
        shown = len(self.frames) - 1
        first, last = self.frames[0].seconds, self.frames[-1].seconds
        return round(last + (last - first) / shown if shown else last, 3)


@dataclass(frozen=True, slots=True)
class Clip:
    """What a model sees of a window."""

    person: int | None
    """Number of the body among those of the joints, from 0; None where all people are one clip."""
    frames: NDArray[np.uint8]
    """(T, H, W, 3)."""
    joints: NDArray[np.float32]
    """(T, M, N, 3)."""


def sliding_windows(frames: Iterable[TimedFrame], length: int | None, stride: int) -> Iterator[Window]:
    """Yield windows as soon as their last frame has come.

    The last window ends with the video, so no frame is left out. A video shorter than a window is one window.

    Args:
        frames: The video.
        length: Frames of a window; None takes the whole video as one.
        stride: Frames between the starts of two windows.

    Raises:
        ValueError: `length` or `stride` is below 1.
        UserError: The frames of a window need more than `MAX_WINDOW_BYTES` of memory.
    """
    if (length is not None and length < 1) or stride < 1:
        raise ValueError(f"length and stride must be at least 1 frame, got {length} and {stride}")
    held: deque[TimedFrame] = deque(maxlen=length)
    count = due = 0
    for frame in frames:
        held.append(frame)
        count += 1
        if len(held) * frame.pixels.nbytes > MAX_WINDOW_BYTES:
            raise UserError(
                f"a window of {len(held)} frames or more needs above {MAX_WINDOW_BYTES / 2**30:g} GiB of memory: set a "
                "shorter one with --window"
            )
        if length is not None and count == length + due:
            yield Window(count - length, list(held))
            due += stride
    whole = length is not None and count >= length
    if count and not (whole and count == (length or 0) + due - stride):
        yield Window(count - len(held), list(held))


def clips_of(window: Window, joints: NDArray[np.float32] | None, spec: Spec, people: People) -> list[Clip]:
    """Cut a window into the clips to recognise.

    Args:
        window: The frames.
        joints: (n, bodies, N, 3) of the whole video; None for a model that reads no joints.
        spec: Spec of the model's run.
        people: "together" is one clip of all people, as many as the model takes, those with the highest confidence first;
            "each" is a clip per person, cut out of the frames; "auto" is "together" if the model takes all the bodies of the
            joints, else "each".

    Returns:
        The clips, in the order of the bodies. Empty if nobody is seen for long enough.
    """
    model, data = spec.model, spec.data
    picked = pick_frames(len(window.frames), data.frames, None)
    shown = [window.frames[int(index)].pixels for index in picked]
    if joints is None:
        return [_fitted(None, shown, np.zeros((data.frames, model.max_bodies, model.num_joints, 3), np.float32), spec)]
    found = joints[window.first + picked]
    there = np.flatnonzero((found[..., 2] > 0).any(axis=2).mean(axis=0) >= SEEN_SHARE)
    if not len(there):
        return []
    if not are_apart(joints, spec, people):
        surest = np.argsort(-found[..., 2].sum(axis=(0, 2)), kind="stable")[: model.max_bodies]
        return [_fitted(None, shown, _packed(found[:, np.sort(surest)], model.max_bodies), spec)]
    clips = []
    for body in there:
        own = found[:, [body]]
        view = _around(shown, own) if joints.shape[1] > 1 else (shown, own)
        clips.append(_fitted(int(body), view[0], _packed(view[1], model.max_bodies), spec))
    return clips


def are_apart(joints: NDArray[np.float32] | None, spec: Spec, people: People) -> bool:
    """Return whether each person is a clip of their own."""
    if joints is None or people == "together":
        return False
    return people == "each" or joints.shape[1] > spec.model.max_bodies


def _fitted(person: int | None, frames: list[NDArray[np.uint8]], joints: NDArray[np.float32], spec: Spec) -> Clip:
    mirror = spec.data.facts().skeleton.mirror
    return Clip(person, *fit(DecodedClip(frames, joints), spec.data.size, spec.data.augmentation(), mirror, None))


def _around(
    frames: list[NDArray[np.uint8]], joints: NDArray[np.float32]
) -> tuple[list[NDArray[np.uint8]], NDArray[np.float32]]:
    """Cut a square around all joints (T, 1, N, 3) of one person out of the frames, as training clips show one person each.

    It is the same in every frame, and moved inwards at the border of the picture. Where it is larger than the picture, it is
    cut off.
    """
    height, width = frames[0].shape[:2]
    places = joints[joints[..., 2] > 0][:, :2] * (width, height)
    low, high = places.min(axis=0), places.max(axis=0)
    side = max(16.0, ROOM * float((high - low).max()))
    across, down = round(min(side, width)), round(min(side, height))
    left = round(float(np.clip((low[0] + high[0] - across) / 2, 0, width - across)))
    top = round(float(np.clip((low[1] + high[1] - down) / 2, 0, height - down)))
    moved = joints.copy()
    moved[..., 0] = (joints[..., 0] * width - left) / across
    moved[..., 1] = (joints[..., 1] * height - top) / down
    return [frame[top : top + down, left : left + across] for frame in frames], moved


def _packed(joints: NDArray[np.float32], max_bodies: int) -> NDArray[np.float32]:
    packed = np.zeros((len(joints), max_bodies, *joints.shape[2:]), np.float32)
    packed[:, : joints.shape[1]] = joints
    return packed
