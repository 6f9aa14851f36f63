"""Ends a training before its end, on request: a checkpoint within the grace time, and the same command goes on.

There are two ways to ask. SIGTERM to the driver (a batch system, a container's end) or Ctrl-C leaves a request in the run's
folder, which rank 0 looks for at every step. A cluster that is about to take a node away tells Ray, and Ray tells the ranks.
Either way all ranks stop at the same step.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import ray

from starlab.platform.errors import StarlabError
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.records import EndRequest


class RunPreemptedError(StarlabError):
    """The run ended before its end because it was asked to; it goes on when started again."""

    def __init__(self, message: str, by: int = signal.SIGTERM) -> None:
        """`by` is the signal that asked; a node that goes away counts as SIGTERM."""
        super().__init__(message)
        self.exit_code = 128 + by


@contextmanager
def end_on_signal(folder: RunFolder, grace_seconds: float) -> Iterator[None]:
    """Inside, SIGTERM or Ctrl-C asks the run to checkpoint and end; a second Ctrl-C ends it at once.

    When it has not ended by the grace time, `RunPreemptedError` ends the wait.

    Only in a process's main thread, where Python lets signals be handled; elsewhere this does nothing.
    """
    folder.remove(EndRequest)
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    asked: list[int] = []

    def on_ask(number: int, _: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)
        signal.setitimer(signal.ITIMER_REAL, grace_seconds)
        with suppress(OSError):  # no room for the request: the grace time ends the run
            folder.write(EndRequest(reason=f"the driver got {signal.Signals(number).name}", signal=number))

    def on_alarm(_: int, __: FrameType | None) -> None:
        raise RunPreemptedError(
            f"run {folder.path.name} was asked to end and did not within {grace_seconds:g} s (resources.grace_seconds); "
            "the same command goes on from its newest checkpoint",
            by=asked[0],
        )

    handlers = {signal.SIGTERM: on_ask, signal.SIGINT: on_ask, signal.SIGALRM: on_alarm}
    before: dict[signal.Signals, Any] = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def room_elsewhere(cpus: float, gpus: float) -> bool:
    """Whether the nodes that stay have so many CPUs and GPUs in all."""
    leaving = ray._private.state.state.get_draining_nodes()
    staying = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
    free = {kind: sum(resources.get(kind, 0.0) for resources in staying) for kind in ("CPU", "GPU")}
    return bool(free["CPU"] >= cpus and free["GPU"] >= gpus)
