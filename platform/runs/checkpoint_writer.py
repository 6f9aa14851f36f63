"""Checkpoints written in the background, one at a time; training waits only for the copy of its tensors."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch

from starlab.pipelines.storage import Folder
from starlab.platform.runs.checkpoint import prune_checkpoints, remove_orphans, write_checkpoint


class CheckpointWriter:
    """Rank 0's. A write that fails for want of space or of the store costs that checkpoint, not the training."""

    def __init__(
        self,
        storage: Folder,
        check_owner: Callable[[], None],
        sync_journal: Callable[[], None],
        alert: Callable[[int, str], None],
    ) -> None:
        """`alert(step, what)` is told of each checkpoint that is lost.

        Args:
            check_owner: raises when the run is somebody else's by now; called before anything is completed or deleted.
            sync_journal: puts on the disk what the checkpoint knows of; an OSError costs the checkpoint.
        """
        self._storage, self._check_owner, self._sync_journal, self._alert = storage, check_owner, sync_journal, alert
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
                self._check_owner()  # nothing is deleted in a run that is somebody else's by now
                remove_orphans(self._storage)
                prune_checkpoints(self._storage, keep_steps, newest=1)
                write_checkpoint(self._storage, step, tensors, state, self._before_commit)
            self.written = step
        except OSError as error:
            self._tidy(remove_orphans)
            self._alert(step, f"the checkpoint could not be written ({error}); training goes on, older ones are kept")
        except BaseException as error:  # raised by the next wait()
            self._failure = error
        else:
            self._tidy(lambda storage: prune_checkpoints(storage, keep_steps))

    def _before_commit(self) -> None:
        self._sync_journal()
        self._check_owner()

    def _tidy(self, delete: Callable[[Folder], object]) -> None:
        """Delete, if the run is still ours; what cannot be deleted now is tried again after the next checkpoint."""
        try:
            self._check_owner()
            delete(self._storage)
        except OSError:
            pass
        except BaseException as error:
            self._failure = error
