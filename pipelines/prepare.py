"""`starlab prepare` (the authors' files → a store, in parallel, resumable at any moment) and `starlab verify`.

The contents of each shard are fixed before anything is written: the clips are ordered by a hash of their names and cut into
equal pieces, so that classes and subjects mix and every attempt writes the same bytes. A shard is complete when it has a
record, which is written after it, and the size in that record; every other shard is written again. The hash is compared
where a shard was modified after its record was written, and by `retry`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from numpy.typing import NDArray

from starlab.pipelines.clip import ClipRow, ClipSource, DataError, UnreadableClipError, identity
from starlab.pipelines.custom.description import DESCRIPTION
from starlab.pipelines.custom.source import facts_to_dict
from starlab.pipelines.shards import INDEX, StoredClip, is_of, shard_name, whole_shard, write_index, write_shard
from starlab.pipelines.storage import PART, Folder
from starlab.pipelines.store import FORMAT, MANIFEST, PLAN, StoreSource

CLIPS_PER_SHARD = 64
"""About 100 MB. A shard is half a minute's work of one core on 1080p video, the most that a kill can cost."""
SHORT_SIDE_PX = 256
QUARANTINE = "quarantine.json"
FINGERPRINTS = 2
"""How fingerprints are made: 1 was by the store's own bytes, 2 is by the authors' files, so that both have the same one."""
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Progress of a preparation or a verification."""

    clips_done: int
    clips: int
    clips_bad: int
    clips_per_second: float
    """Over the clips that were worked on; 0 before the first."""

    def line(self) -> str:
        """One line of text."""
        parts = [f"{self.clips_done:>6,}/{self.clips:,} clips"]
        if self.clips_per_second > 0:
            seconds = round((self.clips - self.clips_done) / self.clips_per_second)
            parts.append(
                f"{self.clips_per_second:.1f} clips/s  {seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"
            )
        if self.clips_bad:
            parts.append(f"{self.clips_bad} bad")
        return "  ".join(parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreLayout:
    """How a store holds its clips."""

    short_side_px: int = SHORT_SIDE_PX
    """Short side of the stored video frames; JPEGs of the authors stay unchanged."""
    clips_per_shard: int = CLIPS_PER_SHARD
    """Clips per file."""


def prepare(
    source: ClipSource,
    dataset: str,
    uri: str | Path,
    layout: StoreLayout = StoreLayout(),
    *,
    max_bad_fraction: float = 0.05,
    retry: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> StoreSource:
    """Check every clip of `source` and write those that pass into the store at `uri`, or go on where an earlier call stopped.

    Ray must be running; each shard is one task of one CPU. A complete store is only opened.

    Args:
        source: the data set in its authors' files.
        dataset: its name in a spec.
        uri: the store's place: a path, or any URI that pyarrow knows.
        layout: how frames and clips are stored.
        max_bad_fraction: fail when a larger share of the clips cannot be used.
        retry: check the shards of a complete store as well, and rewrite those that are damaged, have a clip in quarantine, or
            were made from files that have changed since.
        on_progress: called after every shard.

    Raises:
        DataError: the place holds something else, or too many clips are bad; `quarantine.json` there then lists all of them
            with the reasons.
    """
    folder = Folder(uri)
    plan: dict[str, Any] = {
        "format": FORMAT,
        "dataset": dataset,
        "classes": list(source.classes),
        "skeleton": source.skeleton.name,
        "max_bodies": source.max_bodies,
        "fingerprints": FINGERPRINTS,
        "source_fingerprint": source.fingerprint,
        "short_side_px": layout.short_side_px,
        "clips_per_shard": layout.clips_per_shard,
    }
    if dataset == "custom":
        plan["custom"] = facts_to_dict(source)
    _claim(folder, plan, retry)
    if folder.read_json(MANIFEST) is not None:
        if not retry:
            return StoreSource(uri)
        folder.remove(MANIFEST)

    shards = shard_rows(source.clips, layout.clips_per_shard)
    total = len(source.clips) + len(source.skipped)
    quarantine = {clip.clip_id: clip.reason for clip in source.skipped}
    records: dict[int, dict[str, Any]] = {}
    _refuse_too_many(folder, quarantine, total, max_bad_fraction)

    def work(tasks: Columns) -> Columns:
        [shard] = tasks["shard"].tolist()
        record = whole_shard(folder, shard, hashed=retry)
        kept = record is not None and is_of(record, shards[shard]) and not (retry and record["quarantine"])
        if record is None or not kept:
            record = write_shard(folder, shard, source, shards[shard], layout.short_side_px)
        return {"shard": np.array([shard]), "kept": np.array([kept]), "record": np.array([json.dumps(record)])}

    began, worked = time.monotonic(), 0
    for row in _run(work, len(shards)):
        record = json.loads(row["record"])
        records[row["shard"]] = record
        quarantine |= record["quarantine"]
        done = sum(len(shards[shard]) for shard in records)
        worked += 0 if row["kept"] else len(shards[row["shard"]])
        rate = worked / (time.monotonic() - began)
        on_progress(Progress(clips_done=done, clips=len(source.clips), clips_bad=len(quarantine), clips_per_second=rate))
        _refuse_too_many(folder, quarantine, total, max_bad_fraction)
    _finish(folder, plan, [records[shard] for shard in range(len(shards))], quarantine)
    return StoreSource(uri)


def shard_rows(rows: Sequence[ClipRow], clips_per_shard: int) -> list[tuple[ClipRow, ...]]:
    """The clips of each shard: a pure function of the clips' names."""
    if clips_per_shard < 1:
        raise DataError(f"clips per shard is {clips_per_shard}; a shard holds at least 1")
    ordered = sorted(rows, key=lambda row: (hashlib.sha256(row.clip_id.encode()).digest(), row.clip_id))
    return [tuple(ordered[first : first + clips_per_shard]) for first in range(0, len(ordered), clips_per_shard)]


def verify(
    uri: str | Path, *, decode: bool = False, on_progress: Callable[[Progress], None] = lambda _: None
) -> tuple[StoreSource, list[str]]:
    """Read every byte of a store again: hashes, counts, each clip's frames and joints. Ray must be running.

    `decode` also decodes every JPEG. Equal hashes make this unnecessary, unless the preparation itself is in doubt.

    Returns:
        The store, and a line for each problem.

    Raises:
        DataError: it is not a store, or its index is damaged.
    """
    source = StoreSource(uri)
    manifest = source.manifest
    problems: list[str] = []
    if len(source.clips) != manifest["clips"]:
        problems.append(f"{INDEX}: {len(source.clips)} clips, the manifest says {manifest['clips']}")

    def work(tasks: Columns) -> Columns:
        [shard] = tasks["shard"].tolist()
        return {"shard": np.array([shard]), "found": np.array([json.dumps(check_shard(source, shard, decode))])}

    began, done = time.monotonic(), 0
    for row in _run(work, len(manifest["shards"])):
        problems += json.loads(row["found"])
        done += manifest["shards"][row["shard"]]["clips"]
        rate = done / (time.monotonic() - began)
        on_progress(Progress(clips_done=done, clips=len(source.clips), clips_bad=len(problems), clips_per_second=rate))
    return source, sorted(problems)


def check_shard(source: StoreSource, shard: int, decode: bool) -> list[str]:
    """The problems of one shard; empty where there are none."""
    name, expected = shard_name(shard) + ".parquet", source.manifest["shards"][shard]
    clips = source.stored_in(shard)
    try:
        if source.folder.sha256(name) != expected["sha256"]:
            return [f"{name}: its bytes are not those that were written"]
        with source.folder.open(name) as file:
            stored_ids = pq.read_table(file, columns=["clip_id"]).column("clip_id").to_pylist()
    except (OSError, pa.ArrowException) as error:
        return [f"{name}: {error}"]
    if stored_ids != [clip.clip_id for clip in clips]:
        return [f"{name}: holds other clips than the index says"]
    problems: list[str] = []
    for clip in clips:
        try:
            source.check(clip, decode)
        except UnreadableClipError as error:
            problems.append(f"{clip.clip_id}: {error}")
    return problems


def _claim(folder: Folder, plan: dict[str, Any], retry: bool) -> None:
    """Write the plan, or compare it with that of an earlier call; `retry` also takes files that have changed since."""
    earlier = folder.read_json(PLAN)
    if earlier is None:
        there = folder.names()
        if there:
            raise DataError(f"{folder.uri} holds {there[0]} and no {PLAN}, so it is no store: name a new folder")
        folder.write_json(PLAN, plan)
        return
    of_files = ("fingerprints", "source_fingerprint", "custom")
    different = [key for key, value in plan.items() if earlier.get(key) != value]
    for key in different:
        if key not in of_files:
            raise DataError(
                f"{folder.uri} was begun with {key} {earlier.get(key)!r}, now it is {plan[key]!r}: "
                "use the same again, or name a new folder"
            )
    if different and retry:
        folder.write_json(PLAN, plan)
    elif "fingerprints" in different and folder.read_json(MANIFEST) is None:
        raise DataError(
            f"{folder.uri} was begun by another version of starlab, whose fingerprints differ: prepare it again with --retry, "
            "or name a new folder"
        )
    elif different == ["custom"]:
        raise DataError(
            f"{folder.uri} was begun with other settings than {DESCRIPTION} and the list give now: take them over with "
            "--retry, or name a new folder"
        )
    elif different and "fingerprints" not in different:
        raise DataError(
            f"{folder.uri} was begun with source_fingerprint {earlier['source_fingerprint']!r}, now it is "
            f"{plan['source_fingerprint']!r}: other files, or files that have changed. Use the same again, rewrite the shards "
            "of changed clips with --retry, or name a new folder"
        )


def _run(work: Callable[[Columns], Columns], num_shards: int) -> Iterator[dict[str, Any]]:
    """Run one Ray Data task per shard; yields what each returns, as they end."""
    tasks = ray.data.from_items([{"shard": shard} for shard in range(num_shards)], override_num_blocks=num_shards)
    done = tasks.map_batches(work, batch_size=None, batch_format="numpy", num_cpus=1)
    done.context.enable_progress_bars = False
    yield from done.iter_rows()


def _refuse_too_many(folder: Folder, quarantine: dict[str, str], total: int, max_bad_fraction: float) -> None:
    if len(quarantine) <= max_bad_fraction * total:
        return
    folder.write_json(QUARANTINE, quarantine)
    listed = "; ".join(f"{clip}: {reason}" for clip, reason in sorted(quarantine.items())[:5])
    raise DataError(
        f"{len(quarantine)} of {total} clips cannot be used, more than the allowed share of {max_bad_fraction}; so far found: "
        f"{folder.uri}/{QUARANTINE}. Repair the source and use --retry, or allow more (--max-bad). The first: {listed}"
    )


def _finish(folder: Folder, plan: dict[str, Any], records: list[dict[str, Any]], quarantine: dict[str, str]) -> None:
    clips = [StoredClip(**clip) for record in records for clip in record["clips"]]
    manifest = {
        **plan,
        "fingerprint": identity(plan["classes"], (clip.row_in_source() for clip in clips)),
        "clips": len(clips),
        "frames": sum(clip.num_frames for clip in clips),
        "shards": [
            {"sha256": record["sha256"], "num_bytes": record["num_bytes"], "clips": len(record["clips"])} for record in records
        ],
        "index": write_index(folder, clips),
        "quarantine": quarantine,
        "notes": {clip_id: note for record in records for clip_id, note in record.get("notes", {}).items()},
    }
    wanted = {shard_name(shard) for shard in range(len(records))}
    for name in folder.names():  # left by killed attempts, and by attempts with more clips
        if name.endswith(PART) or (name.startswith("shards/") and name.rpartition(".")[0] not in wanted):
            folder.remove(name)
    folder.remove(QUARANTINE)
    folder.write_json(MANIFEST, manifest)
