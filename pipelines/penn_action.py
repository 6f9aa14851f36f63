"""Penn Action as its authors ship it: `frames/0001/000001.jpg`, `labels/0001.mat`.

The same code reads the folders that generated/penn_action.py writes. docs/data.md lists what the files hold, and their traps.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from starlab.pipelines.clip import (
    SYSTEM_NAMES,
    ClipRow,
    DataError,
    DecodedClip,
    EncodedClip,
    SkippedClip,
    Split,
    UnreadableClipError,
    identity,
    short_digest,
)
from starlab.pipelines.decode import NO_SHRINK, decode_jpeg
from starlab.pipelines.retry import MISSING, read_file, read_patiently
from starlab.pipelines.skeletons import PENN_ACTION, Skeleton

PENN_ACTION_CLASSES = (
    "baseball_pitch",
    "baseball_swing",
    "bench_press",
    "bowl",
    "clean_and_jerk",
    "golf_swing",
    "jump_rope",
    "jumping_jacks",
    "pullup",
    "pushup",
    "situp",
    "squat",
    "strum_guitar",
    "tennis_forehand",
    "tennis_serve",
)
"""The 15 actions, spelled as in the label files."""

README_SPELLINGS = {
    "bowling": "bowl",
    "pull_ups": "pullup",
    "push_ups": "pushup",
    "sit_ups": "situp",
    "squats": "squat",
    "strumming_guitar": "strum_guitar",
}
"""The authors' README spells six actions differently from their label files; both are accepted."""

INDEX_THREADS = 8
"""More than the cores, because over a network they mostly wait for the sizes of the frames."""
EXPECTED_LAYOUT = "expected frames/0001/000001.jpg … and labels/0001.mat … in it, as the Penn Action archive unpacks"


@dataclass(frozen=True, slots=True)
class Label:
    """One label file, checked and cast. The files mix float64 with uint8 and uint16, whose arithmetic overflows."""

    action: str
    split: Split
    subject: str | None
    """None in the authors' files; generated folders name one."""
    num_frames: int
    height: int
    width: int
    joints: NDArray[np.float32]
    """(num_frames, 1, 13, 3): x, y as fractions of the frame, confidence 0 or 1; all 0 where not visible."""


@dataclass(frozen=True, slots=True)
class _Found:
    """The index entry of one clip; `row` is None where the clip was skipped."""

    row: ClipRow | None
    reason: str


class PennActionSource:
    """The clips of a Penn Action folder (`clip.ClipSource`); picklable, holds rows but no joints."""

    def __init__(self, root: Path | str, classes: tuple[str, ...] | None = None) -> None:
        """Read every label, and the sizes of every clip's frames (a few seconds for the 2,326 clips of Penn Action).

        Args:
            root: The folder that holds `frames` and `labels`.
            classes: Action names in the order of their indices; None means the 15 of Penn Action.

        Raises:
            DataError: the folder is not there, is not laid out as expected or holds no usable clip. A single clip
                that cannot be used is listed in `skipped` instead.
        """
        self.root = Path(root)
        self.classes = PENN_ACTION_CLASSES if classes is None else tuple(classes)
        self.skeleton: Skeleton = PENN_ACTION
        self.max_bodies = 1
        for folder in (self.root, self.root / "labels", self.root / "frames"):
            if not folder.is_dir():
                raise DataError(f"no folder at {folder}: {EXPECTED_LAYOUT}")
        clip_ids = sorted(name.removesuffix(".mat") for name in _listed(self.root / "labels") if name.endswith(".mat"))
        if not clip_ids:
            raise DataError(f"no .mat file in {self.root / 'labels'}: {EXPECTED_LAYOUT}")

        label_of = {_in_files(name): index for index, name in enumerate(self.classes)}
        with ThreadPoolExecutor(INDEX_THREADS) as pool:
            found = list(pool.map(lambda clip_id: self._index(clip_id, label_of), clip_ids))
        self.clips = tuple(clip.row for clip in found if clip.row is not None)
        self.skipped = tuple(
            SkippedClip(clip_id=clip_id, reason=clip.reason)
            for clip_id, clip in zip(clip_ids, found, strict=True)
            if clip.row is None
        )
        if not self.clips:
            first = self.skipped[0]
            raise DataError(
                f"none of the {len(clip_ids)} clips of {self.root} can be used; the first, {first.clip_id}: {first.reason}"
            )
        self.fingerprint = identity(self.classes, self.clips)

    def _index(self, clip_id: str, label_of: dict[str, int]) -> _Found:
        label_path = self.root / "labels" / f"{clip_id}.mat"
        frames_dir = self.root / "frames" / clip_id
        try:
            data = read_file(label_path)
            label = parse_label(data)
        except (*MISSING, ValueError) as error:
            return _Found(None, f"{label_path}: {error}")
        if label.action not in label_of:
            return _Found(None, f"{label_path}: action {label.action!r} is none of the {len(label_of)} classes")
        try:
            sizes = read_patiently(lambda: _file_sizes(frames_dir), frames_dir)
        except MISSING:
            return _Found(None, f"no frame folder at {frames_dir}")
        missing = [name for name in map(_jpeg_name, range(label.num_frames)) if name not in sizes]
        if missing:
            return _Found(None, f"{frames_dir} lacks {len(missing)} of {label.num_frames} labelled frames, first {missing[0]}")
        jpegs = sorted(item for item in sizes.items() if item[0].endswith(".jpg"))
        row = ClipRow(
            clip_id=clip_id,
            label=label_of[label.action],
            split=label.split,
            subject=label.subject,
            num_frames=label.num_frames,
            digest=short_digest(hashlib.sha256(data).hexdigest(), jpegs),
        )
        return _Found(row, "")

    def read(self, row: ClipRow, frame_indices: Sequence[int], min_side_px: int) -> DecodedClip:
        """Decode the frames (0-based, any order, repeats allowed; each file once) with their joints.

        See `clip.ClipSource.read`.

        Raises:
            UnreadableClipError: a frame or the label is missing or corrupt; the message names the file.
            StorageError: the storage failed; nothing is known about the clip.
        """
        label = self._label(row)
        frames: dict[int, NDArray[np.uint8]] = {}
        for index in frame_indices:
            if index in frames:
                continue
            path = self.root / "frames" / row.clip_id / _jpeg_name(index)
            try:
                frames[index] = decode_jpeg(read_file(path), min_side_px)
            except (*MISSING, ValueError) as error:
                raise UnreadableClipError(f"{path}: {error}") from error
        if len({frame.shape for frame in frames.values()}) > 1:
            sizes = sorted({frame.shape[:2] for frame in frames.values()})
            raise UnreadableClipError(f"{self.root / 'frames' / row.clip_id}: frames of different sizes {sizes}")
        return DecodedClip([frames[index] for index in frame_indices], label.joints[np.asarray(frame_indices)])

    def encode(self, row: ClipRow, short_side_px: int) -> EncodedClip:
        """The authors' JPEGs unchanged, whatever `short_side_px` is: each is decoded once and measured.

        See `clip.ClipSource.encode`.

        Raises:
            UnreadableClipError: a frame or the label is missing or corrupt, or a frame does not have the size that
                the label says (its joints would be misplaced); the message names the file.
        """
        label = self._label(row)
        jpegs = []
        for index in range(row.num_frames):
            path = self.root / "frames" / row.clip_id / _jpeg_name(index)
            try:
                data = read_file(path)
                height, width, _ = decode_jpeg(data, NO_SHRINK).shape
            except (*MISSING, ValueError) as error:
                raise UnreadableClipError(f"{path}: {error}") from error
            if (height, width) != (label.height, label.width):
                raise UnreadableClipError(f"{path}: {height}×{width} pixels, its label says {label.height}×{label.width}")
            jpegs.append(data)
        return EncodedClip(tuple(jpegs), label.joints, joints_3d=None)

    def _label(self, row: ClipRow) -> Label:
        path = self.root / "labels" / f"{row.clip_id}.mat"
        try:
            label = parse_label(read_file(path))
        except (*MISSING, ValueError) as error:
            raise UnreadableClipError(f"{path}: {error}") from error
        if label.num_frames != row.num_frames:
            raise UnreadableClipError(f"{path}: {label.num_frames} frames, {row.num_frames} when it was indexed")
        return label


def parse_label(data: bytes) -> Label:
    """Read the bytes of one `labels/*.mat` file.

    Coordinates: the files count pixels from 1 in the authors' larger originals and were rescaled, so a label of 1 is
    the middle of the first pixel and `(x − 0.5) / width` is its place as a fraction from the frame's edge. The rescaling
    (by 0.67 to 1.5, not recorded) moves this by up to a quarter of a pixel, which is ignored.

    Raises:
        ValueError: the bytes are not such a file, or its arrays do not fit each other; the message says which.
    """
    import scipy.io  # takes a tenth of a second, which a refused command need not wait for

    try:
        # Only these: the bounding boxes are not used, and in two clips are one row short.
        wanted = ["action", "train", "nframes", "dimensions", "x", "y", "visibility", "subject"]
        fields: dict[str, Any] = scipy.io.loadmat(cast(Any, io.BytesIO(data)), variable_names=wanted)
    except Exception as error:  # scipy raises a dozen kinds for damaged bytes
        raise ValueError(f"not a readable .mat file ({type(error).__name__}: {error})") from error
    try:
        height, width, num_labelled = (int(value) for value in fields["dimensions"].ravel())
        num_frames = int(fields["nframes"].item())
        train = int(fields["train"].item())
        action = str(fields["action"].item())
        subject = str(fields["subject"].item()) if "subject" in fields else None
        x, y, visibility = (fields[name].astype(np.float64) for name in ("x", "y", "visibility"))
    except KeyError as error:
        raise ValueError(f"field {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"a field does not have the expected form ({error})") from error

    shape = (num_frames, len(PENN_ACTION.joints))
    if num_frames < 1 or num_labelled != num_frames or not x.shape == y.shape == visibility.shape == shape:
        raise ValueError(
            f"nframes {num_frames} and dimensions {height}×{width}×{num_labelled} do not fit x {x.shape}, "
            f"y {y.shape}, visibility {visibility.shape}"
        )
    if height < 1 or width < 1:
        raise ValueError(f"dimensions say frames of {height}×{width}")
    if train not in (1, -1):
        raise ValueError(f"train must be 1 or -1, is {train}")
    # Invisible joints sit on a placeholder near (1, 1) or on a guess: neither may reach the model.
    visible = visibility > 0
    joints = np.zeros((*shape, 3), np.float32)
    with np.errstate(over="ignore"):  # found below
        joints[visible, 0] = (x[visible] - 0.5) / width
        joints[visible, 1] = (y[visible] - 0.5) / height
    joints[visible, 2] = 1.0
    if not np.isfinite(joints).all():
        raise ValueError("x or y of a visible joint is not finite")
    return Label(
        action=_in_files(action),
        split="train" if train == 1 else "test",
        subject=subject,
        num_frames=num_frames,
        height=height,
        width=width,
        joints=joints[:, None],
    )


def _listed(folder: Path) -> set[str]:
    """Names of the files in a folder, without those of the operating system."""
    names = read_patiently(lambda: os.listdir(folder), folder)  # noqa: PTH208 (names are all that is wanted)
    return {name for name in names if not name.startswith(SYSTEM_NAMES)}


def _file_sizes(folder: Path) -> dict[str, int]:
    """Name → bytes of the files in a folder, without those of the operating system."""
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if not entry.name.startswith(SYSTEM_NAMES)}


def _in_files(action: str) -> str:
    """The label files' spelling of an action."""
    return README_SPELLINGS.get(action, action)


def _jpeg_name(frame_index: int) -> str:
    """Files count from 1."""
    return f"{frame_index + 1:06d}.jpg"
