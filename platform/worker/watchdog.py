"""Detects and kills a stuck rank, with a supervisor process beside each rank.

Ray Train detects a dead worker, but not one that sleeps, waits forever or hangs in C code, and it notices a process stopped by
a signal only after ten minutes. So each rank starts this file as a separate process and sends it a byte per forward pass. If
no byte arrives for `stuck_after_seconds`, a C signal handler, which needs no Python lock, writes the stack of every thread to
the run's folder. A few seconds later, once all ranks have written their stacks, the supervisor kills the rank. Ray then sees a
dead worker and restarts the group from the newest checkpoint.

This module uses only the standard library, because the supervisor is started by path, without the rest of the package.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

STACKS_SECONDS = 5.0
"""Wait between writing the stacks and the kill. All ranks stall within a step of each other, and each writes its own."""


class Watchdog:
    """Supervises a rank while it trains. The rank calls `beat` for every forward pass."""

    def __init__(self, folder: Path, rank: int, stuck_after_seconds: float) -> None:
        """Start the supervisor. Stacks go to `folder`/stacks/rank-N.txt, which begins with the rank's process id."""
        path = folder / "stacks" / f"rank-{rank}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stacks = path.open("a", buffering=1)
        self._stacks.write(f"rank {rank} is process {os.getpid()} on {socket.gethostname()}\n")
        faulthandler.register(signal.SIGUSR2, self._stacks, all_threads=True)
        reader, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        command = [sys.executable, "-I", __file__, str(os.getpid()), str(reader), str(stuck_after_seconds), str(path)]
        self._supervisor = subprocess.Popen(
            [*command, str(folder / f"events.watchdog-{rank}.jsonl"), str(rank)], pass_fds=[reader], start_new_session=True
        )
        os.close(reader)

    def beat(self) -> None:
        """Report a forward pass, in about a microsecond. Does nothing if the supervisor has ended or is behind."""
        with contextlib.suppress(OSError):
            os.write(self._pipe, b".")

    def close(self) -> None:
        """Stop the supervisor and wait for it to end."""
        os.close(self._pipe)
        self._supervisor.wait()
        faulthandler.unregister(signal.SIGUSR2)
        self._stacks.close()


def supervise(pid: int, pipe: int, stuck_after_seconds: float, stacks: Path, events: Path, rank: int) -> None:
    """Wait for beats until the rank ends or is stuck. Runs in the supervisor process."""
    while True:
        if select.select([pipe], [], [], stuck_after_seconds)[0]:
            if not os.read(pipe, 1 << 16):
                return
            continue
        state = "it was stopped by a signal" if _is_stopped(pid) else "its stacks follow"
        with stacks.open("a") as file:
            file.write(f"no forward pass for {stuck_after_seconds:g} s at {time.strftime('%F %T')}; {state}\n")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR2)
            if select.select([pipe], [], [], STACKS_SECONDS)[0]:
                continue  # the rank continues, or has ended
            says = f"no forward pass for {stuck_after_seconds:g} s: {state}; process {pid} is killed, see {stacks}"
            with contextlib.suppress(OSError), events.open("a") as file:
                file.write(json.dumps({"time": time.time(), "kind": "stuck", "rank": rank, "step": None, "says": says}) + "\n")
            os.kill(pid, signal.SIGKILL)
        return


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


if __name__ == "__main__":
    supervise(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]), int(sys.argv[6]))
