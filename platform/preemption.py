"""Ends a training early on request: it writes a checkpoint within the grace time, and the same command resumes it.

There are two kinds of request. SIGTERM to the driver (a batch system, a container's end) or Ctrl-C leaves a request in the
run's folder, which rank 0 looks for at every step. A cluster that will take a node away tells Ray, which tells all ranks.
In both cases all ranks stop at the same step.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from starlab.platform.errors import StarlabError
from starlab.platform.runs.end_request import clear_request, request_end
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.lifecycle import close_run
from starlab.platform.runs.records import EndRequest


class RunPreemptedError(StarlabError):
    """The run was asked to end and ended early; it goes on when it is started again."""

    def __init__(self, message: str, by: int = signal.SIGTERM) -> None:
        """Create the error; `by` is the signal that asked, SIGTERM for a node that goes away."""
        super().__init__(message)
        self.exit_code = 128 + by


def close_unfinished(folder: RunFolder, error: BaseException) -> None:
    """Record that a search or an ablation ended by this error: KILLED if it was asked to end, else FAILED."""
    if isinstance(error, RunPreemptedError | KeyboardInterrupt):
        close_run(folder, "KILLED", {"starlab.preempted": str(error) or "Ctrl-C"})
    else:
        close_run(folder, "FAILED")


@contextmanager
def end_on_signal(folder: RunFolder, grace_seconds: float) -> Iterator[None]:
    """Within this context SIGTERM or Ctrl-C asks the run to checkpoint and end; a second Ctrl-C ends it at once.

    A run that has not ended within the grace time is left with `RunPreemptedError`. Outside the process's main thread, where
    Python does not allow signal handlers, the context does nothing.
    """
    clear_request(folder)
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    asked: list[int] = []
    before: dict[signal.Signals, Any] = {}
    alarm_before = (0.0, 0.0)

    def on_ask(number: int, _: FrameType | None) -> None:
        nonlocal alarm_before
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not asked:
            before[signal.SIGALRM] = signal.signal(signal.SIGALRM, on_alarm)
            alarm_before = signal.setitimer(signal.ITIMER_REAL, grace_seconds)
        asked.append(number)
        with suppress(OSError):  # the folder cannot be reached: the grace time ends the run
            request_end(folder, EndRequest(reason=f"the driver got {signal.Signals(number).name}", signal=number))

    def on_alarm(_: int, __: FrameType | None) -> None:
        raise RunPreemptedError(
            f"run {folder.path.name} was asked to end and did not within {grace_seconds:g} s (resources.grace_seconds); "
            "the same command goes on from its newest checkpoint",
            by=asked[0],
        )

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, on_ask)
    try:
        yield
    finally:
        if asked:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if asked:  # the timer is the process's, and may be in use by whoever called
            signal.setitimer(signal.ITIMER_REAL, *alarm_before)
