"""Identifies processes and tells whether they are still alive."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from starlab.platform.runs.records import ProcessId


def this_process() -> ProcessId:
    """Return the identity of this process."""
    pid = os.getpid()
    return ProcessId(host=socket.gethostname(), machine=this_machine(), pid=pid, started=_start_ticks(pid))


def is_dead(process: ProcessId) -> bool:
    """Return whether the process ran on this machine and has ended. Returns False for a process on another machine."""
    return process.machine == this_machine() and _start_ticks(process.pid) != process.started


def this_machine() -> str:
    """Return the boot id and PID namespace. Containers of one host may share its name but not its processes."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115


def _start_ticks(pid: int) -> int | None:
    """Return the clock ticks from boot to the start of the process, or None if it has ended (a zombie has ended)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
