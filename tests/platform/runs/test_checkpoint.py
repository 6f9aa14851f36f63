import errno
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from starlab.pipelines.storage import Folder
from starlab.platform.runs.checkpoint import (
    Checkpoint,
    find_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    read_checkpoint,
    remove_orphans,
    write_checkpoint,
)

TENSORS = {"model/weight": torch.randn(3, 4), "model/steps": torch.tensor(7), "optimizer/0/exp_avg": torch.zeros(2)}
STATE = {"best": {"step": 4.0, "top1": 0.5}, "pending": [0.1 + 0.2, 1.0]}


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path, 12, TENSORS, STATE)
    read = read_checkpoint(tmp_path, written)
    assert read.step == 12
    assert read.state == STATE
    assert read.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(read.tensors[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["bit flip", "truncation", "zeroed block", "empty", "missing"])
def test_every_kind_of_damage_is_found_and_the_checkpoint_before_it_is_used(tmp_path: Path, file: str, damage: str) -> None:
    write_checkpoint(tmp_path, 1, TENSORS, STATE)
    path = tmp_path / write_checkpoint(tmp_path, 2, TENSORS, STATE) / file
    data = bytearray(path.read_bytes())
    if damage == "bit flip":
        data[-3] ^= 1
    elif damage == "truncation":
        data = data[:-5]
    elif damage == "zeroed block":
        data[10:30] = bytes(20)
    elif damage == "empty":
        data = bytearray()
    path.write_bytes(data)
    if damage == "missing":
        path.unlink()
    with pytest.raises(ValueError, match=path.parent.name):
        read_checkpoint(tmp_path, path.parent.name)
    newest, complaints = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 1
    assert len(complaints) == 1
    assert (path.parent / "manifest.json.damaged").is_file()
    assert newest_checkpoint(tmp_path)[1] == []  # reported only once
    assert remove_orphans(tmp_path) == []  # a damaged checkpoint is kept for inspection


def _point_outside(checkpoint: Path, name: str) -> None:
    """Replace the weights in the manifest by a file of another folder, with its right size and hash."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    data = (checkpoint.parent / "secret").read_bytes()
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["../secret", "{place}/secret", "a/../../secret", "..", "", ".", "..\\secret"])
@pytest.mark.parametrize("read", [read_checkpoint, lambda place, name: find_checkpoint(place, int(name[5:13]))])
def test_a_manifest_that_names_a_file_outside_its_folder_is_refused_and_the_file_is_not_read(
    tmp_path: Path, name: str, read: Callable[[Folder, str], Checkpoint]
) -> None:
    (tmp_path / "secret").write_bytes(b"not for a checkpoint")
    written = write_checkpoint(tmp_path, 2, TENSORS, STATE)
    _point_outside(tmp_path / written, name.format(place=tmp_path))
    storage = Recording(tmp_path)
    with pytest.raises(ValueError, match="not a file of its folder; no checkpoint of starlab does") as refused:
        read(storage, written)
    assert "\n" not in str(refused.value)
    assert {path.rpartition("/")[2] for path in storage.opened} <= {"manifest.json", "tensors.safetensors", "state.json"}


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_file_of_a_checkpoint_that_is_a_link_out_of_its_folder_is_refused(tmp_path: Path, file: str) -> None:
    written = write_checkpoint(tmp_path / "run", 2, TENSORS, STATE)
    path = tmp_path / "run" / written / file
    path.rename(tmp_path / file)  # the very contents that the manifest describes
    path.symlink_to(tmp_path / file)
    with pytest.raises(ValueError, match=rf"{file} is a symbolic link to {tmp_path / file}, outside its folder"):
        read_checkpoint(tmp_path / "run", written)


def test_a_refused_checkpoint_stays_as_it_is_and_the_one_before_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"not for a checkpoint")
    write_checkpoint(tmp_path, 1, TENSORS, STATE)
    written = write_checkpoint(tmp_path, 2, TENSORS, STATE)
    _point_outside(tmp_path / written, "../secret")
    newest, [complaint] = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 1
    assert complaint.startswith("refused: ")
    assert sorted(path.name for path in (tmp_path / written).iterdir()) == [
        "manifest.json",
        "state.json",
        "tensors.safetensors",
    ]


def test_links_that_stay_inside_and_a_linked_folder_of_checkpoints_are_read(tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path / "disk", 2, TENSORS, STATE)
    (tmp_path / "disk" / written / "state.json").rename(tmp_path / "disk" / written / "first.json")
    (tmp_path / "disk" / written / "state.json").symlink_to("first.json")
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    assert read_checkpoint(tmp_path / "run", written).step == 2


class Recording(Folder):
    """A store that notes which files are opened."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.opened: list[str] = []

    def read(self, name: str) -> bytes:
        self.opened.append(name)
        return super().read(name)


class Failing(Folder):
    """A store whose reads of one file fail a given number of times."""

    def __init__(self, path: Path, file: str, times: int) -> None:
        super().__init__(path)
        self.file, self.times = file, times

    def read(self, name: str) -> bytes:
        if self.file in name and self.times > 0:
            self.times -= 1
            raise OSError(errno.EIO, "the store does not answer")
        return super().read(name)


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)


@pytest.mark.usefixtures("no_pause")
def test_a_read_that_fails_is_tried_again(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1, TENSORS, STATE)
    newest, complaints = newest_checkpoint(Failing(tmp_path, "tensors", times=2))
    assert newest is not None
    assert complaints == []


@pytest.mark.usefixtures("no_pause")
@pytest.mark.parametrize("file", ["tensors.safetensors", "manifest.json"])
def test_a_checkpoint_that_cannot_be_read_at_the_moment_is_skipped_and_kept(tmp_path: Path, file: str) -> None:
    write_checkpoint(tmp_path, 1, TENSORS, STATE)
    second = write_checkpoint(tmp_path, 2, TENSORS, STATE)
    newest, [complaint] = newest_checkpoint(Failing(tmp_path, f"{second}/{file}", times=100))
    assert newest is not None
    assert newest.step == 1
    assert "cannot be read just now" in complaint
    later, complaints = newest_checkpoint(tmp_path)
    assert later is not None
    assert (later.step, complaints) == (2, [])


@pytest.mark.usefixtures("no_pause")
def test_if_no_checkpoint_can_be_read_the_error_is_raised_instead_of_starting_from_scratch(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1, TENSORS, STATE)
    with pytest.raises(OSError, match="the store does not answer"):
        newest_checkpoint(Failing(tmp_path, "tensors", times=100))


def test_a_checkpoint_whose_writer_was_killed_before_the_manifest_does_not_exist(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1, TENSORS, STATE)
    orphan = tmp_path / write_checkpoint(tmp_path, 2, TENSORS, STATE)
    (orphan / "manifest.json").unlink()
    newest, complaints = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 1
    assert complaints == []  # no complete checkpoint was lost
    assert remove_orphans(tmp_path) == [orphan.name]
    assert not orphan.exists()


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none") == (None, [])
    with pytest.raises(ValueError, match="no checkpoint of step 3"):
        find_checkpoint(tmp_path, 3)


def test_pruning_keeps_the_newest_two_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 6):
        write_checkpoint(tmp_path, step, TENSORS, STATE)
    prune_checkpoints(tmp_path, {2})
    assert sorted(int(path.name[5:13]) for path in tmp_path.iterdir()) == [2, 4, 5]
