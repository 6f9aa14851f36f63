"""One process trains a run at a time: whoever wants it takes a lease, renews it, and gives it back.

    lease.json   {"fence": 7, "owner": {"host": …, "pid": …, "started": …}, "renewed": …, "seconds": 60, "released": false}

The fencing number grows by one with every lease. A process that was stopped and wakes up after its lease had run out still
holds the old number, and with it can no longer complete a checkpoint or write a metric. On the same machine a dead owner is
known to be dead, so nobody waits for its lease to run out.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from starlab.platform.errors import StarlabError, UserError
from starlab.platform.runs.reaper import is_dead, this_process

FILE = "lease.json"
SECONDS = 60.0
"""A lease that was not renewed for so long is free: longer than any pause of a process that still lives."""


class RunTakenError(UserError):
    """Another process trains this run."""


class LeaseLostError(StarlabError):
    """This process no longer owns the run that it trains."""


class Lease:
    """A run's lease in the hands of this process; a thread renews it until `release`."""

    def __init__(self, folder: Path, fence: int, owner: dict[str, Any], seconds: float) -> None:
        """Use `claim`."""
        self.fence = fence
        self._folder, self._owner, self._seconds = folder, owner, seconds
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="starlab-lease", daemon=True)
        self._thread.start()

    @classmethod
    def claim(cls, folder: Path, seconds: float = SECONDS) -> Lease:
        """Take the run in `folder`, which is made if need be.

        Raises:
            RunTakenError: another process has it; names that process and the time left.
        """
        folder.mkdir(parents=True, exist_ok=True)
        me = this_process()
        with _locked(folder):
            held = _read(folder)
            if held and not held["released"]:
                owner = held["owner"]
                left = held["renewed"] + held["seconds"] - time.time()
                if left > 0 and not is_dead(owner):
                    raise RunTakenError(
                        f"run {folder.name} is being trained by process {owner['pid']} on {owner['host']}; wait for it or "
                        f"end it. Its lease, unless renewed, runs out in {left:.0f} s (lease {held['fence']}, {folder / FILE})"
                    )
            fence = held["fence"] + 1 if held else 1
            _write(folder, fence, me, seconds, released=False)
        return cls(folder, fence, me, seconds)

    def holds(self) -> bool:
        """Whether the run is still this process's."""
        return bool(_read(self._folder).get("fence") == self.fence)

    def release(self) -> None:
        """Give the run back; the next process need not wait."""
        self._released.set()
        self._thread.join()
        with suppress(OSError):  # a full disk: this process is soon seen to be dead
            self._put(released=True)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _renew(self) -> None:
        while not self._released.wait(self._seconds / 4):
            try:
                self._put(released=False)
            except OSError:  # a full disk or an absent server; the next try comes before the lease has run out
                continue

    def _put(self, released: bool) -> None:
        if not self._folder.is_dir():
            return
        with _locked(self._folder):
            if self.holds():
                _write(self._folder, self.fence, self._owner, self._seconds, released)


def check_fence(folder: Path, fence: int) -> None:
    """Before anything is added to a run: is the lease that the training began under still the newest?

    Raises:
        LeaseLostError: another process has taken the run over.
    """
    held = _read(folder)
    if held.get("fence") != fence:
        owner = held.get("owner", {})
        raise LeaseLostError(
            f"run {folder.name} was taken over by process {owner.get('pid')} on {owner.get('host')} "
            f"(lease {held.get('fence')}, ours was {fence}); this process leaves it alone"
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Look and write as one act. The lock ends with the process that holds it; it is held for a moment only."""
    with (folder / f".{FILE}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(folder: Path) -> dict[str, Any]:
    try:
        held: dict[str, Any] = json.loads((folder / FILE).read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        raise UserError(
            f"{folder / FILE} cannot be read as JSON, so nobody knows whether another process trains this run; "
            "make sure that none does, and delete the file"
        ) from None
    return held


def _write(folder: Path, fence: int, owner: dict[str, Any], seconds: float, released: bool) -> None:
    text = {"fence": fence, "owner": owner, "renewed": time.time(), "seconds": seconds, "released": released}
    draft = folder / f".{FILE}.{os.getpid()}"
    with draft.open("w") as file:
        file.write(json.dumps(text, indent=1))
        file.flush()
        os.fsync(file.fileno())  # an empty lease after a power failure would be worse than none
    draft.replace(folder / FILE)
