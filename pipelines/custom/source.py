"""The frames of a data set of one's own, and its joints from a file where it has one."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from starlab.pipelines.clip import (
    SYSTEM_NAMES,
    ClipRow,
    ClipSource,
    DataError,
    DecodedClip,
    EncodedClip,
    SkippedClip,
    Split,
    UnreadableClipError,
    as_split,
    identity,
    short_digest,
)
from starlab.pipelines.custom.description import Description, describe, skeleton_to_dict
from starlab.pipelines.custom.listing import IMAGE_ENDINGS, ListedClip
from starlab.pipelines.decode import NO_SHRINK, decode_jpeg
from starlab.pipelines.estimated_joints import EstimatedJoints, clip_lengths
from starlab.pipelines.ntu_files import TAIL_BYTES, file_ends
from starlab.pipelines.recording import check_length, count_frames, read_recording
from starlab.pipelines.retry import MISSING, read_file, read_patiently
from starlab.pipelines.splits import split_rows
from starlab.pipelines.video import shrunk_size

SHORT_SIDE_PX = 256
"""Short side of the frames read, as in a prepared store, so that a model sees the same pixels from both."""
JPEG_QUALITY = 90


def open_custom(root: Path) -> ClipSource:
    """The clips of a folder with the joints that its `data.yaml` names; without any, frames alone.

    Raises:
        DataError: see `CustomSource` and `EstimatedJoints`.
    """
    description = describe(root)
    if description.joints is None:
        return CustomSource(root, description)
    source = CustomSource(root, description, clip_lengths(description.joints))
    skeleton, clamp = description.facts.skeleton, description.clamp_confidence
    return EstimatedJoints(source, description.joints, skeleton, clamp=clamp, in_digests=True)


class CustomSource:
    """The frames of a folder of one's own (`clip.ClipSource`), with joints of confidence 0; picklable."""

    def __init__(self, root: Path, description: Description | None = None, lengths: Mapping[str, int] | None = None) -> None:
        """Look at each file's size and its two ends, and count the frames of the videos whose number nothing says.

        Counting means decoding, on all cores. It is not needed where the list has a column `frames`, or joints are given.

        Args:
            root: The folder.
            description: Its list and settings; None reads them.
            lengths: Frames of each clip by name, for joints from elsewhere.

        Raises:
            DataError: the list or the settings have a mistake, or no clip can be used. A single clip that cannot be read
                is listed in `skipped` instead.
        """
        self.root = root
        self.description = description or describe(root)
        facts = self.description.facts
        self.facts = facts
        self.classes, self.skeleton, self.max_bodies = facts.classes, facts.skeleton, facts.max_bodies
        clips = self.description.clips
        known = lengths or {}
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            found = list(pool.map(lambda clip: self._look(clip, known.get(clip.clip_id)), clips))
        self.skipped = tuple(
            SkippedClip(clip_id=clip.clip_id, reason=reason) for clip, (_, reason) in zip(clips, found, strict=True) if reason
        )
        usable = [(clip, row) for clip, (row, _) in zip(clips, found, strict=True) if row is not None]
        if not usable:
            first = self.skipped[0]
            raise DataError(f"none of the {len(clips)} clips of {root} can be used; the first, {first.clip_id}: {first.reason}")
        rows, self.about = _split([clip for clip, _ in usable], [row for _, row in usable], self.description)
        self.clips = tuple(rows)
        self._listed = tuple(clip for clip, _ in usable)
        self.fingerprint = identity(self.classes, self.clips)

    def read(self, row: ClipRow, frame_indices: Sequence[int], min_side_px: int) -> DecodedClip:
        """Decode the clip and keep the frames asked for, with joints of confidence 0. See `clip.ClipSource.read`.

        Frames come at short side `SHORT_SIDE_PX`, or `min_side_px` if that is more.

        Raises:
            UnreadableClipError: a file is missing, damaged or of another length than when it was indexed.
            StorageError: the storage failed; nothing is known about the clip.
        """
        wanted = set(frame_indices)
        frames = dict(self._frames(row, max(SHORT_SIDE_PX, min_side_px), wanted))
        sizes = sorted({frame.shape[:2] for frame in frames.values()})
        if len(sizes) > 1:
            raise UnreadableClipError(f"{self._path(row)}: frames of different sizes {sizes}")
        return DecodedClip([frames[index] for index in frame_indices], self._no_joints(len(frame_indices)))

    def encode(self, row: ClipRow, short_side_px: int) -> EncodedClip:
        """Every frame of the clip as a JPEG of quality 90; JPEGs of the folder stay byte for byte as they are.

        See `clip.ClipSource.encode`.

        Raises:
            UnreadableClipError: as `read`.
        """
        path, jpegs, largest = self._path(row), [], 0
        if path.is_dir():
            for name in picture_names(path):
                data, frame = read_picture(path / name, NO_SHRINK)
                largest = max(largest, min(frame.shape[:2]))
                kept = name.lower().endswith((".jpg", ".jpeg"))
                jpegs.append(data if kept else _jpeg(_shrunk(frame, short_side_px)))
            return EncodedClip(tuple(jpegs), self._no_joints(row.num_frames), None)
        for _, frame in self._frames(row, short_side_px, None):
            largest = max(largest, min(frame.shape[:2]))
            jpegs.append(_jpeg(frame))
        as_read = short_side_px == SHORT_SIDE_PX or largest < min(short_side_px, SHORT_SIDE_PX + 1)
        return EncodedClip(tuple(jpegs), self._no_joints(row.num_frames), None, None if as_read else largest)

    def _no_joints(self, num_frames: int) -> NDArray[np.float32]:
        return np.zeros((num_frames, self.max_bodies, len(self.skeleton.joints), 3), np.float32)

    def _look(self, clip: ListedClip, length: int | None) -> tuple[ClipRow | None, str]:
        """The clip's row, whose split is decided later; or why it cannot be used."""
        path = self.root / clip.path
        try:
            if path.is_dir():
                sizes = read_patiently(lambda: {name: (path / name).stat().st_size for name in picture_names(path)}, path)
                num_frames, seen = len(sizes), tuple(sorted(sizes.items()))
                if not num_frames:
                    return None, f"{path}: no picture ({', '.join(IMAGE_ENDINGS)}) in it"
                if clip.frames not in (None, num_frames):
                    return None, f"{path}: {num_frames} pictures, the list says {clip.frames}"
                digest = short_digest(*seen)
            else:
                size, head, tail = read_patiently(lambda: file_ends(str(path), TAIL_BYTES[0]), path)
                if not size:
                    return None, f"{path}: the file is empty"
                num_frames = length or clip.frames or count_frames(path, clip.cut)
                check_length(num_frames)
                digest = short_digest(size, head, tail, clip.cut.start_seconds, clip.cut.end_seconds)
        except (*MISSING, ValueError) as error:
            return None, f"{path}: {error}"
        label = self.classes.index(clip.label)
        row = ClipRow(
            clip_id=clip.clip_id, label=label, split="train", subject=clip.subject, num_frames=num_frames, digest=digest
        )
        return row, ""

    def _clip(self, row: ClipRow) -> ListedClip:
        return self._listed[bisect_left(self._listed, row.clip_id, key=lambda clip: clip.clip_id)]

    def _path(self, row: ClipRow) -> Path:
        return self.root / self._clip(row).path

    def _frames(self, row: ClipRow, short_side_px: int, only: set[int] | None) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        clip = self._clip(row)
        path = self.root / clip.path
        try:
            if path.is_dir():
                names = picture_names(path)
                if len(names) != row.num_frames:
                    raise ValueError(f"{len(names)} pictures, {row.num_frames} when it was indexed")
                for index in sorted(only) if only is not None else range(len(names)):
                    _, frame = read_picture(path / names[index], short_side_px)
                    is_jpeg = names[index].lower().endswith((".jpg", ".jpeg"))
                    yield index, frame if is_jpeg else _shrunk(frame, short_side_px)
            else:
                yield from read_recording(path, row.num_frames, short_side_px, only, clip.cut)
        except (*MISSING, ValueError) as error:
            raise UnreadableClipError(f"{path}: {error}") from error


def picture_names(folder: Path) -> list[str]:
    """The pictures in a folder, in the order in which a person counts them."""
    names = (path.name for path in folder.iterdir() if not path.name.startswith(SYSTEM_NAMES))
    return sorted((name for name in names if name.lower().endswith(IMAGE_ENDINGS)), key=_natural)


def read_picture(path: Path, min_side_px: int) -> tuple[bytes, NDArray[np.uint8]]:
    """The file and its pixels, (H, W, 3), RGB, upright.

    Raises:
        UnreadableClipError: it is missing or damaged.
    """
    try:
        data = read_file(path)
        if path.name.lower().endswith((".jpg", ".jpeg")):
            return data, decode_jpeg(data, min_side_px)
        frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if frame is None:
            raise ValueError("not a readable picture")
    except (*MISSING, ValueError, cv2.error) as error:
        raise UnreadableClipError(f"{path}: {error}") from error
    return data, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def _split(
    clips: Sequence[ListedClip], rows: Sequence[ClipRow], description: Description
) -> tuple[list[ClipRow], tuple[str, ...]]:
    """The rows with their splits, and lines about where these come from."""
    shared = Counter(clip.path for clip in clips)
    # Clips cut from one video show the same people: it counts as a subject where none is named.
    subjects = [clip.subject or (clip.path if shared[clip.path] > 1 else None) for clip in clips]
    rows = [replace(row, subject=subject) for row, subject in zip(rows, subjects, strict=True)]
    if clips[0].split is not None:
        given: list[Split] = [as_split(clip.split) for clip in clips]
        rows = [replace(row, split=split) for row, split in zip(rows, given, strict=True)]
        sides: defaultdict[str, set[str]] = defaultdict(set)
        for row in rows:
            if row.subject is not None:
                sides[row.subject].add(row.split)
        both = sorted(subject for subject, found in sides.items() if {"train", "test"} <= found)
        if both:
            more = ", …" if len(both) > 5 else ""
            return rows, (
                f"{len(both)} subjects are in train and in test ({', '.join(both[:5])}{more}): the test also measures how "
                "well they are recognised, so it is optimistic about new people",
            )
        return rows, ()
    test = _drawn(rows, description)
    rows = [replace(row, split="test" if place in test else "train") for place, row in enumerate(rows)]
    drawn = f"{len(rows) - len(test)} train and {len(test)} test clips were drawn with split_seed {description.split_seed}"
    if all(subject is not None for subject in subjects):
        return rows, (f"no split is given: {drawn}, whole subjects at a time",)
    return rows, (
        f"no split is given: {drawn}, clip by clip. Clips of one person or one place may be on both sides, which makes the "
        "test optimistic: name the subject (or the split) of each clip in the list",
    )


def _drawn(rows: Sequence[ClipRow], description: Description) -> set[int]:
    """The places of the test clips, drawn as a validation part is: by whole subjects, else clip by clip."""
    try:
        return set(split_rows(rows, description.test_fraction, description.split_seed).validation)
    except DataError:
        groups = len({row.subject or row.clip_id for row in rows})
        raise DataError(
            f"no test part can be drawn: {len(rows)} clips of {groups} subjects or videos are too few for test_fraction "
            f"{description.test_fraction} with a training clip of every class. Add clips, or give each one's split in clips.csv"
        ) from None


def _shrunk(frame: NDArray[np.uint8], short_side_px: int) -> NDArray[np.uint8]:
    height, width = shrunk_size(frame.shape[0], frame.shape[1], short_side_px)
    if (height, width) == frame.shape[:2]:
        return frame
    return np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _jpeg(frame: NDArray[np.uint8]) -> bytes:
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=JPEG_QUALITY, colorsubsampling="420"))


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts frame_2.jpg before frame_10.jpg."""
    parts: list[tuple[int, int, str]] = []
    for is_number, text in _runs(name):
        parts.append((0, int(text), text) if is_number else (1, 0, text))
    return tuple(parts)


def _runs(name: str) -> Iterator[tuple[bool, str]]:
    start = 0
    for place in range(1, len(name) + 1):
        if place == len(name) or name[place].isdecimal() != name[start].isdecimal():
            yield name[start].isdecimal(), name[start:place]
            start = place


def split_lines(source: ClipSource) -> tuple[str, ...]:
    """What a user should know of the splits of clips of one's own; nothing for other data sets."""
    frames = source.source if isinstance(source, EstimatedJoints) else source
    return frames.about if isinstance(frames, CustomSource) else ()


def facts_to_dict(source: ClipSource) -> dict[str, Any]:
    """What a store of these clips keeps of their folder, besides classes and clips, in plain JSON types."""
    frames = source.source if isinstance(source, EstimatedJoints) else source
    if not isinstance(frames, CustomSource):
        raise ValueError("the source is not a data set of one's own")
    return {
        "skeleton": skeleton_to_dict(source.skeleton),
        "may_flip": frames.facts.may_flip,
        "sided_classes": list(frames.facts.sided_classes),
        "about": list(split_lines(source)),
    }
