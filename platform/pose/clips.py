"""The videos whose joints are estimated: files in a folder, or the clips of a data set."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from starlab.pipelines.browse import open_place
from starlab.pipelines.clip import SYSTEM_NAMES, ClipSource, DataError, UnreadableClipError, short_digest
from starlab.pipelines.ntu import VIDEO_ENDING
from starlab.pipelines.ntu_files import folders_below
from starlab.pipelines.ntu_names import parse_name
from starlab.pipelines.retry import MISSING, read_patiently
from starlab.pipelines.store import is_store
from starlab.pipelines.video import CONTAINERS, decode_video

ANY_LENGTH = range(1, 2**31)
FULL_SIZE_PX = 2**16
"""A short side that no video exceeds, so that frames come as they are."""
_END_BYTES = 2**16


class Clips(Protocol):
    """Videos by number; picklable and small."""

    clip_ids: Sequence[str]
    """The name of each video, sorted."""

    def digest(self, number: int) -> str:
        """Digest of the video's file, which changes when the video does."""
        ...

    def num_bytes(self, number: int) -> int:
        """About how much work the video is, in bytes or in frames; only compared with that of the others."""
        ...

    def frames(self, number: int) -> Iterator[NDArray[np.uint8]]:
        """Every frame, uint8 (H, W, 3), RGB, all of one size.

        Raises:
            UnreadableClipError: the video is missing or damaged; raised where the damage is found.
            StorageError: the storage failed; nothing is known about the video.
        """
        ...


class VideoFiles:
    """Video files (`Clips`)."""

    def __init__(self, paths: dict[str, Path]) -> None:
        """Take the files by the names that their clips have."""
        self.clip_ids = sorted(paths)
        self._paths = [paths[clip_id] for clip_id in self.clip_ids]

    def digest(self, number: int) -> str:
        """See `Clips.digest`: size, beginning and end of the file."""
        path = self._paths[number]
        try:
            return read_patiently(lambda: _file_digest(path), path)
        except MISSING:
            return "missing"

    def num_bytes(self, number: int) -> int:
        """See `Clips.num_bytes`."""
        try:
            return self._paths[number].stat().st_size
        except OSError:
            return 0

    def frames(self, number: int) -> Iterator[NDArray[np.uint8]]:
        """See `Clips.frames`."""
        path = self._paths[number]
        try:
            for _, frame in decode_video(path, ANY_LENGTH, FULL_SIZE_PX):
                yield frame
        except (*MISSING, ValueError) as error:
            raise UnreadableClipError(f"{path}: {error}") from error


class DataSetClips:
    """The clips of a data set, or of a prepared store (`Clips`)."""

    def __init__(self, source: ClipSource) -> None:
        """Take every clip that the source can use."""
        self._source = source
        self.clip_ids = [row.clip_id for row in source.clips]

    def digest(self, number: int) -> str:
        """See `Clips.digest`."""
        row = self._source.clips[number]
        return row.digest or short_digest(self._source.fingerprint, row.clip_id)

    def num_bytes(self, number: int) -> int:
        """See `Clips.num_bytes`: the number of frames."""
        return self._source.clips[number].num_frames

    def frames(self, number: int) -> Iterator[NDArray[np.uint8]]:
        """See `Clips.frames`; the frames of one clip are read at once."""
        row = self._source.clips[number]
        yield from self._source.read(row, range(row.num_frames), FULL_SIZE_PX).frames


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(_END_BYTES)
        file.seek(max(0, size - _END_BYTES))
        return short_digest(size, head, file.read(_END_BYTES))


def open_clips(place: str, dataset: str | None = None) -> Clips:
    """The videos at a place.

    Args:
        place: A video file, a folder with video files at any depth, a data set's folder, or a prepared store.
        dataset: The data set's name, where the folder is one; None takes a folder for one if it looks like it.

    Raises:
        DataError: nothing is there, no video is in it, or two videos have the same name.
    """
    path = Path(place).expanduser()
    if "://" not in place and path.is_file():
        if path.suffix.lower() not in CONTAINERS:
            raise DataError(f"{place} is not a video that is read here: its name must end in {_endings()}")
        return VideoFiles({path.stem: path})
    if "://" not in place and not path.is_dir():
        raise DataError(f"no video and no folder at {place}")
    if is_store(place):
        return DataSetClips(open_place(place))
    if dataset is None and (videos := _videos_below(path)):
        return VideoFiles(videos)
    return DataSetClips(open_place(place, dataset))


def _videos_below(root: Path) -> dict[str, Path]:
    """The video files below a folder by the names of their clips: the path in the folder without its ending; of NTU's, the name."""
    ntu = {clip_id: root / folder / f"{clip_id}{VIDEO_ENDING}" for clip_id, folder in folders_below(root, VIDEO_ENDING).items()}
    if ntu and all(_is_ntu(clip_id) for clip_id in ntu):
        return ntu
    found: dict[str, Path] = {}
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(SYSTEM_NAMES))
        for name in sorted(files):
            path = Path(folder, name)
            if path.suffix.lower() not in CONTAINERS or name.startswith(SYSTEM_NAMES):
                continue
            clip_id = path.relative_to(root).with_suffix("").as_posix()
            if clip_id in found:
                raise DataError(f"{found[clip_id]} and {path} would both be clip {clip_id}: rename one of the two")
            found[clip_id] = path
    return found


def _is_ntu(clip_id: str) -> bool:
    try:
        parse_name(clip_id)
    except ValueError:
        return False
    return True


def _endings() -> str:
    return " or ".join(CONTAINERS)
