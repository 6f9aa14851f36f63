"""A failure of the storage is retried and then fails the task; it never makes a clip unreadable."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from starlab.pipelines import retry
from starlab.pipelines.clip import ClipSource, UnreadableClipError
from starlab.pipelines.generated.ntu import SYNTHETIC_NTU_CLASSES
from starlab.pipelines.generated.penn_action import SYNTHETIC_CLASSES
from starlab.pipelines.ntu import NtuSource
from starlab.pipelines.ntu_names import NTU120_SETUPS
from starlab.pipelines.penn_action import PennActionSource
from starlab.pipelines.prepare import StoreLayout, prepare
from starlab.pipelines.retry import StorageError, read_file, read_patiently
from starlab.pipelines.schedule import Schedule, TrainPlan
from starlab.pipelines.sources import DataConfig
from starlab.pipelines.store import StoreSource
from starlab.pipelines.stream import StreamLimits, train_batches

TRIES = len(retry.SECONDS_BETWEEN_TRIES) + 1


@pytest.fixture(autouse=True)
def paused(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that would have been made."""
    seconds: list[float] = []
    monkeypatch.setattr("starlab.pipelines.retry.sleep", seconds.append)
    return seconds


@pytest.fixture(scope="module")
def store(small_source: PennActionSource, tmp_path_factory: pytest.TempPathFactory, local_ray: object) -> StoreSource:
    return prepare(
        small_source, "synthetic_penn_action", tmp_path_factory.mktemp("retry") / "store", StoreLayout(clips_per_shard=90)
    )


def ntu(root: Path) -> NtuSource:
    return NtuSource(root, "xsub", classes=SYNTHETIC_NTU_CLASSES, setups=NTU120_SETUPS)


def flaky(function: Callable[..., Any], failures: int, ending: str, error: OSError) -> Callable[..., Any]:
    """The function, which fails in its first `failures` calls whose first argument's text has that ending."""
    left = [error] * failures

    def call(*args: Any, **named: Any) -> Any:
        if left and str(args[0]).endswith(ending):
            raise left.pop()
        return function(*args, **named)

    return call


FAILURES = [
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    OSError("AWS Error SLOW_DOWN"),
]


@pytest.fixture(params=["frame", "label", "skeleton", "video", "store"])
def broken(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, small_folder: Path, ntu_folder: Path
) -> tuple[ClipSource, Callable[[int, OSError], None]]:
    """A source, and a way to make so many of its next reads fail."""
    if request.param == "store":
        source: ClipSource = request.getfixturevalue("store")
        function = pq.ParquetFile.read_row_group

        def fail(failures: int, error: OSError) -> None:
            monkeypatch.setattr(pq.ParquetFile, "read_row_group", flaky(function, failures, "", error))
    else:
        ending = {"frame": "1.jpg", "label": ".mat", "skeleton": ".skeleton", "video": ".avi"}[request.param]
        penn = request.param in ("frame", "label")
        source = PennActionSource(small_folder, classes=SYNTHETIC_CLASSES) if penn else ntu(ntu_folder)
        plain = Path.read_bytes

        def fail(failures: int, error: OSError) -> None:
            monkeypatch.setattr(Path, "read_bytes", flaky(plain, failures, ending, error))

    return source, fail


@pytest.mark.parametrize("error", FAILURES, ids=["eio", "estale", "throttled"])
def test_a_storage_that_fails_for_a_while_changes_no_clip(
    broken: tuple[ClipSource, Callable[[int, OSError], None]], error: OSError, paused: list[float]
) -> None:
    source, fail = broken
    row = source.clips[1]
    before = source.read(row, [0, 3], 48)
    fail(TRIES - 1, error)
    after = source.read(row, [0, 3], 48)
    assert paused == list(retry.SECONDS_BETWEEN_TRIES)
    np.testing.assert_array_equal(before.frames, after.frames)
    np.testing.assert_array_equal(before.joints, after.joints)


@pytest.mark.parametrize("error", FAILURES, ids=["eio", "estale", "throttled"])
def test_a_storage_that_goes_on_failing_fails_the_task_and_calls_no_clip_unreadable(
    broken: tuple[ClipSource, Callable[[int, OSError], None]], error: OSError
) -> None:
    source, fail = broken
    fail(TRIES, error)
    with pytest.raises(StorageError, match="a failure of the storage and not of the file"):
        source.read(source.clips[1], [0, 3], 48)


def test_a_stream_over_a_failing_storage_raises_instead_of_swapping_the_clip(
    small_source: PennActionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_bytes", flaky(Path.read_bytes, 10_000, "1.jpg", FAILURES[0]))
    config = DataConfig(dataset="synthetic_penn_action", frames=4, size=16, decode="worker")
    plan = TrainPlan(Schedule(0, 90), tuple(range(90)), 8, 0, 1, 0)
    limits = StreamLimits(cpus=1, cpus_per_task=1, object_store_bytes=40_000_000)
    with pytest.raises(StorageError):
        next(train_batches(small_source, config, plan, 3, limits))


def test_what_is_missing_or_damaged_is_not_read_again(
    store: StoreSource, small_folder: Path, tmp_path: Path, paused: list[float]
) -> None:
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path)
    # Damage that pyarrow reports as an OSError: the shard's hash tells it from a failure of the storage.
    copy = tmp_path / "copy"
    for name in store.folder.names():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(store.folder.read(name))
    shard = copy / "shards/00000.parquet"
    data = bytearray(shard.read_bytes())
    where = pq.ParquetFile(shard).metadata.row_group(5).column(4).data_page_offset
    data[where : where + 8] = b"\xff" * 8
    shard.write_bytes(bytes(data))
    damaged = StoreSource(copy)
    row = next(damaged.find(clip.clip_id) for clip in damaged.stored if clip.row == 5)
    with pytest.raises(UnreadableClipError):
        damaged.read(row, [0], 48)
    assert paused == []


def test_access_denied_is_a_failure_of_the_storage_that_no_pause_mends(paused: list[float]) -> None:
    def read() -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(StorageError, match="the file of somebody else cannot be read"):
        read_patiently(read, "the file of somebody else")
    assert paused == []


def test_an_index_made_while_the_storage_fails_leaves_no_clip_out(
    small_folder: Path, ntu_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = PennActionSource(small_folder, classes=SYNTHETIC_CLASSES), ntu(ntu_folder)
    plain, stat, walk = Path.read_bytes, os.stat, os.scandir
    monkeypatch.setattr(Path, "read_bytes", flaky(plain, 2, "0003.mat", FAILURES[0]))
    monkeypatch.setattr(os, "stat", flaky(stat, 2, "_rgb.avi", FAILURES[0]))
    monkeypatch.setattr(os, "scandir", flaky(walk, 2, "nturgb+d_rgb", FAILURES[1]))
    after = PennActionSource(small_folder, classes=SYNTHETIC_CLASSES), ntu(ntu_folder)
    for one, other in zip(before, after, strict=True):
        assert (one.clips, one.skipped, one.fingerprint) == (other.clips, other.skipped, other.fingerprint)
