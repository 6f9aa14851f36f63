"""The clips of a folder: by `clips.csv`, or one folder per class. docs/your_own_data.md describes both.

Every mistake of a list is an error that names its line: nothing is guessed, and no clip is left out silently.
"""

from __future__ import annotations

import csv
import difflib
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from starlab.pipelines.clip import SYSTEM_NAMES, DataError
from starlab.pipelines.recording import VIDEO_ENDINGS, WHOLE, Cut

LIST = "clips.csv"
COLUMNS = ("path", "label", "split", "subject", "start", "end", "clip_id", "frames")
MAX_DEPTH = 5
"""How deep below a class's folder videos are searched."""
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedClip:
    """One clip as it is listed."""

    clip_id: str
    path: str
    """Of the video, or of the folder of pictures; relative to the data set's folder, or absolute."""
    label: str
    split: str | None
    """"train", "validation" or "test"; None where nothing says so."""
    subject: str | None
    cut: Cut
    frames: int | None
    """The number of frames, where the list says it; else they are counted."""
    line: int
    """Line number in the list, or 0 without a list."""


def is_custom(root: Path) -> bool:
    """Whether a folder looks like a data set of one's own: it has a list, or folders with videos or pictures."""
    if (root / LIST).is_file():
        return True
    return root.is_dir() and next(_in_folders(root), None) is not None


def read_clips(root: Path) -> list[ListedClip]:
    """The clips of a folder, sorted by clip id.

    Raises:
        DataError: there is neither a list nor a folder per class, or the list has a mistake; says which line.
    """
    if not root.is_dir():
        raise DataError(f"no folder at {root}: name the one that holds your videos")
    path = root / LIST
    clips = _read_list(path) if path.is_file() else _by_folders(root)
    where = str(path) if path.is_file() else str(root)
    _check_labels(clips, where)
    _check_twice(clips, where)
    clips = _named(clips, where)
    _check_files(clips, root, where)
    return sorted(clips, key=lambda clip: clip.clip_id)


def videos_below(root: Path) -> list[str]:
    """Videos, and folders that hold pictures, below a folder: relative paths, sorted."""
    found: list[str] = []
    for folder, folders, files in os.walk(root, followlinks=True):
        if len(Path(folder).relative_to(root).parts) >= MAX_DEPTH:
            folders.clear()  # a link may lead back up
        folders[:] = sorted(name for name in folders if not name.startswith(SYSTEM_NAMES))
        here = Path(folder).relative_to(root)
        names = [name for name in files if not name.startswith(SYSTEM_NAMES)]
        videos = [name for name in names if name.lower().endswith(VIDEO_ENDINGS)]
        found += [(here / name).as_posix() for name in videos]
        if not videos and folder != str(root) and sum(name.lower().endswith(IMAGE_ENDINGS) for name in names) > 1:
            found.append(here.as_posix())
            folders.clear()
    return sorted(found)


def _read_list(path: Path) -> list[ListedClip]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    rows = csv.DictReader(text.splitlines(), strict=True)
    try:
        names = [name.strip() for name in rows.fieldnames or ()]
        rows.fieldnames = names
        _check_columns(path, names)
        clips = [_clip(row, f"{path}, line {rows.line_num}", rows.line_num) for row in rows]
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: not CSV: {error}") from None
    if not clips:
        raise DataError(f"{path} lists no clip")
    if (unsplit := [clip for clip in clips if clip.split is None]) and len(unsplit) < len(clips):
        raise DataError(
            f"{path}, line {unsplit[0].line}: no split, but other lines have one: give it for every clip, or for none"
        )
    return clips


def _check_columns(path: Path, names: Sequence[str]) -> None:
    for name in names:
        near = difflib.get_close_matches(name.lower(), COLUMNS, n=1, cutoff=0.75)
        if name not in COLUMNS and near:
            raise DataError(f"{path}: unknown column '{name}'; did you mean '{near[0]}'?")
    for name in ("path", "label"):
        if name not in names:
            separator = " (columns are separated by commas)" if any(c in "".join(names) for c in ";\t") else ""
            raise DataError(f"{path}: no column '{name}'{separator}; its first line names the columns: {', '.join(COLUMNS)}")
    if len(set(names)) < len(names):
        raise DataError(f"{path}: a column is named twice: {', '.join(names)}")


def _clip(row: dict[str, str | None], where: str, line: int) -> ListedClip:
    if None in row or None in row.values():
        raise DataError(
            f"{where}: it does not have as many values as the first line has names; quote a value with a comma in it"
        )
    given = {name: (row.get(name) or "").strip() for name in COLUMNS}
    for name in ("path", "label"):
        if not given[name]:
            raise DataError(f"{where}: no {name}")
    split = given["split"].lower()
    if split and split not in SPLIT_NAMES:
        raise DataError(f"{where}: split is {given['split']!r}; it must be train, validation or test")
    cut = _cut(given["start"], given["end"], where)
    frames = given["frames"]
    if frames and not (frames.isdigit() and int(frames)):
        raise DataError(f"{where}: frames is {frames!r}; it must be a whole number, 1 or more, or be left out")
    return ListedClip(
        clip_id=given["clip_id"],
        path=PurePosixPath(given["path"]).as_posix(),
        label=given["label"],
        split=SPLIT_NAMES.get(split),
        subject=given["subject"] or None,
        cut=cut,
        frames=int(frames) if frames else None,
        line=line,
    )


def _cut(start: str, end: str, where: str) -> Cut:
    cut = Cut(_seconds(start, "start", where) or 0.0, _seconds(end, "end", where) or math.inf)
    if cut.start_seconds >= cut.end_seconds:
        raise DataError(
            f"{where}: start is {start}, which is not before end, {end}: both are seconds from the video's beginning"
        )
    return cut


def _seconds(text: str, name: str, where: str) -> float | None:
    """Seconds of "75.5", "1:15.5" or "0:01:15.5"."""
    if not text:
        return None
    try:
        parts = [float(part) for part in text.split(":")]
        seconds = sum(part * 60.0**place for place, part in enumerate(reversed(parts)))
        if len(parts) > 3 or not all(math.isfinite(part) and part >= 0 for part in parts):
            raise ValueError
    except ValueError:
        raise DataError(
            f"{where}: {name} is {text!r}; it must be seconds, such as 75.5, or minutes and seconds, 1:15.5"
        ) from None
    return seconds


def _by_folders(root: Path) -> list[ListedClip]:
    clips = [
        ListedClip(clip_id="", path=path, label=label, split=split, subject=None, cut=WHOLE, frames=None, line=0)
        for path, label, split in _in_folders(root)
    ]
    if not clips:
        raise DataError(
            f"{root} has no {LIST} and no folder per class with videos ({', '.join(VIDEO_ENDINGS)}) in it: "
            f"starlab data init {root} looks at what is there"
        )
    splits = {clip.split for clip in clips}
    if "train" in splits and "test" not in splits:  # train and validation alone: the latter is what is tested on
        clips = [replace(clip, split="test") if clip.split == "validation" else clip for clip in clips]
    return clips


def _in_folders(root: Path) -> Iterator[tuple[str, str, str | None]]:
    """Path, label and split of every video, and every folder of pictures, in a folder per class."""
    folders = _folders(root)
    split_of = {folder.name: SPLIT_NAMES.get(folder.name.lower()) for folder in folders}
    if folders and all(split_of.values()):
        classes = [(label, split_of[folder.name]) for folder in folders for label in _folders(folder)]
    else:
        classes = [(folder, None) for folder in folders]
    for folder, split in classes:
        for path in videos_below(folder):
            yield (folder / path).relative_to(root).as_posix(), folder.name, split


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(SYSTEM_NAMES))


def _check_labels(clips: Iterable[ListedClip], where: str) -> None:
    """Refuse a label that is spelt in two ways, which would be two classes."""
    spellings: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for clip in clips:
        spellings[" ".join(clip.label.casefold().replace("_", " ").replace("-", " ").split())][clip.label] += 1
    for found in spellings.values():
        if len(found) > 1:
            named = " and ".join(f"'{label}' ({count} clips)" for label, count in found.most_common())
            raise DataError(f"{where}: a label is spelt in two ways: {named}; spell it in one")
    if len(spellings) < 2:
        raise DataError(
            f"{where}: {len(spellings)} class ('{next(iter(spellings.values())).most_common(1)[0][0]}'); give 2 or more"
        )


def _check_twice(clips: Sequence[ListedClip], where: str) -> None:
    """Refuse a clip that is listed twice, and a part of a video that is in two splits."""
    by_path: defaultdict[str, list[ListedClip]] = defaultdict(list)
    for clip in clips:
        for other in by_path[clip.path]:
            overlap = clip.cut.start_seconds < other.cut.end_seconds and other.cut.start_seconds < clip.cut.end_seconds
            lines = f"lines {other.line} and {clip.line}"
            if overlap and clip.split != other.split:
                raise DataError(
                    f"{where}, {lines}: {clip.path} is in two splits, {other.split} and {clip.split}: keep one of them"
                )
            if clip.cut == other.cut:
                raise DataError(f"{where}, {lines}: {clip.path} is listed twice")
        by_path[clip.path].append(clip)


def _named(clips: Sequence[ListedClip], where: str) -> list[ListedClip]:
    """Give a name to the clips that have none: the file's, with its folders where that is not enough."""
    short = [clip.clip_id or _name(PurePosixPath(clip.path).name, clip.cut) for clip in clips]
    long = [clip.clip_id or _name(clip.path.strip("/").replace("/", "__"), clip.cut) for clip in clips]
    names = short if len(set(short)) == len(short) else long
    first: dict[str, ListedClip] = {}
    for name, clip in zip(names, clips, strict=True):
        if any(c in "/\\" or not c.isprintable() for c in name):
            raise DataError(f"{where}, line {clip.line}: clip_id is {name!r}; it must have no slash and no control character")
        if name in first:
            lines = f"lines {first[name].line} and {clip.line}"
            splits = {first[name].split, clip.split}
            two = " in two splits" if len(splits) > 1 else ""
            raise DataError(f"{where}, {lines}: clip_id {name!r} is given twice{two}; give every clip one of its own")
        first[name] = clip
    return [replace(clip, clip_id=name) for name, clip in zip(names, clips, strict=True)]


def _name(path: str, cut: Cut) -> str:
    name = path[: -len(PurePosixPath(path).suffix)] if path.lower().endswith(VIDEO_ENDINGS) else path
    if cut.is_whole:
        return name
    return f"{name}_{cut.start_seconds:g}-{'' if cut.end_seconds == math.inf else f'{cut.end_seconds:g}'}"


def _check_files(clips: Sequence[ListedClip], root: Path, where: str) -> None:
    missing = [clip for clip in clips if not (root / clip.path).exists()]
    if missing:
        first = min(missing, key=lambda clip: clip.line)
        more = f" ({len(missing)} of {len(clips)} clips are missing)" if len(missing) > 1 else ""
        raise DataError(f"{where}, line {first.line}: there is no {root / first.path}{more}; paths are relative to {root}")
    for clip in clips:
        path = root / clip.path
        if path.is_dir():
            if not clip.cut.is_whole:
                raise DataError(
                    f"{where}, line {clip.line}: {clip.path} is a folder of pictures, which has no start and no end"
                )
        elif not clip.path.lower().endswith(VIDEO_ENDINGS):
            raise DataError(
                f"{where}, line {clip.line}: {clip.path} is neither a folder of pictures nor a video that is read here "
                f"({', '.join(VIDEO_ENDINGS)})"
            )
