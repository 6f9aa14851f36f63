"""What one task estimates: a video, or a part of a long one, whose people are followed afterwards, over all of it.

A part begins where a group of frames begins, so the estimator gets the same frames at once, and the joints are the same however
a video is divided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from starlab.pipelines.clip import UnreadableClipError
from starlab.pipelines.estimated_joints import ESTIMATOR_SKELETONS
from starlab.pipelines.retry import StorageError
from starlab.platform.errors import UserError
from starlab.platform.pose.clips import Clips
from starlab.platform.pose.estimate import FRAMES_AT_ONCE, Estimator, Found, find_people, follow_people
from starlab.platform.pose.joints_file import PoseSettings, row_bytes

LEAST_FRAMES = 400
"""Of a part. A shorter one is not worth decoding what comes before it."""
MOST_PARTS = 8
"""Of a video: every part is decoded from the video's beginning, because not every format can be entered in the middle."""
NO_END = 2**31
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, order=True, slots=True)
class Part:
    """Some frames of a video."""

    number: int
    """Of the video."""
    first: int = 0
    end: int = NO_END
    """The number after that of the last frame; `NO_END` is the end of the video."""

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole video."""
        return self.first == 0 and self.end == NO_END


def parts_of(number: int, length: int, share: float, workers: int, every: int) -> list[Part]:
    """Divide a video if it would keep one worker busy while others have nothing left to do.

    Args:
        number: Of the video.
        length: About how many frames it has; 0 if that is not known.
        share: Its share of all the work.
        workers: Tasks that run at the same time.
        every: Every so many frames are estimated.
    """
    count = min(MOST_PARTS, workers, length // LEAST_FRAMES)
    if count < 2 or share * workers < 0.5:
        return [Part(number)]
    group = FRAMES_AT_ONCE * every
    step = -(-length // count // group) * group
    firsts = range(0, length, step)
    return [Part(number, first, first + step if first + step < length else NO_END) for first in firsts]


@dataclass(frozen=True, slots=True)
class EstimatePart:
    """The work of one task."""

    clips: Clips
    digests: Sequence[str]
    settings: PoseSettings
    estimator: Estimator | None
    """None takes MoveNet from `files`."""
    files: ray.ObjectRef | None
    counter: Any
    """The actor that counts frames."""

    def __call__(self, tasks: Columns) -> Columns:
        """Estimate the joints of a part.

        Returns:
            The columns number, first and end; row, a file with the clip, if the part is the whole video; found, the bodies
            of any other part; problem, why the video cannot be read; and failure, what is wrong with the estimator.
        """
        part = Part(*(int(tasks[name][0]) for name in ("number", "first", "end")))
        row, found, problem, failure = b"", None, "", ""
        try:
            found = self._find(part)
            if part.is_whole:
                row, found = self.row(part.number, [found]), None
        except UnreadableClipError as error:
            problem = str(error)
        except UserError as error:
            failure = str(error)
        except StorageError:
            raise
        except Exception as error:
            if self.estimator is None:
                raise
            failure = f"the estimator failed on {self.clips.clip_ids[part.number]}: {type(error).__name__}: {error}"
        texts = {"problem": np.array([problem]), "failure": np.array([failure])}
        places = {"number": np.array([part.number]), "first": np.array([part.first]), "end": np.array([part.end])}
        return {**places, **texts, "row": _one(row), "found": _one(found)}

    def row(self, number: int, parts: Sequence[Found]) -> bytes:
        """Follow the people of a video whose parts are all found. Returns a file with the clip."""
        joints = follow_people(parts, ESTIMATOR_SKELETONS[self.settings.skeleton], self.settings.every)
        return row_bytes(self.clips.clip_ids[number], self.digests[number], joints, self.settings)

    def _find(self, part: Part) -> Found:
        return find_people(
            self.clips.frames(part.number, None if part.is_whole else range(part.first, part.end)),
            self._estimator(),
            ESTIMATOR_SKELETONS[self.settings.skeleton],
            self.settings.every,
            lambda frames: self.counter.set.remote((part.number, part.first), frames),
            first=part.first,
            to_the_end=part.end == NO_END,
        )

    def _estimator(self) -> Estimator:
        import cv2
        import torch

        from starlab.platform.pose.movenet import MoveNet

        torch.set_num_threads(1)  # another number of threads may round in another way
        cv2.setNumThreads(1)  # there is a task per CPU
        if self.estimator is not None:
            return self.estimator
        return MoveNet(ray.get(self.files), self.settings.long_side_px)


def _one(value: object) -> NDArray[Any]:
    column = np.empty(1, object)
    column[0] = value
    return column
