"""Writes, reads and prunes checkpoints: folders whose manifest is written last.

    checkpoints/step_00000900-3f2a/
      tensors.safetensors   model, optimizer and averages, flat names
      state.json            progress of the training: step, best so far, epoch sums, loss scale, journal length
      manifest.json         size and SHA-256 of the other two files

A checkpoint without a manifest, or whose files do not match it, does not exist. Nothing is pickled and nothing is renamed,
so the format works on a disk and on object storage such as S3. A checkpoint may come from someone else, so nothing outside its
folder is read, whatever its manifest names and wherever its symbolic links point.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from starlab.pipelines.storage import Folder

_MANIFEST, _TENSORS, _STATE = "manifest.json", "tensors.safetensors", "state.json"
_SET_ASIDE = "manifest.json.damaged"
_SECONDS_BETWEEN_READS = (1.0, 3.0)
"""Waits before a failed read is repeated: a file that cannot be read at the moment is not necessarily damaged."""
Place = Folder | Path


class UnsafeCheckpointError(ValueError):
    """A checkpoint would make its reader open a file outside its folder."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in memory. Every byte was checked against the manifest."""

    name: str
    step: int
    tensors: dict[str, torch.Tensor]
    """Tensors by flat name, on the CPU."""
    state: dict[str, Any]


def write_checkpoint(
    place: Place,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    before_commit: Callable[[], None] = lambda: None,
) -> str:
    """Write a checkpoint of `step` into a new folder and return the folder's name.

    The manifest is written last, so the checkpoint does not exist before it is complete.

    Args:
        before_commit: Called after the data files and before the manifest are written.

    Raises:
        OSError: A file could not be written. The partial folder does not count as a checkpoint.
        Exception: Any exception that `before_commit` raises.
    """
    storage, name = _storage(place), f"step_{step:08d}-{uuid.uuid4().hex[:4]}"
    contents = {
        _TENSORS: safetensors.torch.save({key: tensor.contiguous() for key, tensor in tensors.items()}),
        _STATE: json.dumps(dict(state), sort_keys=True).encode(),
    }
    files = {}
    for file, data in contents.items():
        storage.put(f"{name}/{file}", data)
        files[file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    before_commit()
    storage.put(f"{name}/{_MANIFEST}", json.dumps({"step": step, "files": files}).encode())
    return name


def read_checkpoint(place: Place, name: str) -> Checkpoint:
    """Check every byte of a checkpoint against its manifest and load it.

    Raises:
        ValueError: The checkpoint is incomplete or damaged, or it names a file outside its folder. The message names the file
            and the damage.
        OSError: A file could not be read in three attempts, so it is unknown whether the checkpoint is whole.
    """
    storage = _storage(place)
    try:
        _check_inside(storage, name, _MANIFEST)
        manifest = json.loads(_read(storage, f"{name}/{_MANIFEST}"))
        contents: dict[str, bytes] = {}
        for file, expected in manifest["files"].items():
            _check_inside(storage, name, file)
            data = contents[file] = _read(storage, f"{name}/{file}")
            if len(data) != expected["bytes"]:
                raise ValueError(f"{storage}/{name}/{file} holds {len(data)} bytes, but its manifest says {expected['bytes']}")
            if hashlib.sha256(data).hexdigest() != expected["sha256"]:
                raise ValueError(f"{storage}/{name}/{file} is damaged: its SHA-256 does not match the manifest")
        tensors = safetensors.torch.load(contents[_TENSORS])
        return Checkpoint(name, int(manifest["step"]), tensors, json.loads(contents[_STATE]))
    except (FileNotFoundError, AttributeError, KeyError, TypeError, json.JSONDecodeError, safetensors.SafetensorError) as error:
        raise ValueError(f"{storage}/{name} is not a complete checkpoint: {error!r}") from error


def newest_checkpoint(place: Place) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest whole checkpoint, or None, and a message for each newer one that was skipped.

    A damaged checkpoint is set aside and not tried again. One that cannot be read at the moment, or that leads out of its
    folder, is skipped and left unchanged.

    Raises:
        OSError: No checkpoint is known to be whole, and at least one could not be read. Starting from scratch could lose it.
    """
    storage = _storage(place)
    complaints: list[str] = []
    unread: OSError | None = None
    for name in reversed(_complete(storage)):
        try:
            return read_checkpoint(storage, name), complaints
        except UnsafeCheckpointError as error:
            complaints.append(f"refused: {error}")
        except ValueError as error:
            complaints.append(f"set aside: {error}")
            storage.put(f"{name}/{_SET_ASIDE}", _read(storage, f"{name}/{_MANIFEST}"))
            storage.delete(f"{name}/{_MANIFEST}")
        except OSError as error:
            complaints.append(f"skipped, it cannot be read just now: {storage}/{name}: {error}")
            unread = error
    if unread is not None:
        raise unread
    return None, complaints


def find_checkpoint(place: Place, step: int) -> Checkpoint:
    """Load the checkpoint of exactly this step.

    Raises:
        ValueError: The checkpoint does not exist or is damaged.
    """
    storage = _storage(place)
    names = [name for name in _complete(storage) if name.startswith(f"step_{step:08d}-")]
    if not names:
        raise ValueError(f"{storage} holds no checkpoint of step {step}")
    for name in names[1:]:  # a step that was trained twice has two equal checkpoints
        try:
            return read_checkpoint(storage, name)
        except ValueError:
            continue
    return read_checkpoint(storage, names[0])


def checkpoint_steps(place: Place) -> list[int]:
    """Return the steps of all checkpoints that have a manifest, in ascending order. Their files are not checked."""
    return sorted({int(name[5:13]) for name in _complete(_storage(place))})


def remove_orphans(place: Place) -> list[str]:
    """Delete the folders of checkpoints that were never completed and return their names.

    Call it only while no other process writes checkpoints to `place`.
    """
    storage = _storage(place)
    orphans = [
        name
        for name in storage.folders()
        if name.startswith("step_") and not any(storage.has(f"{name}/{file}") for file in (_MANIFEST, _SET_ASIDE))
    ]
    for name in orphans:
        storage.delete(name)
    return orphans


def prune_checkpoints(place: Place, keep_steps: set[int], newest: int = 2) -> None:
    """Delete all complete checkpoints except the `newest` ones and those of the steps in `keep_steps`."""
    storage = _storage(place)
    complete = _complete(storage)
    for name in complete[: max(0, len(complete) - newest)]:
        if int(name[5:13]) not in keep_steps:
            storage.delete(f"{name}/{_MANIFEST}")  # deleted first: a half-deleted checkpoint must not look whole
            storage.delete(name)


def _check_inside(storage: Folder, name: str, file: str) -> None:
    """Check that a file of the checkpoint `name` is in the checkpoint's own folder.

    Raises:
        UnsafeCheckpointError: The name or a symbolic link leads out of the folder.
    """
    if file in ("", ".", "..") or "/" in file or "\\" in file:
        raise UnsafeCheckpointError(
            f"{storage}/{name}/{_MANIFEST} names {file!r}, which is not a file of its folder; no checkpoint of starlab does, "
            "so do not use this one unless you know who wrote it"
        )
    if storage.is_local:
        folder = (Path(storage.files.base_path) / name).resolve()
        target = (folder / file).resolve()
        if target.parent != folder:
            raise UnsafeCheckpointError(
                f"{storage}/{name}/{file} is a symbolic link to {target}, outside its folder; replace the link by the file"
            )


def _read(storage: Folder, name: str) -> bytes:
    for seconds in _SECONDS_BETWEEN_READS:
        try:
            return storage.read(name)
        except FileNotFoundError:
            raise
        except OSError:
            time.sleep(seconds)
    return storage.read(name)


def _complete(storage: Folder) -> list[str]:
    """Return the names of the checkpoints that have a manifest, oldest first."""
    return [name for name in storage.folders() if name.startswith("step_") and storage.has(f"{name}/{_MANIFEST}")]


def _storage(place: Place) -> Folder:
    return Folder(place) if isinstance(place, Path) else place
