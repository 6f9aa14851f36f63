"""Lets one process at a time train a run: it claims a lease, renews it and releases it.

    lease.json   {"fence": 7, "owner": {"host": …, "pid": …, "started": …}, "renewed": …, "seconds": 60, "released": false}

The fencing number grows by one with every lease. A process that was suspended and resumes after its lease has expired still
holds the old number, and can no longer complete a checkpoint or write a metric. A dead owner on the same machine is detected
immediately, so its lease need not expire first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Self

from starlab.platform.errors import StarlabError, UserError
from starlab.platform.runs.background import Background
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.locking import file_lock
from starlab.platform.runs.process import is_dead, this_machine, this_process
from starlab.platform.runs.records import DamagedRecordError, LeaseState, ProcessId

FILE = LeaseState.FILE
SECONDS = 60.0
"""A lease that was not renewed for this long has expired. Longer than any pause of a live process."""
_LOOK_SECONDS = 0.5


class RunTakenError(UserError):
    """Another process is training this run."""


class LeaseLostError(StarlabError):
    """This process no longer owns the run that it is training."""


class Lease:
    """The lease of a run, held by this process. A thread renews it until `release`."""

    def __init__(self, folder: Path, fence: int, owner: ProcessId, seconds: float) -> None:
        """Create a lease that was already written to disk. Use `claim` instead."""
        self.fence = fence
        self._folder, self._owner, self._seconds = folder, owner, seconds
        self._renewing = Background("starlab-lease", self._renew, seconds / 4).start()

    @classmethod
    def claim(cls, folder: Path, seconds: float = SECONDS, wait: Callable[[str], None] | None = None) -> Lease:
        """Claim the run in `folder`, which is created if it does not exist.

        Args:
            folder: Folder of the run.
            seconds: Validity of the lease without renewal.
            wait: Called once with a line for the user if a process on another machine holds the lease. That process may have
                died with its machine, so the claim waits until the lease is renewed or has expired. None does not wait.

        Raises:
            RunTakenError: Another process holds the lease. The message names that process and the time left.
        """
        seen: LeaseState | None = None
        while isinstance(held := cls._claim_now(folder, seconds), LeaseState):
            left = held.renewed + held.seconds - time.time()
            taken = (
                f"run {folder.name} is being trained by process {held.owner.pid} on {held.owner.host}; wait for it or "
                f"end it. Unless renewed, its lease runs out in {left:.0f} s (lease {held.fence}, {folder / FILE})"
            )
            if wait is None or held.owner.machine == this_machine() or (seen or held) != held:
                raise RunTakenError(taken)
            if seen is None:
                wait(f"waiting  to see whether its process still lives: {taken}")
            seen = held
            time.sleep(_LOOK_SECONDS)
        return held

    @classmethod
    def _claim_now(cls, folder: Path, seconds: float) -> Lease | LeaseState:
        """Claim the run, or return the lease of the process that has it."""
        folder.mkdir(parents=True, exist_ok=True)
        me = this_process()
        with _locked(folder):
            held = _read(folder)
            if held and not held.released and time.time() < held.renewed + held.seconds and not is_dead(held.owner):
                return held
            fence = held.fence + 1 if held else 1
            _write(folder, fence, me, seconds, released=False)
        return cls(folder, fence, me, seconds)

    def holds(self) -> bool:
        """Return whether this process still owns the run."""
        held = _read(self._folder)
        return held is not None and held.fence == self.fence

    def advance(self) -> int:
        """Take the next fencing number and return it. Workers that were given the present one can write nothing more.

        A worker on a node that is only cut off from the other nodes may still train for a while.

        Raises:
            LeaseLostError: Another process has taken over the run.
        """
        with _locked(self._folder):
            check_fence(self._folder, self.fence)
            self.fence += 1
            _write(self._folder, self.fence, self._owner, self._seconds, released=False)
        return self.fence

    def release(self) -> None:
        """Release the run so that the next process need not wait."""
        self._renewing.stop()
        with suppress(OSError):  # a full disk: other processes soon see that this one is dead
            self._put(released=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _renew(self) -> None:
        with suppress(OSError):  # a full disk or an unavailable server; the next attempt comes before the lease expires
            self._put(released=False)

    def _put(self, released: bool) -> None:
        if not self._folder.is_dir():
            return
        with _locked(self._folder):
            if self.holds():
                _write(self._folder, self.fence, self._owner, self._seconds, released)


def check_fence(folder: Path, fence: int) -> None:
    """Check that lease number `fence` is still the newest. Call it before anything is written to a run.

    Raises:
        LeaseLostError: Another process has taken over the run.
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
    """Lock the lease file so that a check and the write after it are atomic."""
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
