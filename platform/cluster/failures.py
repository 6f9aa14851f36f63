"""Says in one line why a group of Ray Train workers failed and, where it can be known, how to fix it."""

from __future__ import annotations

import re

from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError
from ray.train import ControllerError, TrainingFailedError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

_COLLATERAL = ("Connection closed by peer", "Connection reset by peer", "connectFullMesh", "NCCL", "Timed out waiting")
"""What ranks say whose partner is gone."""


def is_lack_of_room(error: TrainingFailedError) -> bool:
    """Whether the workers were never started because the cluster had no room for them in time."""
    return isinstance(error, ControllerError) and isinstance(error.controller_failure, WorkerGroupStartupTimeoutError)


def is_out_of_reach(failure: BaseException | None) -> bool:
    """Whether a worker could not be reached and, as far as Ray knows, still lives."""
    return isinstance(getattr(failure, "health_check_failure", failure), ActorUnavailableError)


def explain(error: TrainingFailedError) -> str:
    """The cause of a failure in one line. Of several workers' failures, the one that caused the others."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", None) or {}
    if not failures:
        return _last_line(error)
    rank = min(failures, key=lambda rank: (_order(failures[rank]), rank))
    return f"worker {rank}: {explain_process(failures[rank])}"


def explain_process(failure: BaseException) -> str:
    """The cause in one line why one process of Ray failed: out of memory, a lost node, a kill, or its own last words."""
    failure = getattr(failure, "health_check_failure", failure)
    text = str(failure)
    if _is_out_of_memory(failure):
        used = re.search(r"was ([\d.]+ ?GB / [\d.]+ ?GB)", text)
        return (
            f"Ray ended it because its machine ran out of memory{f' ({used[1]})' if used else ''}; use fewer "
            "resources.workers, a smaller train.global_batch or data.frames, train.accumulate, or a machine with more memory"
        )
    if is_out_of_reach(failure):
        return "its process could not be reached, because the network to its node is broken or was for a while"
    if isinstance(failure, RayActorError):
        process, address = re.search(r"\bpid: (\d+)", text), re.search(r"\bip: (\S+)", text)
        where = f" {process[1]}" if process else ""
        where += f" on {address[1]}" if address else ""
        if "node died" in text or "node was terminated" in text or failure.preempted:
            return f"its process{where} is gone because the node was lost"
        return (
            f"its process{where} was killed or crashed, and left no message; `dmesg` on that machine shows whether the "
            "kernel's out-of-memory killer ended it"
        )
    return _last_line(failure)


def _order(failure: BaseException) -> int:
    failure = getattr(failure, "health_check_failure", failure)
    if _is_out_of_memory(failure):
        return 0
    if isinstance(failure, RayActorError):
        return 1
    return 3 if any(words in str(failure) for words in _COLLATERAL) else 2


def _is_out_of_memory(failure: BaseException) -> bool:
    return isinstance(failure, OutOfMemoryError) or "running low on memory" in str(failure)


def _last_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[-1] if text else repr(error)
