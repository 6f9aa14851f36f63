"""A checkpoint is a directory whose manifest was written last; without one, or with a wrong hash, it does not exist.

    checkpoints/step_00000900-3f2a/
      tensors.safetensors   model, optimizer and averages, flat names
      state.json            where training stood: step, best so far, epoch sums, journal length
      manifest.json         size and SHA-256 of the two

No pickle anywhere. True on a disk and on a store without atomic renames.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

_MANIFEST, _TENSORS, _STATE = "manifest.json", "tensors.safetensors", "state.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose every byte was checked."""

    path: Path
    step: int
    tensors: dict[str, torch.Tensor]
    """On the CPU."""
    state: dict[str, Any]


def write_checkpoint(folder: Path, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> Path:
    """Write a checkpoint of `step` into a fresh directory under `folder`; it exists once its manifest does."""
    path = folder / f"step_{step:08d}-{uuid.uuid4().hex[:4]}"
    path.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / _TENSORS)
    (path / _STATE).write_text(json.dumps(dict(state), sort_keys=True))
    files = {}
    for name in (_TENSORS, _STATE):
        _sync(path / name)
        files[name] = {"bytes": (path / name).stat().st_size, "sha256": _sha256(path / name)}
    draft = path / f"{_MANIFEST}.draft"
    draft.write_text(json.dumps({"step": step, "files": files}))
    _sync(draft)
    draft.replace(path / _MANIFEST)
    _sync(path)
    return path


def read_checkpoint(path: Path) -> Checkpoint:
    """Check every byte of a checkpoint against its manifest and load it.

    Raises:
        ValueError: it is incomplete or damaged; the message says which file and how.
    """
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        for name, expected in manifest["files"].items():
            size = (path / name).stat().st_size
            if size != expected["bytes"]:
                raise ValueError(f"{path / name} holds {size} bytes, its manifest says {expected['bytes']}")
            if _sha256(path / name) != expected["sha256"]:
                raise ValueError(f"{path / name} is damaged: its SHA-256 is not the manifest's")
        state = json.loads((path / _STATE).read_text())
        return Checkpoint(path, int(manifest["step"]), load_file(path / _TENSORS), state)
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no complete checkpoint: {error!r}") from error


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and what is wrong with the newer ones, which are set aside as *.damaged."""
    complaints: list[str] = []
    for path in sorted(folder.glob("step_????????-????"), reverse=True):
        try:
            return read_checkpoint(path), complaints
        except ValueError as error:
            if (path / _MANIFEST).exists():
                complaints.append(str(error))
            path.rename(path.with_name(f"{path.name}.damaged"))
    return None, complaints


def find_checkpoint(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of exactly this step.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    paths = sorted(folder.glob(f"step_{step:08d}-????"))
    if not paths:
        raise ValueError(f"{folder} holds no checkpoint of step {step}")
    return read_checkpoint(paths[-1])


def prune_checkpoints(folder: Path, keep_steps: set[int], newest: int = 2) -> None:
    """Delete all but the `newest` whole checkpoints and those of the steps in `keep_steps`."""
    whole = sorted(path for path in folder.glob("step_????????-????") if (path / _MANIFEST).exists())
    for path in whole[:-newest]:
        if int(path.name[5:13]) not in keep_steps:
            (path / _MANIFEST).unlink()  # first: a half-deleted checkpoint must not look whole
            shutil.rmtree(path)


class CheckpointWriter:
    """Writes checkpoints in the background, one at a time; training waits only for the copy of its tensors."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self.written: Path | None = None
        """The last checkpoint that is complete."""

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any], keep_steps: set[int]) -> None:
        """Copy the tensors and return; the write goes on in the background. Waits for the one before."""
        self.wait()
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        frozen = json.loads(json.dumps(dict(state)))
        self._thread = threading.Thread(target=self._write, args=(step, copies, frozen, keep_steps), name="starlab-checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is in flight.

        Raises:
            OSError: the write failed (a full disk, say).
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _write(self, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any], keep_steps: set[int]) -> None:
        try:
            self.written = write_checkpoint(self._folder, step, tensors, state)
            prune_checkpoints(self._folder, keep_steps)
        except BaseException as error:  # raised by the next wait()
            self._failure = error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
