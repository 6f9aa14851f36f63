"""A clip: the names, shapes, dtypes and units that every reader, the stream and the model agree on.

Letters: T frames, H W pixels, M bodies, N joints.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from starlab.pipelines.skeletons import Skeleton

Split = Literal["train", "validation", "test"]


def as_split(name: str | None) -> Split:
    """The split of that name; "test" where it is neither "train" nor "validation"."""
    return "train" if name == "train" else "validation" if name == "validation" else "test"


SYSTEM_NAMES = (".", "__MACOSX", "@eaDir", "lost+found")
"""Names of files and folders that operating systems leave behind begin so; none is a sample."""


class DataError(ValueError):
    """The data set as a whole cannot be used; the message names the path, what is wrong and the fix."""


class UnreadableClipError(Exception):
    """One clip cannot be read (corrupt JPEG, label, video). The stream replaces, counts and lists it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipRow:
    """One clip of a data set, before a frame of it is read."""

    clip_id: str
    """The authors' name of the clip, unique within the data set."""
    label: int
    """Index into the source's `classes`."""
    split: Split
    """The official split. Where no clip is "validation", that part is drawn from "train" (`splits.py`)."""
    subject: str | None
    """The person who acts; None where the data set does not say (Penn Action)."""
    num_frames: int
    """Frames on disk that have a label, at least 1."""
    digest: str = field(default="", compare=False)
    """Hex digest of what the index saw of the authors' files (`short_digest`); a store keeps it. "" if it is not known."""


def short_digest(*parts: object) -> str:
    """16 hex digits of a SHA-256 over the parts: enough to notice a change, and short enough to keep for every clip."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        digest.update(b"%d " % len(data))
        digest.update(data)
    return digest.hexdigest()[:16]


def identity(classes: Sequence[str], clips: Iterable[ClipRow]) -> str:
    """The fingerprint of a data set: a hex digest of its classes and its clips, in any order.

    It covers the clips' names, labels, subjects, lengths and digests. So the authors' files and a store that was prepared from
    all of them have the same one. Neither the place of the files nor the official split of `protocol` matters.
    """
    known = sorted([clip.clip_id, clip.label, clip.subject or "", clip.num_frames, clip.digest] for clip in clips)
    return hashlib.sha256(json.dumps([list(classes), known]).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class SkippedClip:
    """A clip that the index left out, and why."""

    clip_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class DecodedClip:
    """Some frames of one clip, decoded."""

    frames: Sequence[NDArray[np.uint8]]
    """T arrays (H, W, 3), RGB; all of one size. H and W may be a reduced decode, never below the size asked for."""
    joints: NDArray[np.float32]
    """(T, M, N, 3): x, y as fractions of the frame's width and height (pixel centres; outside [0, 1] when off-frame),
    and the confidence in [0, 1]; 0 marks a joint that was not seen."""


@dataclass(frozen=True, slots=True)
class EncodedClip:
    """A whole clip ready for a store."""

    jpegs: tuple[bytes, ...]
    """Every frame in decode order."""
    joints: NDArray[np.float32]
    """(n, M, N, 3): x, y as fractions of the frame's width and height, and the confidence, as in `DecodedClip`."""
    joints_3d: NDArray[np.float32] | None
    """(n, M, N, 3): metres, where the data set has them."""
    scaled_to_px: int | None = None
    """Short side of the frames, if they differ in size from those that `ClipSource.read` returns."""
    note: str | None = None
    """What a user should know of a clip that is used all the same, such as a video a frame longer than its skeleton."""


def find_clip(source: ClipSource, clip_id: str, place: str) -> ClipRow:
    """The clip of that name; `place` is the source's name in the error message.

    Raises:
        DataError: no such clip; the message gives the nearest name, or the reason of a clip that was left out.
    """
    names = [row.clip_id for row in source.clips]
    at = bisect_left(names, clip_id)
    if at < len(names) and names[at] == clip_id:
        return source.clips[at]
    left_out = {clip.clip_id: clip.reason for clip in source.skipped}
    near = difflib.get_close_matches(clip_id, names, n=1) or names[:1]
    why = f"it is in quarantine: {left_out[clip_id]}" if clip_id in left_out else f"did you mean {near[0]}?"
    raise DataError(f"no clip {clip_id} in {place}; {why}")


class ClipSource(Protocol):
    """A data set on disk: an index of its clips and a way to read chosen frames of one. Picklable and small."""

    classes: tuple[str, ...]
    skeleton: Skeleton
    max_bodies: int
    skipped: tuple[SkippedClip, ...]
    fingerprint: str
    """Hex digest of the data (`identity`): equal data give equal digests, in any place and in any form."""

    @property
    def clips(self) -> Sequence[ClipRow]:
        """Every clip that can be used, sorted by clip_id."""
        ...

    def read(self, row: ClipRow, frame_indices: Sequence[int], min_side_px: int) -> DecodedClip:
        """Decode the frames (0-based, any order, repeats allowed) with their joints.

        `min_side_px`: the decoder may shrink frames while it decodes, but never below this on the short side.

        Raises:
            UnreadableClipError: a frame or label of this clip is missing or corrupt. A source may decode a frame only when it
                is taken from `DecodedClip.frames`, which then raises.
        """
        ...

    def encode(self, row: ClipRow, short_side_px: int) -> EncodedClip:
        """Every frame of the clip as a JPEG, each checked, with the joints.

        `short_side_px`: what a video's frames are scaled to; JPEGs that the authors ship stay byte for byte as they are.

        Raises:
            UnreadableClipError: decoded frames, container and skeleton disagree, or a frame is corrupt; says which.
        """
        ...
