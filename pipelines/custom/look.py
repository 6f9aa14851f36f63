"""`starlab data init`: looks at a folder of videos, and writes its list, its settings and a first experiment."""

from __future__ import annotations

import csv
import io
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from starlab.pipelines.clip import DataError
from starlab.pipelines.custom.annotations import PICKLE_ENDINGS, convert_joints
from starlab.pipelines.custom.description import DESCRIPTION, SKELETONS, describe
from starlab.pipelines.custom.experiment import experiment_name, experiment_text
from starlab.pipelines.custom.listing import LIST, ListedClip, read_clips, videos_below
from starlab.pipelines.custom.source import open_custom, split_lines
from starlab.pipelines.recording import About, look_at
from starlab.pipelines.retry import MISSING

JOINTS = "joints.parquet"
SECONDS_BETWEEN_LINES = 10.0
_COLUMNS = ("path", "label", "split", "subject", "clip_id", "frames")


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a folder has, one entry per video or folder of pictures."""

    videos: dict[str, About | str]
    """By path: what it is, or why it cannot be read."""
    pictures: dict[str, int]
    """Folders of pictures, and how many each has."""

    @property
    def readable(self) -> dict[str, About]:
        """The videos that can be read."""
        return {path: about for path, about in self.videos.items() if isinstance(about, About)}

    @property
    def bad(self) -> dict[str, str]:
        """The other videos, and why."""
        return {path: about for path, about in self.videos.items() if isinstance(about, str)}


def init_folder(root: Path, say: Callable[[str], None]) -> Path | None:
    """Decode everything in a folder once, then write `clips.csv`, `data.yaml` and an experiment where they are not there yet.

    Args:
        root: The folder.
        say: Receives lines of text for the user.

    Returns:
        The experiment's file; None where the labels have to be filled in first.

    Raises:
        DataError: no folder, nothing in it that can be read, or a mistake in the files that are there.
    """
    if not root.is_dir():
        raise DataError(f"no folder at {root}: name the one that holds your videos")
    listed = read_clips(root) if (root / LIST).is_file() else None
    paths = videos_below(root) if listed is None else sorted({clip.path for clip in listed if clip.cut.is_whole})
    if not paths and listed is None:
        raise DataError(f"{root} has no video and no folder of pictures in it or below")
    found = _look_at_all(root, paths, say)
    for line in _lines(root, found):
        say(line)
    if paths and not found.readable and not found.pictures:
        raise DataError(f"none of the {len(paths)} videos of {root} can be read")
    if listed is None:
        clips = _labelled(root)
        if clips is None:
            _write(root / LIST, _list_text(_unlabelled(found), found), say)
            say(f"labels   fill in the column label of {root / LIST}, then: starlab data init {root}")
            say("         (or move the videos into one folder per class and remove the list)")
            return None
        _write(root / LIST, _list_text([clip for clip in clips if clip.path not in found.bad], found), say)
    else:
        say(f"kept     {root / LIST}: {len(listed)} clips")
    if not (root / DESCRIPTION).is_file():
        _write(root / DESCRIPTION, _description_text(root, say), say)
    else:
        say(f"kept     {root / DESCRIPTION}")
    return _write_experiment(root, say)


def _look_at_all(root: Path, paths: list[str], say: Callable[[str], None]) -> Found:
    def look(path: str) -> About | str:
        try:
            return look_at(root / path)
        except (*MISSING, ValueError) as error:
            return str(error)

    videos = [path for path in paths if not (root / path).is_dir()]
    folders = [path for path in paths if (root / path).is_dir()]
    looked: dict[str, About | str] = {}
    began = said = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for path, about in zip(videos, pool.map(look, videos), strict=True):
            looked[path] = about
            if time.monotonic() - said > SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                left = (said - began) / len(looked) * (len(videos) - len(looked))
                say(f"looking  {len(looked):,}/{len(videos):,} videos  {left / 60:.1f} minutes left")
    return Found(videos=looked, pictures={path: len(list((root / path).iterdir())) for path in folders})


def _lines(root: Path, found: Found) -> Iterator[str]:
    readable = found.readable
    parts = [f"{len(readable)} of {len(found.videos)} videos can be read"] if found.videos else []
    parts += [f"{len(found.pictures)} folders of pictures"] if found.pictures else []
    yield f"found    {root}: {', '.join(parts)}"
    if readable:
        about = list(readable.values())
        lengths = sorted(one.num_frames for one in about)
        sizes = Counter(f"{one.width}×{one.height}" for one in about).most_common(3)
        codecs = Counter(one.codec for one in about).most_common(4)
        named = ", ".join(f"{size} ({count})" for size, count in sizes)
        yield f"videos   {lengths[0]} to {lengths[-1]} frames, median {statistics.median(lengths):.0f}; {named}; " + ", ".join(
            f"{codec} ({count})" for codec, count in codecs
        )
        marks = Counter(mark for one in about for mark in one.marks if mark != "no sound")
        if marks:
            yield f"         {', '.join(f'{count} {mark}' for mark, count in marks.items())}: shown as a player does"
    for path, reason in sorted(found.bad.items()):
        yield f"left out {path}: {reason}"


def _labelled(root: Path) -> list[ListedClip] | None:
    """Return the clips, each with its folder as its class, or None if there is not one folder per class."""
    try:
        return read_clips(root)
    except DataError:
        if any(path.is_dir() for path in root.iterdir()) and all("/" in path for path in videos_below(root)):
            raise
        return None


def _unlabelled(found: Found) -> list[tuple[str, str, str, str]]:
    return [(path, "", "", "") for path in sorted([*found.readable, *found.pictures])]


def _list_text(clips: list[ListedClip] | list[tuple[str, str, str, str]], found: Found) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for clip in clips:
        path, label, split, name = clip if isinstance(clip, tuple) else (clip.path, clip.label, clip.split or "", clip.clip_id)
        about = found.readable.get(path)
        writer.writerow((path, label, split, "", name, about.num_frames if about else ""))
    return text.getvalue()


def _description_text(root: Path, say: Callable[[str], None]) -> str:
    lines = ["# What this folder's videos are; docs/your_own_data.md describes every key."]
    joints = _joints(root, say)
    if joints is None:
        lines += [
            "# No joints were found, so models read pixels alone (model.modality: rgb).",
            "# joints: joints.parquet",
            f"# skeleton: coco            # or {', '.join(name for name in SKELETONS if name != 'coco')}, or one of your own",
        ]
    else:
        name, skeleton = joints
        lines += [f"joints: {name}", f"skeleton: {skeleton or 'FILL_IN'}"]
    sided = describe(root).facts.sided_classes
    lines += [
        "max_bodies: 1",
        "flip: true                 # whether a mirrored clip could be real",
        f"sided_classes: {json.dumps(sided, ensure_ascii=False)}    # classes that name a side: none is mirrored",
        "test_fraction: 0.2         # of the clips whose list names no split: whole subjects, else clip by clip",
        "split_seed: 0",
    ]
    return "\n".join(lines) + "\n"


def _joints(root: Path, say: Callable[[str], None]) -> tuple[str, str | None] | None:
    """The file of joints and its skeleton; a pickle or JSON files are made into such a file."""
    path = root / JOINTS
    if not path.is_file():
        others = sorted(path for path in root.iterdir() if path.suffix.lower() in PICKLE_ENDINGS)
        others += sorted(folder for folder in root.iterdir() if folder.is_dir() and next(folder.glob("*.json"), None))
        if not others:
            return None
        if len(others) > 1:
            raise DataError(
                f"{root} has joints in {others[0].name} and in {others[1].name}: make {JOINTS} of one: starlab data joints"
            )
        made = convert_joints(others[0], path)
        say(f"joints   {others[0].name} → {path}: {made.clips} clips, {made.num_joints} joints, up to {made.max_bodies} people")
    try:
        with pq.ParquetFile(path) as file:
            first = next(file.iter_batches(batch_size=1, columns=["num_frames", "num_bodies", "joints"])).to_pylist()[0]
        count = len(first["joints"]) // (3 * first["num_frames"] * first["num_bodies"])
    except (OSError, pa.ArrowException, KeyError, ZeroDivisionError, StopIteration) as error:
        raise DataError(f"{path} is not a file of joints: {error}") from None
    known = {len(skeleton.joints): skeleton.name for skeleton in SKELETONS.values()}.get(count)
    say(f"joints   {path.name}: {count} joints, " + (f"taken for {known}" if known else "no skeleton that is known"))
    return path.name, known


def _write_experiment(root: Path, say: Callable[[str], None]) -> Path:
    description = describe(root)
    path = root / f"{experiment_name(root)}.yaml"
    if path.is_file():
        say(f"kept     {path}")
    else:
        _write(path, experiment_text(root, description), say)
    counts = Counter(clip.label for clip in description.clips)
    say(f"classes  {', '.join(f'{label} ({count})' for label, count in sorted(counts.items()))}")
    source = open_custom(root)
    for line in split_lines(source):
        say(f"split    {line}")
    for clip in source.skipped:
        say(f"left out {clip.clip_id}: {clip.reason}")
    if description.joints is None:
        say("joints   none: the experiment reads pixels alone (model.modality: rgb)")
    return path


def _write(path: Path, text: str, say: Callable[[str], None]) -> None:
    path.write_text(text, encoding="utf-8")
    say(f"wrote    {path}")
