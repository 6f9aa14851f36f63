"""Finding the files of NTU RGB+D, and what the index learns of a clip without decoding its video."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from starlab.pipelines.clip import SYSTEM_NAMES, DataError, short_digest
from starlab.pipelines.containers import frames_in_avi_index
from starlab.pipelines.ntu_names import names_in
from starlab.pipelines.ntu_skeletons import read_num_frames
from starlab.pipelines.retry import MISSING, read_patiently

MAX_FOLDER_DEPTH = 3
"""How deep below the root files are searched."""
HEAD_BYTES, TAIL_BYTES = 4096, (8192, 2**20)
"""How much of a file's two ends is read for the index. 8 KiB of a video list 500 frames, more than any of the authors' has;
where that shows no list, more is read."""
MAX_LENGTH_DIFFERENCE = 2
"""A video and its skeleton may differ by so many frames; the frames that both have are used."""


def folders_below(root: Path, ending: str) -> dict[str, str]:
    """Clip name → folder, relative to the root, of every file with that ending."""
    found: dict[str, str] = {}
    for folder, folders, files in os.walk(root, onerror=_refuse_unless_missing, followlinks=True):
        relative = os.path.relpath(folder, root)
        if relative.count(os.sep) + 1 >= MAX_FOLDER_DEPTH:
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(SYSTEM_NAMES)]
        for file in files:
            if file.endswith(ending) and not file.startswith(SYSTEM_NAMES):
                clip_id = file.removesuffix(ending)
                if clip_id in found:
                    raise DataError(f"{root} holds {file} twice, in {found[clip_id]} and in {relative}: keep one of the two")
                found[clip_id] = relative
    return found


def _refuse_unless_missing(error: OSError) -> None:
    if not isinstance(error, MISSING):
        raise error


def look_at_clip(video: str, skeleton: str | int) -> tuple[int, str]:
    """The number of frames that both files have and a digest of them; or 0 and why the clip cannot be used.

    `skeleton` is a file, or the number of frames where there is none.
    """
    path = video
    try:
        video_bytes, *video_ends = read_patiently(lambda: file_ends(video, TAIL_BYTES[0]), video)
        if video_bytes == 0:
            return 0, f"{video}: empty"
        in_video = frames_in_avi_index(video_ends[1])
        if in_video is None and video_bytes > TAIL_BYTES[0]:
            in_video = frames_in_avi_index(read_patiently(lambda: file_ends(video, TAIL_BYTES[1]), video)[2])
        if isinstance(skeleton, int):
            in_skeleton, skeleton_bytes, skeleton_ends = skeleton, 0, [b"", b""]
        else:
            path = skeleton
            skeleton_bytes, *skeleton_ends = read_patiently(lambda: file_ends(skeleton, HEAD_BYTES), skeleton)
            in_skeleton = read_num_frames(skeleton_ends[0])
    except (*MISSING, ValueError) as error:
        return 0, f"{path}: {error}"
    if in_video is None or abs(in_video - in_skeleton) > MAX_LENGTH_DIFFERENCE:
        in_video = in_skeleton  # where that is wrong, reading the clip finds it
    return min(in_video, in_skeleton), short_digest(video_bytes, *video_ends, skeleton_bytes, *skeleton_ends)


def file_ends(path: str, tail_bytes: int) -> tuple[int, bytes, bytes]:
    """The size of a file, its first bytes and its last ones."""
    with open(path, "rb") as file:  # noqa: PTH123 (once per clip of 114,480)
        head = file.read(HEAD_BYTES)
        size = os.fstat(file.fileno()).st_size
        if size <= len(head):
            return size, head, head
        file.seek(max(0, size - tail_bytes))
        return size, head, file.read(tail_bytes)


def listed_as_missing(root: Path, given: Path | None, usual: Sequence[str]) -> dict[str, str]:
    """Clip name → name of the list that has it: of the given one, else of those of the usual names that are at the root."""
    paths = [given] if given is not None else [path for name in usual if (path := root / name).is_file()]
    listed: dict[str, str] = {}
    for path in paths:
        try:
            names = names_in(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"the list of missing skeletons {path} cannot be read: {error}") from None
        if not names:
            raise DataError(
                f"the list of missing skeletons {path} holds no name of the form S001C002P003R002A013 on a line of its own"
            )
        listed |= dict.fromkeys(names, path.name)
    return listed
