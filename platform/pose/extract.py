"""`starlab data pose`: the joints of many videos, in parallel through Ray Data, resumable at any moment.

One video is one task of one CPU. What a finished video has is kept in a folder beside the result until the result is complete.
The result has the clips in the order of their names, so it is the same for any number of workers.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray

from starlab.pipelines.clip import DataError, UnreadableClipError
from starlab.pipelines.estimated_joints import ESTIMATOR_SKELETONS
from starlab.pipelines.prefetch import Prefetch
from starlab.pipelines.retry import StorageError
from starlab.platform.errors import UserError
from starlab.platform.pose.clips import Clips
from starlab.platform.pose.estimate import Estimator, estimate_clip
from starlab.platform.pose.estimators import MOVENET, import_estimator
from starlab.platform.pose.joints_file import PoseSettings, clip_digests, row_bytes, settings_of, tables, write_joints_file
from starlab.platform.pose.model_file import load_model

PARTS = ".parts"
"""What the name of the folder with finished videos ends in."""
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class PoseProgress:
    """Progress of an extraction."""

    videos_done: int
    videos: int
    frames_done: int
    """In this call."""
    frames_per_second: float
    """0 before the first."""
    videos_bad: int

    def line(self) -> str:
        """One line of text."""
        parts = [f"{self.videos_done:>4,}/{self.videos:,} videos", f"{self.frames_done:,} frames"]
        if self.frames_per_second > 0:
            parts.append(f"{self.frames_per_second:.1f} frames/s")
        if self.videos_bad:
            parts.append(f"{self.videos_bad} bad")
        return "  ".join(parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Extraction:
    """The outcome of an extraction."""

    path: Path
    videos: int
    """Clips in the file."""
    kept: int
    """Those of them that an earlier call had estimated."""
    bad: dict[str, str] = field(default_factory=dict)
    """Videos that cannot be read, and why."""


def extract(
    clips: Clips,
    path: Path,
    settings: PoseSettings,
    *,
    estimator: Estimator | None = None,
    workers: int | None = None,
    fresh: bool = False,
    on_progress: Callable[[PoseProgress], None] = lambda _: None,
) -> Extraction:
    """Estimate the joints of every video and write them to `path`, or go on where an earlier call stopped.

    Ray must be running. Clips that are in the file already, with the same settings and of an unchanged video, are kept. Each
    task uses one thread, so the joints are the same for any number of workers.

    Args:
        clips: The videos.
        path: The Parquet file.
        settings: From `pose_settings`.
        estimator: A function to use instead of the one that the settings name; it is sent to every task.
        workers: Largest number of videos at once; None takes one for each CPU.
        fresh: Estimate every video, and replace the file.
        on_progress: Called several times a second.

    Raises:
        DataError: the file has joints by other settings, or none of the videos can be read.
        UserError: the estimator failed, or returned something else than `Estimator` says.
        StorageError: the storage failed; the same call resumes.
    """
    parts = path.with_name(f"{path.name}{PARTS}")
    if fresh:
        shutil.rmtree(parts, ignore_errors=True)
    earlier = _earlier(path, settings, fresh)
    places = {clip_id: parts / f"{hashlib.sha256(clip_id.encode()).hexdigest()[:24]}.parquet" for clip_id in clips.clip_ids}
    digests = [clips.digest(number) for number in range(len(clips.clip_ids))]
    todo: list[int] = []
    for number, clip_id in enumerate(clips.clip_ids):
        if not _is_part(places[clip_id], clip_id, digests[number], settings):
            places[clip_id].unlink(missing_ok=True)  # of other settings, or of a video that has changed
            if earlier.get(clip_id) != digests[number]:
                todo.append(number)
    kept = len(clips.clip_ids) - len(todo)
    bad: dict[str, str] = {}
    if todo:
        files = None
        if estimator is None and settings.estimator == MOVENET:
            files = ray.put(load_model())
        elif estimator is None:
            estimator = import_estimator(settings.estimator)
        work = _EstimateVideo(clips, digests, settings, estimator, files, ray.remote(num_cpus=0)(_Counter).remote())
        try:
            bad = _run(work, todo, places, workers, on_progress)
        finally:
            ray.kill(work.counter)
    if len(bad) == len(clips.clip_ids):
        first = next(iter(sorted(bad.items())))
        raise DataError(f"none of the {len(bad)} videos can be read; the first, {first[0]}: {first[1]}")
    if todo or set(earlier) != set(clips.clip_ids) or any(place.is_file() for place in places.values()):
        found = _gather(clips.clip_ids, places, path if earlier else None, bad)
        write_joints_file(path, found, settings)
    shutil.rmtree(parts, ignore_errors=True)
    return Extraction(path=path, videos=len(clips.clip_ids) - len(bad), kept=kept, bad=dict(sorted(bad.items())))


@dataclass(frozen=True, slots=True)
class _EstimateVideo:
    """The work of one task: estimates the joints of one video."""

    clips: Clips
    digests: list[str]
    settings: PoseSettings
    estimator: Estimator | None
    """None takes MoveNet from `files`."""
    files: ray.ObjectRef | None
    counter: Any
    """The actor that counts frames."""

    def __call__(self, tasks: Columns) -> Columns:
        """The columns number, row (a file with one clip), problem (why it cannot be read) and failure (of the estimator)."""
        [number] = tasks["number"].tolist()
        row, problem, failure = b"", "", ""
        try:
            found = estimate_clip(
                self.clips.frames(number),
                self._estimator(),
                ESTIMATOR_SKELETONS[self.settings.skeleton],
                self.settings.every,
                lambda frames: self.counter.set.remote(number, frames),
            )
            row = row_bytes(self.clips.clip_ids[number], self.digests[number], found, self.settings)
        except UnreadableClipError as error:
            problem = str(error)
        except UserError as error:
            failure = str(error)
        except StorageError:
            raise
        except Exception as error:
            if self.estimator is None:
                raise
            failure = f"the estimator failed on {self.clips.clip_ids[number]}: {type(error).__name__}: {error}"
        columns = {"number": number, "row": row, "problem": problem, "failure": failure}
        return {name: np.array([value], object if name == "row" else None) for name, value in columns.items()}

    def _estimator(self) -> Estimator:
        import torch

        from starlab.platform.pose.movenet import MoveNet

        torch.set_num_threads(1)  # another number of threads may round in another way
        if self.estimator is not None:
            return self.estimator
        return MoveNet(ray.get(self.files), self.settings.long_side_px)


def _run(
    work: _EstimateVideo,
    todo: list[int],
    places: dict[str, Path],
    workers: int | None,
    on_progress: Callable[[PoseProgress], None],
) -> dict[str, str]:
    """Estimate some videos, and keep each in its place once it is finished. Returns those that cannot be read, and why."""
    clip_ids = work.clips.clip_ids
    order = sorted(todo, key=lambda number: (-work.clips.size(number), number))  # the longest first: none is left alone
    tasks = ray.data.from_items([{"number": number} for number in order], override_num_blocks=len(order))
    done = tasks.map_batches(work.__call__, batch_size=None, batch_format="numpy", num_cpus=1, concurrency=workers)
    done.context.enable_progress_bars = False
    rows = Prefetch((row for row in done.iter_rows()), 2)
    rows.start()
    bad: dict[str, str] = {}
    began, finished = time.monotonic(), 0
    try:
        for row in rows.poll():
            if row is not None:
                if row["failure"]:
                    raise UserError(row["failure"])
                finished += 1
                clip_id = clip_ids[row["number"]]
                if row["problem"]:
                    bad[clip_id] = row["problem"]
                else:
                    _keep(places[clip_id], row["row"])
            frames = ray.get(work.counter.total.remote())
            on_progress(
                PoseProgress(
                    videos_done=len(clip_ids) - len(todo) + finished,
                    videos=len(clip_ids),
                    frames_done=frames,
                    frames_per_second=frames / (time.monotonic() - began),
                    videos_bad=len(bad),
                )
            )
    finally:
        rows.close()
    return bad


class _Counter:
    """Counts the frames of all videos under way; an actor."""

    def __init__(self) -> None:
        self._frames: dict[int, int] = {}

    def set(self, number: int, frames: int) -> None:
        """Note how many frames of a video were read."""
        self._frames[number] = frames

    def total(self) -> int:
        """The frames of all videos."""
        return sum(self._frames.values())


def _earlier(path: Path, settings: PoseSettings, fresh: bool) -> dict[str, str]:
    """The digest of the video of each clip that an earlier call wrote, if it may be kept."""
    if fresh or not path.exists():
        return {}
    found = settings_of(path)
    if found is None:
        raise DataError(
            f"{path} is there and was not made by `starlab data pose`: name another file, or replace it with --fresh"
        )
    if difference := found.differences(settings):
        raise DataError(f"{path} has joints by other settings: {difference}. Name another file, or replace it with --fresh")
    return clip_digests(path)


def _is_part(path: Path, clip_id: str, digest: str, settings: PoseSettings) -> bool:
    """Whether a finished video is kept there."""
    return settings_of(path) == settings and clip_digests(path) == {clip_id: digest}


def _keep(place: Path, row: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = place.with_suffix(f".{os.getpid()}")
    draft.write_bytes(row)
    draft.replace(place)


def _gather(clip_ids: Sequence[str], places: dict[str, Path], earlier: Path | None, bad: dict[str, str]) -> Iterator[pa.Table]:
    """The rows of all clips in the order of their names: the new ones, else those of the earlier file."""
    old = {} if earlier is None else {table["clip_id"][0].as_py(): table for table in tables(earlier)}
    for clip_id in clip_ids:
        if clip_id in bad:
            continue
        if places[clip_id].is_file():
            yield from tables(places[clip_id])
        else:
            yield old[clip_id]
