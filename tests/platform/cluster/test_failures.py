"""What a failed group of workers says: one line with the cause and, where it is known, the fix."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.poll import WorkerStatus

from starlab.platform.cluster.controllers import PatientGroup
from starlab.platform.cluster.failures import explain, is_lack_of_room

MEMORY = OutOfMemoryError(
    "Task was killed due to the node running low on memory.\nMemory on the node (IP: 10.0.0.5, ID: ab) where the task was "
    "running was 14.90GB / 15.60GB (0.955), which exceeds the memory usage threshold of 0.95. Ray killed this worker (ID: cd) "
    "because it was the most recently scheduled task; to see more, use `ray logs`.\n"
    "Top 10 memory users:\nPID\tMEM(GB)\tCOMMAND\n1\t9.0\tray::train\nRefer to the documentation on how to address it."
)


def died(text: str = "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR") -> ActorDiedError:
    error = ActorDiedError()
    error.base_error_msg = text
    error.error_msg = (
        f"The actor died unexpectedly before finishing this task.\n\tpid: 4711\n\tip: 10.0.0.5\n{text}\n" + "more\n" * 40
    )
    return error


def raised(text: str) -> UserExceptionWithTraceback:
    return UserExceptionWithTraceback(
        RuntimeError(text), f"Traceback (most recent call last):\n  File …\nRuntimeError: {text}\n"
    )


@pytest.mark.parametrize(
    ("failure", "line"),
    [
        (
            MEMORY,
            "worker 0: Ray ended it because its machine ran out of memory (14.90GB / 15.60GB); use fewer resources.workers, a "
            "smaller train.global_batch or data.frames, train.accumulate, or a machine with more memory",
        ),
        (
            died(),
            "worker 0: its process 4711 on 10.0.0.5 was killed or crashed, and left no message; `dmesg` on that machine shows "
            "whether the kernel's out-of-memory killer ended it",
        ),
        (
            died("The actor died because its node was terminated: the node died"),
            "worker 0: its process 4711 on 10.0.0.5 is gone",
        ),
        (raised("a shape is wrong"), "worker 0: RuntimeError: a shape is wrong"),
    ],
)
def test_a_failure_is_one_line(failure: Exception, line: str) -> None:
    for wrapped in (failure, WorkerHealthCheckFailedError("A worker health check failed.", failure)):
        said = explain(WorkerGroupError("long", {0: wrapped}))
        assert said.startswith(line)
        assert "\n" not in said


def test_of_several_failures_the_one_that_caused_the_others_is_said() -> None:
    peer = raised("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.5]:1234")
    assert explain(WorkerGroupError("long", {0: peer, 1: died()})).startswith("worker 1: its process 4711")
    assert explain(WorkerGroupError("long", {0: peer, 1: raised("mine")})) == "worker 1: RuntimeError: mine"
    assert "out of memory" in explain(WorkerGroupError("long", {0: died(), 1: MEMORY}))


def test_only_a_group_that_found_no_room_counts_as_lack_of_room() -> None:
    assert is_lack_of_room(ControllerError(WorkerGroupStartupTimeoutError(num_workers=2)))
    assert not is_lack_of_room(ControllerError(WorkerGroupStartupFailedError("died while it started")))
    assert not is_lack_of_room(WorkerGroupError("long", {0: died()}))
    assert explain(ControllerError(WorkerGroupStartupFailedError("died\nwhile it started"))) == "while it started"


def test_a_worker_that_cannot_be_reached_for_a_while_stays_in_its_group_and_a_dead_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    away = WorkerHealthCheckFailedError("no answer", ActorUnavailableError("RPC failed", None))
    dead = WorkerHealthCheckFailedError("no answer", died())
    found = [WorkerStatus(running=False, error=away), WorkerStatus(running=False, error=dead), WorkerStatus(running=True)]
    monkeypatch.setattr(WorkerGroup, "_poll_workers_and_collect_errors", lambda *_: found)
    group = object.__new__(PatientGroup)
    assert group._poll_workers_and_collect_errors(1.0) == [WorkerStatus(running=True), *found[1:]]
    assert "the network to its node is broken" in explain(WorkerGroupError("", {0: away}))
