"""Writes checkpoints in the background, one at a time. Training waits only while its tensors are copied."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch

from starlab.pipelines.storage import Folder
from starlab.platform.runs.checkpoint import prune_checkpoints, remove_orphans, write_checkpoint


class CheckpointWriter:
    """Writes the checkpoints of a run, on rank 0.

    When a write fails because the disk is full or the storage is unavailable, that checkpoint is lost and training continues.
    """

    def __init__(
        self,
        storage: Folder,
        check_owner: Callable[[], None],
        sync_journal: Callable[[], None],
        alert: Callable[[int, str], None],
    ) -> None:
        """Create a writer; no thread runs before the first `save`.

        Args:
            storage: Folder of the run's checkpoints.
            check_owner: Raises LeaseLostError if another process owns the run. Called before a checkpoint is completed and
                before anything is deleted.
            sync_journal: Flushes to disk the metrics that the checkpoint refers to. If it raises OSError, the checkpoint is
                lost.
            alert: Called with the step and the reason for each checkpoint that is lost.
        """
        self._storage, self._check_owner, self._sync_journal, self._alert = storage, check_owner, sync_journal, alert
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self.written: int | None = None
        """Step of the last checkpoint that this writer completed."""

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any], keep_steps: set[int]) -> None:
        """Wait for the previous checkpoint, copy the tensors, and write the new one in the background."""
        self.wait()
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        frozen = json.loads(json.dumps(dict(state)))
        self._thread = threading.Thread(target=self._write, args=(step, copies, frozen, keep_steps), name="starlab-checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until no checkpoint is being written.

        Raises:
            LeaseLostError: Another process owns the run.
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
            except OSError:  # try again with more room: delete partial checkpoints and all but one older one
                self._check_owner()  # delete nothing if another process owns the run
                remove_orphans(self._storage)
                prune_checkpoints(self._storage, keep_steps, newest=1)
                write_checkpoint(self._storage, step, tensors, state, self._before_commit)
            self.written = step
        except OSError as error:
            self._tidy(remove_orphans)
            self._alert(
                step, f"the checkpoint could not be written ({error}); training continues and older checkpoints are kept"
            )
        except BaseException as error:  # the next wait() raises it
            self._failure = error
        else:
            self._tidy(lambda storage: prune_checkpoints(storage, keep_steps))

    def _before_commit(self) -> None:
        self._sync_journal()
        self._check_owner()

    def _tidy(self, delete: Callable[[Folder], object]) -> None:
        """Call `delete` if this process still owns the run. A failed deletion is repeated after the next checkpoint."""
        try:
            self._check_owner()
            delete(self._storage)
        except OSError:
            pass
        except BaseException as error:
            self._failure = error
