"""A checkpoint is a folder whose manifest was written last; without one, or with a wrong hash, it does not exist.

    checkpoints/step_00000900-3f2a/
      tensors.safetensors   model, optimizer and averages, flat names
      state.json            where training stood: step, best so far, epoch sums, loss scale, journal length
      manifest.json         size and SHA-256 of the two

No pickle anywhere, and no rename: true on a disk and on a store such as S3.
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
"""A store that fails is asked again: what cannot be read just now is not damaged."""
Place = Folder | Path


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose every byte was checked."""

    name: str
    step: int
    tensors: dict[str, torch.Tensor]
    """On the CPU."""
    state: dict[str, Any]


def write_checkpoint(
    place: Place,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    before_commit: Callable[[], None] = lambda: None,
) -> str:
    """Write a checkpoint of `step` into a fresh folder; it exists once its manifest does. Returns the folder's name.

    Raises:
        OSError: it could not be written; what there is of it is no checkpoint.
        Exception: whatever `before_commit`, called before the manifest is written, raises.
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
        ValueError: it is incomplete or damaged; the message says which file and how.
        OSError: it could not be read, in three tries; nothing is known about it.
    """
    storage = _storage(place)
    try:
        manifest = json.loads(_read(storage, f"{name}/{_MANIFEST}"))
        contents: dict[str, bytes] = {}
        for file, expected in manifest["files"].items():
            data = contents[file] = _read(storage, f"{name}/{file}")
            if len(data) != expected["bytes"]:
                raise ValueError(f"{storage}/{name}/{file} holds {len(data)} bytes, its manifest says {expected['bytes']}")
            if hashlib.sha256(data).hexdigest() != expected["sha256"]:
                raise ValueError(f"{storage}/{name}/{file} is damaged: its SHA-256 is not the manifest's")
        tensors = safetensors.torch.load(contents[_TENSORS])
        return Checkpoint(name, int(manifest["step"]), tensors, json.loads(contents[_STATE]))
    except (FileNotFoundError, KeyError, TypeError, json.JSONDecodeError, safetensors.SafetensorError) as error:
        raise ValueError(f"{storage}/{name} is no complete checkpoint: {error!r}") from error


def newest_checkpoint(place: Place) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and what is wrong with the newer ones.

    Damaged ones are set aside and never tried again. One that cannot be read just now is left as it is, for another time.

    Raises:
        OSError: none is whole, and one may be but cannot be read: to start from nothing would be wrong.
    """
    storage = _storage(place)
    complaints: list[str] = []
    unread: OSError | None = None
    for name in reversed(_complete(storage)):
        try:
            return read_checkpoint(storage, name), complaints
        except ValueError as error:
            complaints.append(f"set aside: {error}")
            storage.put(f"{name}/{_SET_ASIDE}", _read(storage, f"{name}/{_MANIFEST}"))
            storage.delete(f"{name}/{_MANIFEST}")
        except OSError as error:
            complaints.append(f"passed over, it cannot be read just now: {storage}/{name}: {error}")
            unread = error
    if unread is not None:
        raise unread
    return None, complaints


def find_checkpoint(place: Place, step: int) -> Checkpoint:
    """The checkpoint of exactly this step.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    storage = _storage(place)
    names = [name for name in _complete(storage) if name.startswith(f"step_{step:08d}-")]
    if not names:
        raise ValueError(f"{storage} holds no checkpoint of step {step}")
    for name in names[1:]:  # the same step trained twice is the same checkpoint twice
        try:
            return read_checkpoint(storage, name)
        except ValueError:
            continue
    return read_checkpoint(storage, names[0])


def checkpoint_steps(place: Place) -> list[int]:
    """Steps of the complete checkpoints, ascending; whether they are whole is not looked at."""
    return sorted({int(name[5:13]) for name in _complete(_storage(place))})


def remove_orphans(place: Place) -> list[str]:
    """Delete folders whose writer was ended before the manifest; their names. Only while nobody else writes here."""
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
    """Delete all but the `newest` complete checkpoints and those of the steps in `keep_steps`."""
    storage = _storage(place)
    complete = _complete(storage)
    for name in complete[: max(0, len(complete) - newest)]:
        if int(name[5:13]) not in keep_steps:
            storage.delete(f"{name}/{_MANIFEST}")  # first: a half-deleted checkpoint must not look whole
            storage.delete(name)


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
    """Oldest first."""
    return [name for name in storage.folders() if name.startswith("step_") and storage.has(f"{name}/{_MANIFEST}")]


def _storage(place: Place) -> Folder:
    return Folder(place) if isinstance(place, Path) else place
