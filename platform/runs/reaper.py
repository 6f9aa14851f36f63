"""Closes runs whose driver is gone: killed, it could not say so, and they would look as if they ran for ever.

A run's run.json names its driver: machine, process and start. A driver on this machine that is not there any more is known to
be dead; one on another machine cannot be seen from here and counts as dead long after its lease (lease.py) has run out.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlab.platform.runs.folder import RunFolder

_CLOCKS_DIFFER_SECONDS = 600.0
"""By which the clocks of two machines surely differ less."""


def this_process() -> dict[str, Any]:
    """Names this process for ever: a later one with its number started at another tick, and no clock change moves that."""
    return {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "started": _start_ticks(os.getpid())}


def is_dead(process: dict[str, Any]) -> bool:
    """True when the process ran on this machine and is gone; False when it lives, or runs where we cannot see it."""
    return bool(process.get("machine") == _machine() and _start_ticks(process["pid"]) != process["started"])


def close_abandoned(runs: Path) -> list[RunFolder]:
    """Mark the runs under `runs`, trials of searches included, whose driver died as KILLED; returns them."""
    closed = []
    for path in sorted([*runs.glob("*/run.json"), *runs.glob("*/trials/*/run.json")]):
        folder = RunFolder(path.parent)
        run = folder.read_json("run.json")
        driver = run.get("driver")
        if run.get("status") == "RUNNING" and driver and (is_dead(driver) or _lease_is_over(folder, driver)):
            says = f"process {driver['pid']} on {driver['host']} was gone at {datetime.now(UTC).isoformat(timespec='seconds')}"
            tags = {**run["tags"], "starlab.interrupted": says}
            folder.write_json("run.json", {**run, "status": "KILLED", "tags": tags})
            closed.append(folder)
    return closed


def close_abandoned_everywhere(runs: Path) -> list[RunFolder]:
    """As `close_abandoned`; MLflow is told from a thread that nobody waits for (`starlab sync` does what it cannot)."""
    closed = close_abandoned(runs)
    if closed:
        threading.Thread(target=_tell, args=(closed,), name="starlab-reaper", daemon=True).start()
    return closed


def _tell(closed: list[RunFolder]) -> None:
    from starlab.platform.tracking.sender import Sender

    for folder in closed:
        if folder.read_json("run.json")["status"] == "KILLED":  # it may have been taken up again meanwhile
            Sender(folder).send_now()


def _lease_is_over(folder: RunFolder, driver: dict[str, Any]) -> bool:
    """Whether a driver on another machine has not renewed its lease for so long that no difference of clocks explains it."""
    lease = folder.read_json("lease.json")
    elsewhere = driver.get("machine") != _machine()
    return bool(lease) and elsewhere and time.time() > lease["renewed"] + lease["seconds"] + _CLOCKS_DIFFER_SECONDS


def _machine() -> str:
    """Boot and process-number space: containers of one host may share its name, and not its processes."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115


def _start_ticks(pid: int) -> int | None:
    """Clock ticks from boot to the process's start; None when there is none, or only what is left until its parent looks."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
