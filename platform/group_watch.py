"""Watches a group of workers from the driver: nodes that stop to answer, and room for more workers.

A node that loses its power or its network sends no last packet. The other ranks wait for it in silence until Ray gives it up.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import ray

from starlab.platform.cluster.connect import connect
from starlab.platform.cluster.placement import Placement, demand_of, place
from starlab.platform.cluster.spare_room import SpareRoom
from starlab.platform.errors import UserError
from starlab.platform.runs import events
from starlab.platform.runs.background import Background
from starlab.platform.runs.checkpoint import checkpoint_steps
from starlab.platform.runs.end_request import read_request, request_end
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.records import EndRequest, WorkerNodes
from starlab.platform.worker.tasks import TrainTask

LOOK_SECONDS = 2.0
ANSWER_SECONDS = 2.0
"""A machine answers a new connection in milliseconds, also while its processes are busy: its kernel does."""
MISSED_ANSWERS = 3
GROW_AFTER_SECONDS = 60.0
"""A restart costs up to half a minute, so a group trains for a while before it is replaced by a larger one."""
GROW_SETTLE_SECONDS = 10.0
"""Machines that are started together come one after the other. One restart then takes up all of them."""


class NodeWatch:
    """Records an event when a node with workers no longer answers, answers again, or is given up by Ray."""

    def __init__(
        self, folder: RunFolder, then: str, stuck_after_seconds: float, answers: Callable[[str, int], bool] | None = None
    ) -> None:
        """Watch the nodes that `workers.json` in the run's folder names.

        Args:
            folder: Folder of the run.
            then: What follows when Ray gives a node up, e.g. "the workers start again once there is room for 2".
            stuck_after_seconds: After so long without a step the watchdog ends the group in any case.
            answers: Whether a port of an address takes connections. A test may replace it.
        """
        self._folder, self._then, self._bound = folder, then, stuck_after_seconds
        self._answers = answers or takes_connections
        self._missed: dict[str, int] = {}
        self._silent_since: dict[str, float] = {}
        self._given_up: set[str] = set()

    def look(self) -> None:
        """Look at every node with workers once."""
        group = self._folder.read(WorkerNodes)
        if group is None:
            return
        for node in _nodes():
            ranks = [rank for rank, where in enumerate(group.nodes) if where == node["NodeID"]]
            if ranks and node["NodeID"] not in self._given_up:
                self._look_at(node, ranks)

    def _look_at(self, node: dict[str, Any], ranks: list[int]) -> None:
        name, key = _name(node, ranks), node["NodeID"]
        if not node["Alive"]:
            self._given_up.add(key)
            self._record("node_lost", f"{name} is lost: Ray has given it up. From {self._newest()}, {self._then}")
            return
        if self._answers(node["NodeManagerAddress"], node["NodeManagerPort"]):
            self._missed[key] = 0
            if (since := self._silent_since.pop(key, None)) is not None:
                self._record("node_back", f"{name} answers again after {time.monotonic() - since:.0f} s")
            return
        self._missed[key] = self._missed.get(key, 0) + 1
        if self._missed[key] == MISSED_ANSWERS:
            silent = MISSED_ANSWERS * LOOK_SECONDS
            self._silent_since[key] = time.monotonic() - silent
            at = time.strftime("%H:%M:%S", time.localtime(time.time() + self._bound))
            self._record(
                "node_silent",
                f"{name} has not answered for {silent:.0f} s or more: its power or network is gone, or it is overloaded. The "
                f"other ranks wait for it. When Ray gives it up, in about a minute and at {at} at the latest, {self._then}, "
                f"from {self._newest()}",
            )

    def _newest(self) -> str:
        steps = checkpoint_steps(self._folder.stored_checkpoints)
        return f"the checkpoint of step {max(steps)}" if steps else "the start, as there is no checkpoint yet"

    def _record(self, kind: str, says: str) -> None:
        events.record(self._folder.path, kind, says)


class Growth:
    """Asks once for a larger group when there is room for more workers."""

    def __init__(self, room: SpareRoom, workers: int, most: Callable[[], int], grow: Callable[[int], None]) -> None:
        """Watch the room beside a group of `workers`.

        Args:
            room: Where the room that is found stays reserved.
            workers: Number of workers that train now.
            most: Returns the number of workers that the run may have on the cluster as it is now.
            grow: Called once, with the number of workers for which there is room, the present ones included.
        """
        self._room, self._workers, self._most, self._grow = room, workers, most, grow
        self._began, self._found, self._since = time.monotonic(), 0, time.monotonic()
        self._asked = False

    def look(self) -> None:
        """Look for room once."""
        if self._asked:
            return
        more, now = max(0, self._most() - self._workers), time.monotonic()
        self._room.ask_for(more)
        found = self._room.found() if more else 0
        if found != self._found:
            self._found, self._since = found, now
        settled = found == more or now >= self._since + GROW_SETTLE_SECONDS
        if found and settled and now >= self._began + GROW_AFTER_SECONDS:
            self._asked = True
            self._grow(self._workers + found)


@contextmanager
def watched(task: TrainTask, placement: Placement) -> Iterator[None]:
    """Within this context, watch the nodes of a training's workers and, if it is elastic, the room for more of them."""
    resources, folder = task.spec.resources, task.folder
    if connect().local:
        yield
        return
    workers, is_elastic = placement.workers or resources.max_workers, resources.min_workers < resources.max_workers
    then = "the workers start again" + (
        f" with as many as there is room for, {resources.min_workers} at least"
        if is_elastic
        else f" once there is room for {workers}, for which it waits {resources.wait_for_room_seconds:g} s at most"
    )

    def most() -> int:
        with suppress(UserError):
            return place(task.spec, connect(), placement.share).workers or workers
        return workers

    def grow(to: int) -> None:
        if read_request(folder) is None:
            line = f"there is room for {to} workers instead of {workers}; they go on from the next step"
            events.record(folder.path, "workers", line)
            request_end(folder, EndRequest(reason=f"{to} workers take over", signal=0, resize=True))

    folder.remove(WorkerNodes)  # of the group before
    with ExitStack() as stack:
        nodes = NodeWatch(folder, then, resources.stuck_after_seconds)
        # The last look is for a node whose loss has ended the group before the next one.
        stack.enter_context(Background("starlab-nodes", nodes.look, LOOK_SECONDS, last_call=True))
        if is_elastic and workers < resources.max_workers:
            room = stack.enter_context(SpareRoom(demand_of(task.spec, placement)))
            stack.enter_context(Background("starlab-room", Growth(room, workers, most, grow).look, LOOK_SECONDS))
        yield


def takes_connections(address: str, port: int) -> bool:
    """Whether a port takes a new connection, or refuses it at once, as a living machine does."""
    try:
        socket.create_connection((address, port), ANSWER_SECONDS).close()
    except ConnectionRefusedError:
        return True  # the machine is there and its Ray is not: Ray notices that by itself
    except OSError:
        return False
    return True


def _nodes() -> list[dict[str, Any]]:
    try:
        return list(ray.nodes())
    except Exception:  # the head does not answer; Ray ends the driver if that lasts
        return []


def _name(node: dict[str, Any], ranks: list[int]) -> str:
    which = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
    return f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']}) with {which}"
