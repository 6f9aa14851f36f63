"""Ending a training before its end, on request: a checkpoint within the grace time, and the same command goes on.

Two ways to ask. SIGTERM to the driver (a batch system, a container's end) leaves a request in the run's folder, which rank 0
looks for at every step. A cluster that is about to take a node away tells Ray, and Ray tells the ranks. Either way all ranks
stop at the same step.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import ray
from ray.train.v2._internal.execution.context import get_train_context as ray_train_context

from starlab.platform.errors import StarlabError
from starlab.platform.run_folder import RunFolder

REQUEST, DONE = "preempt.json", "preempted.json"


class RunPreemptedError(StarlabError):
    """The run ended before its end because it was asked to; it goes on when started again."""

    exit_code = 128 + signal.SIGTERM


@contextmanager
def heed_sigterm(folder: RunFolder, grace_seconds: float) -> Iterator[None]:
    """Inside, SIGTERM asks the run to checkpoint and end; when it has not by the grace time, `RunPreemptedError` ends the wait.

    Only in a process's main thread, where Python lets signals be handled; elsewhere nothing is done.
    """
    for name in (REQUEST, DONE):
        (folder.path / name).unlink(missing_ok=True)
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_term(_: int, __: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, grace_seconds)
        with suppress(OSError):  # no room for the request: the grace time ends the run
            folder.write_json(REQUEST, {"reason": "the driver got SIGTERM"})

    def on_alarm(_: int, __: FrameType | None) -> None:
        raise RunPreemptedError(
            f"run {folder.path.name} was asked to end and did not within {grace_seconds:g} s (resources.grace_seconds); "
            "the same command goes on from its newest checkpoint"
        )

    before: list[Any] = [signal.signal(signal.SIGTERM, on_term), signal.signal(signal.SIGALRM, on_alarm)]
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, before[0] or signal.SIG_DFL)
        signal.signal(signal.SIGALRM, before[1] or signal.SIG_DFL)


def why_to_end(folder: RunFolder, rank: int) -> str | None:
    """In a rank, at every step: why this run is to end now; None when it is not."""
    if rank == 0 and (folder.path / REQUEST).exists():
        return str(folder.read_json(REQUEST)["reason"])
    # The public get_preemption_info() is a barrier over all ranks through an actor, too slow for every step.
    info = ray_train_context().preemption_context.preemption_info
    return f"the cluster takes away {len(info.preempted_node_to_ranks)} of its nodes" if info is not None else None


def room_elsewhere(cpus: float, gpus: float) -> bool:
    """Whether the nodes that stay have so many CPUs and GPUs in all."""
    leaving = ray._private.state.state.get_draining_nodes()
    staying = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
    free = {kind: sum(resources.get(kind, 0.0) for resources in staying) for kind in ("CPU", "GPU")}
    return bool(free["CPU"] >= cpus and free["GPU"] >= gpus)
