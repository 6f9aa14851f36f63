"""Which process is which, and whether it still lives."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from starlab.platform.runs.records import ProcessId


def this_process() -> ProcessId:
    """The identity of this process."""
    pid = os.getpid()
    return ProcessId(host=socket.gethostname(), machine=this_machine(), pid=pid, started=_start_ticks(pid))


def is_dead(process: ProcessId) -> bool:
    """True when the process ran on this machine and has ended; False when it lives, or ran where it cannot be seen."""
    return process.machine == this_machine() and _start_ticks(process.pid) != process.started


def this_machine() -> str:
    """Boot id and process-number space: containers of one host may share its name, but not its processes."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115


def _start_ticks(pid: int) -> int | None:
    """Clock ticks from boot to the process's start; None when it has ended, also as a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
