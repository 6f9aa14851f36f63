"""One process trains a run at a time: it takes a lease, renews it, and gives it back.

    lease.json   {"fence": 7, "owner": {"host": …, "pid": …, "started": …}, "renewed": …, "seconds": 60, "released": false}

The fencing number grows by one with every lease. A process that was stopped and wakes up after its lease had run out still
holds the old number, and with it can no longer complete a checkpoint or write a metric. On the same machine a dead owner is
known to be dead, so no process waits for its lease to run out.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Self

from starlab.platform.errors import StarlabError, UserError
from starlab.platform.runs.background import Background
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.locking import file_lock
from starlab.platform.runs.process import is_dead, this_process
from starlab.platform.runs.records import DamagedRecordError, LeaseState, ProcessId

FILE = LeaseState.FILE
SECONDS = 60.0
"""A lease that was not renewed for so long is free: longer than any pause of a process that still lives."""


class RunTakenError(UserError):
    """Another process trains this run."""


class LeaseLostError(StarlabError):
    """This process no longer owns the run that it trains."""


class Lease:
    """A run's lease in the hands of this process; a thread renews it until `release`."""

    def __init__(self, folder: Path, fence: int, owner: ProcessId, seconds: float) -> None:
        """Use `claim`."""
        self.fence = fence
        self._folder, self._owner, self._seconds = folder, owner, seconds
        self._renewing = Background("starlab-lease", self._renew, seconds / 4).start()

    @classmethod
    def claim(cls, folder: Path, seconds: float = SECONDS) -> Lease:
        """Take the run in `folder`, which is created if need be.

        Raises:
            RunTakenError: another process has it; names that process and the time left.
        """
        folder.mkdir(parents=True, exist_ok=True)
        me = this_process()
        with _locked(folder):
            held = _read(folder)
            if held and not held.released:
                left = held.renewed + held.seconds - time.time()
                if left > 0 and not is_dead(held.owner):
                    raise RunTakenError(
                        f"run {folder.name} is being trained by process {held.owner.pid} on {held.owner.host}; wait for it or "
                        f"end it. Its lease, unless renewed, runs out in {left:.0f} s (lease {held.fence}, {folder / FILE})"
                    )
            fence = held.fence + 1 if held else 1
            _write(folder, fence, me, seconds, released=False)
        return cls(folder, fence, me, seconds)

    def holds(self) -> bool:
        """Whether the run still belongs to this process."""
        held = _read(self._folder)
        return held is not None and held.fence == self.fence

    def release(self) -> None:
        """Give the run back, so that the next process need not wait."""
        self._renewing.stop()
        with suppress(OSError):  # a full disk: this process is soon seen to be dead
            self._put(released=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _renew(self) -> None:
        with suppress(OSError):  # a full disk or an absent server; the next try comes before the lease has run out
            self._put(released=False)

    def _put(self, released: bool) -> None:
        if not self._folder.is_dir():
            return
        with _locked(self._folder):
            if self.holds():
                _write(self._folder, self.fence, self._owner, self._seconds, released)


def check_fence(folder: Path, fence: int) -> None:
    """Check, before anything is added to a run, that the lease under which the training began is still the newest.

    Raises:
        LeaseLostError: another process has taken the run over.
    """
    held = _read(folder)
    if held is None or held.fence != fence:
        by = (
            f"process {held.owner.pid} on {held.owner.host} (lease {held.fence}"
            if held
            else "another process (no lease is left"
        )
        raise LeaseLostError(f"run {folder.name} was taken over by {by}, ours was {fence}); this process leaves it alone")


def _locked(folder: Path) -> AbstractContextManager[None]:
    """Makes looking and writing one act; held for a moment only."""
    return file_lock(folder / f".{FILE}.lock")


def _read(folder: Path) -> LeaseState | None:
    try:
        return RunFolder(folder).read(LeaseState)
    except DamagedRecordError as error:
        raise UserError(
            f"{error}. Without it, it is unknown whether another process trains this run: make sure that none does, and "
            "delete the file"
        ) from None


def _write(folder: Path, fence: int, owner: ProcessId, seconds: float, released: bool) -> None:
    RunFolder(folder).write(LeaseState(fence=fence, owner=owner, renewed=time.time(), seconds=seconds, released=released))
