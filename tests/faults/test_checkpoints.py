"""Tests whole runs with a damaged newest checkpoint or a full disk. Rows 7 to 10 of docs/reliability.md.

Tests of a single checkpoint are in tests/platform/runs/test_checkpoint.py and test_checkpoint_writer.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from starlab.platform.cluster.connect import Cluster
from starlab.platform.errors import RunFailedError
from starlab.platform.runs.checkpoint import newest_checkpoint
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import read_points
from starlab.platform.trainer import RunResult

pytestmark = pytest.mark.timeout(900)  # a hang guard for a busy machine; a quiet one needs a tenth of it


@pytest.mark.slow_fault
@pytest.mark.parametrize("damage", ["bit flip", "truncation", "zeroed block", "no manifest"])
def test_a_damaged_newest_checkpoint_is_reported_and_the_previous_one_leads_to_the_same_result(
    training, undisturbed: RunResult, sabotage, same_as, events_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    injected = sabotage(lambda: os.kill(os.getpid(), signal.SIGKILL), at_step=11, rank=0)
    with pytest.raises(RunFailedError):
        training.run(tmp_path, "resources.max_failures=0")
    monkeypatch.undo()
    folder = tmp_path / undisturbed.run_id
    newest = sorted(folder.glob("checkpoints/*/manifest.json"))[-1].parent
    tensors = newest / "tensors.safetensors"
    data = bytearray(tensors.read_bytes())
    if damage == "bit flip":
        data[len(data) // 2] ^= 1
    elif damage == "truncation":
        data = data[:-100]
    elif damage == "zeroed block":
        data[4096:8192] = bytes(4096)
    else:
        (newest / "manifest.json").unlink()
    tensors.write_bytes(data)
    result = training.run(tmp_path)
    same_as(result, undisturbed)
    [resumed] = events_of(folder, "resumed")
    assert resumed.step is not None
    assert resumed.step < int(newest.name[5:13])
    reported = events_of(folder, "orphan_removed" if damage == "no manifest" else "checkpoint_passed_over")
    assert [newest.name in event.says for event in reported] == [True]
    row = "07" if damage == "no manifest" else f"08-09 {damage}"
    training.measure(row, f"{damage} in the newest checkpoint, after SIGKILL at step 11", folder, injected.stat().st_mtime)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system with room for one checkpoint of the small training, not for two."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2200k", "tmpfs", place], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.slow_fault
def test_a_full_disk_costs_new_checkpoints_but_not_the_training_or_older_ones(
    training, undisturbed: RunResult, local_ray: Cluster, events_of: Callable, tmp_path: Path, full_disk: Path
) -> None:
    kept, _ = newest_checkpoint(undisturbed.folder / "checkpoints")
    assert kept is not None
    size = sum(value.nbytes for value in kept.tensors.values())
    assert 1_300_000 < size < 1_900_000, f"a checkpoint has {size} bytes; the disk of this test must fit exactly one"
    result = training.run(tmp_path / "runs", f"resources.checkpoints={full_disk}", "resources.max_failures=0")
    lost = [event.step for event in events_of(result.folder, "checkpoint_failed")]
    assert lost
    losses = [
        [(p.step, p.value) for p in read_points(r.folder / "journal.jsonl") if p.key == "train/loss"]
        for r in (result, undisturbed)
    ]
    assert losses[0] == losses[1]
    newest, complaints = newest_checkpoint(RunFolder(result.folder).stored_checkpoints)
    assert newest is not None
    assert complaints == []
    assert newest.step == 3
    assert newest.step not in lost
    training.note("10", f"no room for the checkpoints of steps {lost}", 0, 0)
