"""The joints of the videos to recognise: from a file of estimated joints, or from an estimator.

Letters: n frames of a video, M bodies, N joints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from starlab.pipelines.clip import ClipRow, DataError, DecodedClip, EncodedClip, SkippedClip, UnreadableClipError
from starlab.pipelines.estimated_joints import EstimatedJoints, clip_lengths
from starlab.pipelines.skeletons import Skeleton
from starlab.platform.errors import UserError

Joints = NDArray[np.float32]
"""(n, M, N, 3): x, y as fractions of the frame and the confidence, 0 for a joint that is not seen."""
JointsOf = Callable[[str, int], Joints]
"""Returns the joints of a video from its path and its number of frames. An estimator of poses has this form, too."""


def joints_from_file(path: Path, skeleton: Skeleton) -> JointsOf:
    """Open a Parquet file as `starlab.pipelines.estimated_joints` describes it, with a row per video.

    A row's clip_id is the path of its video as given, its file name, or that without the ending. The path of a file of that
    name in another folder does as well, if only one row has such a path.

    Args:
        path: The file.
        skeleton: The skeleton that the model was trained on.

    Raises:
        UserError: The file is missing or is not such a file.
    """
    try:
        lengths = clip_lengths(path)
    except DataError as error:
        raise UserError(str(error)) from None

    def read(video: str, frames: int) -> Joints:
        names = (video, Path(video).name, Path(video).stem)
        clip_id = next((name for name in names if name in lengths), None)
        if clip_id is None and len(moved := [known for known in lengths if Path(known).name in names[1:]]) == 1:
            [clip_id] = moved  # the path that the video had when its joints were estimated
        if clip_id is None:
            some = ", ".join(list(lengths)[:3])
            raise UserError(
                f"{path} has no joints of {video}: no clip_id is its path, name or stem; it has, for example, {some}"
            )
        if lengths[clip_id] != frames:
            raise UserError(f"{path} has joints of {lengths[clip_id]} frames of {clip_id}, but the video has {frames} frames")
        source = _OneVideo(clip_id, frames, skeleton, _bodies(path, clip_id))
        try:
            joints = EstimatedJoints(source, path, skeleton)
            return joints.read(source.clips[0], range(frames), 1).joints
        except (DataError, UnreadableClipError) as error:
            raise UserError(
                f"{error}. The model was trained on the {len(skeleton.joints)} joints of {skeleton.name}, so it needs these"
            ) from None

    return read


def _bodies(path: Path, clip_id: str) -> int:
    bodies = pq.read_table(path, columns=["num_bodies"], filters=[("clip_id", "=", clip_id)])["num_bodies"][0].as_py()
    return max(1, int(bodies))


class _OneVideo:
    """A data set of one clip whose frames nobody reads: `EstimatedJoints` checks and tracks the joints of it."""

    classes: tuple[str, ...] = ("unknown",)
    skipped: tuple[SkippedClip, ...] = ()
    fingerprint = ""

    def __init__(self, clip_id: str, num_frames: int, skeleton: Skeleton, max_bodies: int) -> None:
        self.skeleton, self.max_bodies = skeleton, max_bodies
        self.clips: Sequence[ClipRow] = (ClipRow(clip_id=clip_id, label=0, split="test", subject=None, num_frames=num_frames),)

    def read(self, row: ClipRow, frame_indices: Sequence[int], min_side_px: int) -> DecodedClip:
        """Return a clip without frames."""
        return DecodedClip((), np.zeros((len(frame_indices), self.max_bodies, len(self.skeleton.joints), 3), np.float32))

    def encode(self, row: ClipRow, short_side_px: int) -> EncodedClip:
        """Not used: these clips are never stored."""
        raise NotImplementedError
