"""Tests the background writer of checkpoints with a full disk, a lost lease and a killed writer."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from starlab.pipelines.storage import Folder
from starlab.platform.runs.checkpoint import find_checkpoint, newest_checkpoint, remove_orphans, write_checkpoint
from starlab.platform.runs.checkpoint_writer import CheckpointWriter
from starlab.platform.runs.lease import LeaseLostError

STATE = {"pending": [0.1 + 0.2, 1.0]}


def writer(storage: Folder, alerts: list[tuple[int, str]] | None = None) -> CheckpointWriter:
    kept = [] if alerts is None else alerts
    return CheckpointWriter(storage, lambda: None, lambda: None, lambda step, reason: kept.append((step, reason)))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of one MB."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", place], check=True)


def test_the_writer_stores_the_tensors_as_they_were_when_save_was_called(tmp_path: Path) -> None:
    one = writer(Folder(tmp_path))
    tensor = torch.ones(1000)
    one.save(1, {"t": tensor}, STATE, set())
    tensor.zero_()
    one.wait()
    assert one.written == 1
    assert find_checkpoint(tmp_path, 1).tensors["t"].sum() == 1000


def test_a_full_disk_costs_only_that_checkpoint_and_its_space_is_free_for_the_next_one(small_disk: Path) -> None:
    alerts: list[tuple[int, str]] = []
    one = writer(Folder(small_disk), alerts)
    one.save(1, {"t": torch.ones(100)}, STATE, set())
    one.save(2, {"t": torch.ones(1_000_000)}, STATE, set())
    one.wait()
    assert one.written == 1
    assert [step for step, _ in alerts] == [2]
    assert os.strerror(errno.ENOSPC) in alerts[0][1]
    one.save(3, {"t": torch.ones(200_000)}, STATE, set())  # fits only if nothing of step 2 is left
    one.wait()
    assert len(alerts) == 1
    newest, complaints = newest_checkpoint(small_disk)
    assert newest is not None
    assert newest.step == 3
    assert complaints == []


def test_a_disk_with_room_for_two_checkpoints_gives_up_the_oldest_for_the_newest(small_disk: Path) -> None:
    alerts: list[tuple[int, str]] = []
    one = writer(Folder(small_disk), alerts)
    for step in (1, 2, 3):
        one.save(step, {"t": torch.ones(100_000)}, STATE, set())
    one.wait()
    assert (one.written, alerts) == (3, [])
    assert [name[:13] for name in Folder(small_disk).folders()] == ["step_00000002", "step_00000003"]


def test_a_process_that_lost_its_lease_completes_no_checkpoint(tmp_path: Path) -> None:
    def refuse() -> None:
        raise LeaseLostError("another process owns the run")

    one = CheckpointWriter(Folder(tmp_path), refuse, lambda: None, lambda step, reason: None)
    one.save(1, {"t": torch.ones(3)}, STATE, set())
    with pytest.raises(LeaseLostError):
        one.wait()
    assert newest_checkpoint(tmp_path) == (None, [])
    one.wait()


def test_a_process_that_lost_its_lease_deletes_no_files_of_the_new_owner(tmp_path: Path) -> None:
    others = tmp_path / "step_00000009-half"  # the new owner is writing it
    lost = False

    def check() -> None:
        if lost:
            raise LeaseLostError("another process owns the run")

    def lose_and_fail() -> None:
        nonlocal lost
        others.mkdir()
        lost = True
        raise OSError(errno.ENOSPC, "full")

    one = CheckpointWriter(Folder(tmp_path), check, lose_and_fail, lambda step, reason: None)
    one.save(1, {"t": torch.ones(3)}, STATE, set())
    with pytest.raises(LeaseLostError):
        one.wait()
    assert others.is_dir()


def test_a_checkpoint_is_not_completed_if_its_metrics_cannot_be_written_first(tmp_path: Path) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "full")

    alerts: list[int] = []
    one = CheckpointWriter(Folder(tmp_path), lambda: None, full, lambda step, reason: alerts.append(step))
    one.save(1, {"t": torch.ones(3)}, STATE, set())
    one.wait()
    assert (one.written, alerts) == (None, [1])
    assert newest_checkpoint(tmp_path) == (None, [])


KILLED_BEFORE_THE_MANIFEST = """
import os, signal, sys, torch
from pathlib import Path
from starlab.platform.runs.checkpoint import write_checkpoint
write_checkpoint(Path(sys.argv[1]), 2, {"t": torch.ones(3)}, {}, lambda: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_a_writer_killed_between_the_files_and_the_manifest_leaves_the_previous_checkpoint_and_an_orphan(
    tmp_path: Path,
) -> None:
    write_checkpoint(tmp_path, 1, {"t": torch.ones(3)}, {})
    assert subprocess.run([sys.executable, "-c", KILLED_BEFORE_THE_MANIFEST, tmp_path], check=False).returncode == -9
    assert len(list(tmp_path.glob("step_00000002-*/tensors.safetensors"))) == 1
    newest, complaints = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 1
    assert complaints == []
    assert len(remove_orphans(tmp_path)) == 1
    assert [path.name[:13] for path in tmp_path.iterdir()] == ["step_00000001"]


def test_a_folder_given_by_a_uri_stores_checkpoints_like_a_path(tmp_path: Path) -> None:
    bucket = Folder(f"file://{tmp_path}/not/there/yet")
    assert newest_checkpoint(bucket) == (None, [])
    one = writer(bucket)
    for step in range(1, 5):
        one.save(step, {"t": torch.full((3,), float(step))}, STATE, {2})
    one.wait()
    assert [name[:13] for name in bucket.folders()] == ["step_00000002", "step_00000003", "step_00000004"]
    damaged = tmp_path / "not/there/yet" / bucket.folders()[-1] / "tensors.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    newest, complaints = newest_checkpoint(bucket)
    assert newest is not None
    assert newest.step == 3
    assert newest.state == STATE
    assert len(complaints) == 1
    assert torch.equal(find_checkpoint(bucket, 2).tensors["t"], torch.full((3,), 2.0))
