"""The videos whose joints are estimated: files, folders of pictures, or the clips of a data set."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from starlab.pipelines.browse import open_place
from starlab.pipelines.clip import ClipSource, DataError, UnreadableClipError, short_digest
from starlab.pipelines.custom.listing import LIST, read_clips, videos_below
from starlab.pipelines.custom.pictures import picture_names, read_picture
from starlab.pipelines.decode import NO_SHRINK
from starlab.pipelines.ntu import VIDEO_ENDING
from starlab.pipelines.ntu_files import folders_below
from starlab.pipelines.ntu_names import parse_name
from starlab.pipelines.recording import VIDEO_ENDINGS, WHOLE, Cut, read_recording, stated
from starlab.pipelines.retry import MISSING, read_patiently
from starlab.pipelines.store import is_store
from starlab.pipelines.video import decode_video

_ANY_LENGTH = range(1, 2**31)
_END_BYTES = 2**16


class Clips(Protocol):
    """Videos by number; picklable and small."""

    @property
    def clip_ids(self) -> Sequence[str]:
        """The name of each video, sorted."""
        ...

    def digest(self, number: int) -> str:
        """Digest of the video's files, which changes when they do."""
        ...

    def size(self, number: int) -> int:
        """About how much work the video is; only compared with that of the others."""
        ...

    def length(self, number: int) -> int:
        """About how many frames the video has; 0 where that is not known."""
        ...

    def frames(self, number: int, part: range | None = None) -> Iterator[NDArray[np.uint8]]:
        """Every frame, uint8 (H, W, 3), RGB, all of one size; or those with the numbers `part` that there are.

        Raises:
            UnreadableClipError: the video is missing or damaged; raised where the damage is found.
            StorageError: the storage failed; nothing is known about the video.
        """
        ...


@dataclass(frozen=True, slots=True)
class Video:
    """A video file, or a folder of pictures, or a part of a file."""

    path: Path
    cut: Cut = WHOLE
    is_ntu: bool = False
    """Whether its frames are counted as for NTU RGB+D, whose files have no time stamps."""


class VideoFiles:
    """Video files and folders of pictures (`Clips`)."""

    def __init__(self, videos: Mapping[str, Video]) -> None:
        """Take the videos by the names that their clips have."""
        self.clip_ids = sorted(videos)
        self._videos = [videos[clip_id] for clip_id in self.clip_ids]

    def digest(self, number: int) -> str:
        """See `Clips.digest`: of a file its size, beginning and end; of a folder the names and sizes."""
        video = self._videos[number]
        try:
            return read_patiently(lambda: _digest(video), video.path)
        except MISSING:
            return ""

    def size(self, number: int) -> int:
        """See `Clips.size`: bytes."""
        path = self._videos[number].path
        try:
            return path.stat().st_size if path.is_file() else sum(item.stat().st_size for item in path.iterdir())
        except OSError:
            return 0

    def length(self, number: int) -> int:
        """See `Clips.length`: what the header of a whole video says."""
        video = self._videos[number]
        try:
            if video.path.is_dir():
                return len(picture_names(video.path))
            if video.is_ntu or not video.cut.is_whole:
                return 0
            rate, seconds = stated(video.path)
            return round(seconds * (rate or 0.0))
        except (OSError, ValueError):
            return 0

    def frames(self, number: int, part: range | None = None) -> Iterator[NDArray[np.uint8]]:
        """See `Clips.frames`. Frames before the part are decoded as well, but no pictures are made of them."""
        video = self._videos[number]
        try:
            yield from _of_one_size(_frames(video, part))
        except (*MISSING, ValueError) as error:
            raise UnreadableClipError(f"{video.path}: {error}") from error


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

    def size(self, number: int) -> int:
        """See `Clips.size`: frames."""
        return self._source.clips[number].num_frames

    def length(self, number: int) -> int:
        """See `Clips.length`: exactly."""
        return self._source.clips[number].num_frames

    def frames(self, number: int, part: range | None = None) -> Iterator[NDArray[np.uint8]]:
        """See `Clips.frames`. The frames of one clip are read at once."""
        row = self._source.clips[number]
        everything = range(row.num_frames)
        yield from self._source.read(row, everything if part is None else everything[part.start : part.stop], NO_SHRINK).frames


def open_clips(place: str, dataset: str | None = None) -> Clips:
    """The videos at a place.

    Clips have the names that the data set's reader gives them. In any other folder a clip has the name of its file without
    the ending, and the names of the folders before it where that is not enough (`custom.listing`).

    Args:
        place: A video, a folder with videos or folders of pictures at any depth, a data set's folder, or a prepared store.
        dataset: The data set's name, where the folder is one; None finds out.

    Raises:
        DataError: nothing is there, no video is in it, or a list in it has a mistake.
    """
    path = Path(place).expanduser()
    if "://" not in place and path.is_file():
        if not path.name.lower().endswith(VIDEO_ENDINGS):
            raise DataError(f"{place} is not a video that is read here ({', '.join(VIDEO_ENDINGS)})")
        return VideoFiles({path.name.rpartition(".")[0]: Video(path)})
    if "://" not in place and not path.is_dir():
        raise DataError(f"there is neither a video nor a folder at {place}")
    if is_store(place):
        return DataSetClips(open_place(place))
    if dataset == "custom" or (dataset is None and (path / LIST).is_file()):
        return VideoFiles({clip.clip_id: Video(path / clip.path, clip.cut) for clip in read_clips(path)})
    if dataset is None or dataset.startswith(("ntu", "synthetic_ntu")):
        ntu = folders_below(path, VIDEO_ENDING)
        if ntu and all(_is_ntu(clip_id) for clip_id in ntu):
            return VideoFiles(
                {clip_id: Video(path / below / f"{clip_id}{VIDEO_ENDING}", is_ntu=True) for clip_id, below in ntu.items()}
            )
    if dataset is None and not ((path / "labels").is_dir() and (path / "frames").is_dir()):
        return VideoFiles(_named(path))
    return DataSetClips(open_place(place, dataset))


def _named(root: Path) -> dict[str, Video]:
    found = videos_below(root)
    if not found:
        raise DataError(f"no video ({', '.join(VIDEO_ENDINGS)}) and no folder of pictures below {root}")
    short = Counter(_without_ending(PurePosixPath(path).name) for path in found)
    unique = len(short) == len(found)
    videos: dict[str, Video] = {}
    for path in found:
        name = _without_ending(PurePosixPath(path).name if unique else path.replace("/", "__"))
        if name in videos:
            raise DataError(f"{videos[name].path} and {root / path} would both be clip {name}: rename one of the two")
        videos[name] = Video(root / path)
    return videos


def _without_ending(name: str) -> str:
    return name[: -len(PurePosixPath(name).suffix)] if name.lower().endswith(VIDEO_ENDINGS) else name


def _is_ntu(clip_id: str) -> bool:
    try:
        parse_name(clip_id)
    except ValueError:
        return False
    return True


def _digest(video: Video) -> str:
    cut = video.cut.start_seconds, video.cut.end_seconds
    if video.path.is_dir():
        sizes = {name: (video.path / name).stat().st_size for name in picture_names(video.path)}
        return short_digest(*sorted(sizes.items()))
    with video.path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(_END_BYTES)
        file.seek(max(0, size - _END_BYTES))
        return short_digest(size, head, file.read(_END_BYTES), *cut)


def _frames(video: Video, part: range | None) -> Iterator[NDArray[np.uint8]]:
    if video.path.is_dir():
        names = picture_names(video.path)
        yield from (
            read_picture(video.path / name, NO_SHRINK)[1] for name in (names if part is None else names[part.start : part.stop])
        )
        return
    if video.is_ntu:
        numbered = decode_video(video.path, _ANY_LENGTH, NO_SHRINK)
    else:
        numbered = read_recording(video.path, None, NO_SHRINK, only=part, cut=video.cut)
    for number, frame in numbered:
        if part is None or number in part:
            yield frame
        if part is not None and number + 1 == part.stop:
            return  # what comes behind it is another task's


def _of_one_size(frames: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """The frames; refuses a video without any, and one whose size changes."""
    first: tuple[int, ...] | None = None
    for frame in frames:
        first = first or frame.shape
        if frame.shape != first:
            raise ValueError(f"frames of different sizes: {first[1]}×{first[0]} and {frame.shape[1]}×{frame.shape[0]}")
        yield frame
    if first is None:
        raise ValueError("it has no frame")
