"""`starlab data pose`: the joints of many videos, in parallel through Ray Data, resumable at any moment.

One video is one task of one CPU; one that is longer than the others together is several (`parts.py`). What a finished video has
is kept in a folder beside the result until the result is complete.
The result has the clips in the order of their names, so it is the same for any number of workers.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import ray
import ray.data

from starlab.pipelines.clip import DataError
from starlab.pipelines.prefetch import Prefetch
from starlab.platform.errors import UserError
from starlab.platform.pose.clips import Clips
from starlab.platform.pose.estimate import Estimator, Found
from starlab.platform.pose.estimators import MOVENET, import_estimator
from starlab.platform.pose.joints_file import PoseSettings, clip_digests, settings_of, tables, write_joints_file
from starlab.platform.pose.model_file import load_model
from starlab.platform.pose.parts import EstimatePart, parts_of
from starlab.platform.pose.progress import Amounts, Meter, PoseProgress, look_at_amounts

PARTS = ".parts"
"""What the name of the folder with finished videos ends in."""


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
        UserError: the estimator failed, or returned something else than `Estimator` says; or another process writes the file.
        StorageError: the storage failed; the same call resumes.
    """
    with _alone(path):
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
            amounts = look_at_amounts(clips, todo)
            meter = Meter(len(clips.clip_ids), todo, amounts)

            def tell(finished: int | None, videos_bad: int) -> None:
                if finished is not None:
                    meter.finish(finished)
                on_progress(meter.progress(videos_bad))

            try:
                work = EstimatePart(clips, digests, settings, estimator, files, meter.counter)
                bad = _run(work, todo, amounts, places, workers, tell)
            finally:
                meter.close()
        if len(bad) == len(clips.clip_ids):
            first = next(iter(sorted(bad.items())))
            raise DataError(f"none of the {len(bad)} videos can be read; the first, {first[0]}: {first[1]}")
        if todo or set(earlier) != set(clips.clip_ids) or any(place.is_file() for place in places.values()):
            found = _gather(clips.clip_ids, places, path if earlier else None, bad)
            write_joints_file(path, found, settings)
        shutil.rmtree(parts, ignore_errors=True)
        return Extraction(path=path, videos=len(clips.clip_ids) - len(bad), kept=kept, bad=dict(sorted(bad.items())))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the right to write a file; two calls at once would remove each other's finished videos.

    Raises:
        UserError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process estimates joints into {path}: wait for it, or name another file") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _run(
    work: EstimatePart,
    todo: list[int],
    amounts: Amounts,
    places: dict[str, Path],
    workers: int | None,
    tell: Callable[[int | None, int], None],
) -> dict[str, str]:
    """Estimate some videos, and keep each in its place once it is finished. Returns those that cannot be read, and why."""
    clips, sizes = work.clips, {number: amounts.sizes[number] for number in todo}
    order = sorted(todo, key=lambda number: (-sizes[number], number))  # the longest first: none is left alone
    cpus, everything = workers or int(ray.cluster_resources().get("CPU", 1)), max(1, sum(sizes.values()))
    divided = {n: parts_of(n, amounts.lengths.get(n, 0), sizes[n] / everything, cpus, work.settings.every) for n in order}
    rows = [asdict(part) for number in order for part in divided[number]]
    tasks = ray.data.from_items(rows, override_num_blocks=len(rows))
    done = tasks.map_batches(
        work.__call__, batch_size=None, batch_format="numpy", num_cpus=1, concurrency=workers and min(workers, len(rows))
    )
    done.context.enable_progress_bars = False
    found: dict[int, dict[int, Found]] = {number: {} for number in order}
    bad, again = dict[str, str](), set[int]()
    fetched = Prefetch((row for row in done.iter_rows()), 2)
    fetched.start()
    try:
        for row in fetched.poll():
            finished = None
            if row is not None:
                if row["failure"]:
                    raise UserError(row["failure"])
                number, clip_id = row["number"], clips.clip_ids[row["number"]]
                parts = found[number]
                if row["problem"] and len(divided[number]) > 1:
                    again.add(number)  # the header may have said too many frames
                elif row["problem"]:
                    bad[clip_id], finished = row["problem"], number
                elif row["row"]:
                    _keep(places[clip_id], row["row"])
                    finished = number
                else:
                    parts[row["first"]] = row["found"]
                    if len(parts) == len(divided[number]):
                        _keep(places[clip_id], work.row(number, [parts[first] for first in sorted(parts)]))
                        finished = number
                        parts.clear()
            tell(finished, len(bad))
    finally:
        fetched.close()
    return bad | (_run(work, sorted(again), Amounts(sizes, {}), places, workers, tell) if again else {})


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
