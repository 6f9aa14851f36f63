"""Checkpoints written in the background, one at a time; training waits only for the copy of its tensors."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch

from starlab.platform.checkpoint import prune_checkpoints, remove_orphans, write_checkpoint
from starlab.platform.storage import Storage


class CheckpointWriter:
    """Rank 0's. A write that fails for want of space or of the store costs that checkpoint, not the training."""

    def __init__(self, storage: Storage, before_commit: Callable[[], None], alert: Callable[[int, str], None]) -> None:
        """`before_commit` may refuse a checkpoint by raising; `alert(step, what)` is told of each one that is lost."""
        self._storage, self._before_commit, self._alert = storage, before_commit, alert
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self.written: int | None = None
        """Step of the last checkpoint that is complete."""

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
            LeaseLostError: the run is somebody else's by now.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _write(self, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any], keep_steps: set[int]) -> None:
        try:
            try:
                write_checkpoint(self._storage, step, tensors, state, self._before_commit)
            except OSError:  # once more, without what is half written and with only one older one
                remove_orphans(self._storage)
                prune_checkpoints(self._storage, keep_steps, newest=1)
                write_checkpoint(self._storage, step, tensors, state, self._before_commit)
            self.written = step
        except OSError as error:
            with contextlib.suppress(OSError):
                remove_orphans(self._storage)
            self._alert(step, f"the checkpoint could not be written ({error}); training goes on, older ones are kept")
        except BaseException as error:  # raised by the next wait()
            self._failure = error
        else:
            with contextlib.suppress(OSError):  # the next one tries again
                prune_checkpoints(self._storage, keep_steps)
