"""NTU RGB+D 60 and 120 as their authors ship them: `S001C001P001R001A001_rgb.avi` and `S001C001P001R001A001.skeleton`.

The archives unpack into folders of different names; any layout below one root works. The same code reads the folders that
generated/ntu.py writes. docs/data.md lists what the files hold, and their traps.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from starlab.pipelines.clip import (
    ClipRow,
    DataError,
    DecodedClip,
    EncodedClip,
    SkippedClip,
    UnreadableClipError,
    identity,
)
from starlab.pipelines.ntu_files import (
    MAX_LENGTH_DIFFERENCE,
    folders_below,
    listed_as_missing,
    look_at_clip,
)
from starlab.pipelines.ntu_names import NTU60_CLASSES, NTU60_SETUPS, NtuName, Protocol, parse_name
from starlab.pipelines.ntu_skeletons import pack_tracks, parse_skeleton
from starlab.pipelines.retry import MISSING, read_file, read_patiently
from starlab.pipelines.skeletons import NTU, Skeleton
from starlab.pipelines.video import decode_video

VIDEO_ENDING, SKELETON_ENDING = "_rgb.avi", ".skeleton"
MISSING_LISTS = ("NTU_RGBD_samples_with_missing_skeletons.txt", "NTU_RGBD120_samples_with_missing_skeletons.txt")
"""The authors' lists of clips to ignore; one at the root of the folder is read."""
SHORT_SIDE_PX = 256
"""Short side of the frames read, as in a prepared store, so that a model sees the same pixels from both."""
JPEG_QUALITY = 90
INDEX_THREADS = 16
"""More than the cores, because they mostly wait for the file system."""
EXPECTED_LAYOUT = f"expected S001C001P001R001A001{VIDEO_ENDING} and S001C001P001R001A001{SKELETON_ENDING} … in it or below"


class NtuSource:
    """The clips of an NTU RGB+D folder (`clip.ClipSource`); picklable, holds rows but no joints."""

    def __init__(
        self,
        root: Path | str,
        protocol: Protocol,
        classes: tuple[str, ...] = NTU60_CLASSES,
        setups: range = NTU60_SETUPS,
        missing_skeletons: Path | None = None,
        lengths: Mapping[str, int] | None = None,
    ) -> None:
        """List the folder, and read each skeleton's first line and the end of each video: they say how long the clip is.

        No video is decoded.

        Args:
            root: The folder with the files, at any depth up to `ntu_files.MAX_FOLDER_DEPTH`.
            protocol: The official split.
            classes: Names that begin with the action's number, "A001…"; files of other actions are ignored.
            setups: Setup numbers of the data set; files of other setups are ignored, so one NTU RGB+D 120 folder serves both.
            missing_skeletons: A list of clips to leave out; None takes the authors' lists (`MISSING_LISTS`) at the root.
                Without any list, such a clip is found when it is read.
            lengths: Frames of each clip by name, for joints from elsewhere: a clip then needs no skeleton file, and `read`
                returns joints of confidence 0.

        Raises:
            DataError: the folder is not there, holds a clip twice or no usable clip; the list names no clip. A single
                clip that cannot be used is listed in `skipped` instead.
        """
        self.root = Path(root)
        self.classes = classes
        self.skeleton: Skeleton = NTU
        self.max_bodies = 2
        if not self.root.is_dir():
            raise DataError(f"no folder at {self.root}: {EXPECTED_LAYOUT}")
        label_of = {int(name[1:4]): label for label, name in enumerate(classes)}
        videos, skeletons = (
            read_patiently(lambda ending=ending: folders_below(self.root, ending), self.root)  # type: ignore[misc]
            for ending in (VIDEO_ENDING, SKELETON_ENDING)
        )
        listed = listed_as_missing(self.root, missing_skeletons, MISSING_LISTS)
        self._reads_joints = lengths is None
        without = {} if lengths is None else {clip_id: lengths[clip_id] for clip_id in lengths if clip_id not in skeletons}

        wanted, skipped = self._sort_out(videos, {*skeletons, *without}, label_of, setups, listed)

        def look(clip_id: str) -> tuple[int, str]:
            video = self._path(videos[clip_id], clip_id, VIDEO_ENDING)
            if clip_id in without:
                return look_at_clip(video, without[clip_id])
            return look_at_clip(video, self._path(skeletons[clip_id], clip_id, SKELETON_ENDING))

        with ThreadPoolExecutor(INDEX_THREADS) as pool:
            looked = dict(zip(wanted, pool.map(look, wanted), strict=True))
        skipped |= {clip_id: found for clip_id, (num_frames, found) in looked.items() if num_frames == 0}
        self.skipped = tuple(SkippedClip(clip_id=clip_id, reason=skipped[clip_id]) for clip_id in sorted(skipped))
        self.clips = tuple(
            ClipRow(
                clip_id=clip_id,
                label=label_of[name.action],
                split=name.split(protocol),
                subject=f"P{name.performer:03d}",
                num_frames=looked[clip_id][0],
                digest=looked[clip_id][1],
            )
            for clip_id, name in wanted.items()
            if clip_id not in skipped
        )
        if not self.clips:
            hint = (
                f"; the first, {self.skipped[0].clip_id}: {self.skipped[0].reason}" if self.skipped else f": {EXPECTED_LAYOUT}"
            )
            raise DataError(f"no usable clip of {len(classes)} actions below {self.root}{hint}")
        self.fingerprint = identity(classes, self.clips)
        # A name per folder, not a path per file: this is pickled for every task.
        self._folders = tuple(sorted({*videos.values(), *skeletons.values()}))
        number = {folder: place for place, folder in enumerate(self._folders)}
        places = [[number[videos[row.clip_id]], number[skeletons.get(row.clip_id, videos[row.clip_id])]] for row in self.clips]
        self._places = np.array(places, np.uint16)

    def read(self, row: ClipRow, frame_indices: Sequence[int], min_side_px: int) -> DecodedClip:
        """Decode the whole video and keep the frames asked for, with their joints of at most two people.

        See `clip.ClipSource.read`. Frames come at short side `SHORT_SIDE_PX`, or `min_side_px` if that is more.

        Raises:
            UnreadableClipError: the video or the skeleton is missing, damaged or of another length than when it was
                indexed, or no person is seen in the whole clip; the message names the file.
            StorageError: the storage failed; nothing is known about the clip.
        """
        joints, _, in_skeleton = self._joints(row)
        frames = dict(self._frames(row, in_skeleton, max(SHORT_SIDE_PX, min_side_px), set(frame_indices)))
        return DecodedClip([frames[index] for index in frame_indices], joints[np.asarray(frame_indices)])

    def encode(self, row: ClipRow, short_side_px: int) -> EncodedClip:
        """Decode every frame, shrink it and make it a JPEG of quality 90.

        See `clip.ClipSource.encode`.

        Raises:
            UnreadableClipError: as `read`.
        """
        joints, joints_3d, in_skeleton = self._joints(row)
        jpegs, short_side, in_video = [], 0, 0
        for index, frame in self._frames(row, in_skeleton, short_side_px, None):
            if index < row.num_frames:
                jpegs.append(simplejpeg.encode_jpeg(frame, quality=JPEG_QUALITY, colorsubsampling="420"))
            short_side, in_video = min(frame.shape[:2]), index + 1
        as_read = short_side_px == SHORT_SIDE_PX or short_side < min(short_side_px, SHORT_SIDE_PX + 1)
        note = None if in_video == in_skeleton else f"video of {in_video} frames, skeleton of {in_skeleton}"
        return EncodedClip(tuple(jpegs), joints, joints_3d, None if as_read else short_side, note)

    def paths(self, row: ClipRow) -> tuple[Path, Path]:
        """The clip's video and its skeleton file."""
        index = bisect_left(self.clips, row.clip_id, key=lambda clip: clip.clip_id)
        video, skeleton = (self._folders[place] for place in self._places[index])
        paths = (self._path(video, row.clip_id, VIDEO_ENDING), self._path(skeleton, row.clip_id, SKELETON_ENDING))
        return Path(paths[0]), Path(paths[1])

    def _sort_out(
        self,
        videos: dict[str, str],
        skeletons: set[str],
        label_of: dict[int, int],
        setups: range,
        listed: dict[str, str],
    ) -> tuple[dict[str, NtuName], dict[str, str]]:
        """The names of the clips that have both files, sorted, and why each of the others is left out."""
        wanted: dict[str, NtuName] = {}
        skipped: dict[str, str] = {}
        for clip_id in sorted(videos.keys() | skeletons):
            try:
                name = parse_name(clip_id)
            except ValueError as error:
                skipped[clip_id] = str(error)
                continue
            if name.action not in label_of or name.setup not in setups:
                continue
            if clip_id in listed:
                skipped[clip_id] = f"{listed[clip_id]} lists it as a clip without a usable skeleton"
            elif clip_id not in videos:
                skipped[clip_id] = f"no video: {clip_id}{VIDEO_ENDING} is not below {self.root}"
            elif clip_id not in skeletons:
                skipped[clip_id] = f"no skeleton: {clip_id}{SKELETON_ENDING} is not below {self.root}"
            else:
                wanted[clip_id] = name
        return wanted, skipped

    def _path(self, folder: str, clip_id: str, ending: str) -> str:
        return f"{self.root}/{folder}/{clip_id}{ending}"

    def _joints(self, row: ClipRow) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
        """The joints in the picture and in metres, and the skeleton's number of frames, which may exceed the clip's."""
        if not self._reads_joints:
            shape = (row.num_frames, self.max_bodies, len(self.skeleton.joints), 3)
            return np.zeros(shape, np.float32), np.zeros(shape, np.float32), row.num_frames
        path = self.paths(row)[1]
        try:
            skeleton = parse_skeleton(read_file(path))
        except (*MISSING, ValueError) as error:
            raise UnreadableClipError(f"{path}: {error}") from error
        if not 0 <= skeleton.num_frames - row.num_frames <= MAX_LENGTH_DIFFERENCE:
            raise UnreadableClipError(f"{path}: {skeleton.num_frames} frames, {row.num_frames} when it was indexed")
        joints, joints_3d = pack_tracks(skeleton, self.max_bodies)
        if not joints[..., 2].any():
            raise UnreadableClipError(f"{path}: nobody is seen in any of its {skeleton.num_frames} frames (a missing skeleton)")
        return joints[: row.num_frames], joints_3d[: row.num_frames], skeleton.num_frames

    def _frames(
        self, row: ClipRow, in_skeleton: int, short_side_px: int, only: set[int] | None
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        path = self.paths(row)[0]
        # The clip ends with the shorter of the two.
        most = row.num_frames + (MAX_LENGTH_DIFFERENCE if in_skeleton == row.num_frames else 0)
        try:
            yield from decode_video(path, range(row.num_frames, most + 1), short_side_px, only)
        except (*MISSING, ValueError) as error:
            raise UnreadableClipError(f"{path}: {error}") from error
