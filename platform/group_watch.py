"""Watches a training's workers from the driver: nodes that stop answering, and room for more workers.

A node that loses its power or its network sends no last packet. The other ranks wait for it in silence until Ray gives it up.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum
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
_LOOKS_AT_ONCE = 64
"""Nodes that are looked at side by side: a switch takes many with it, and each of them takes `ANSWER_SECONDS`."""
GROW_AFTER_SECONDS = 60.0
"""A restart costs up to half a minute, so a group trains for a while before it is replaced by a larger one."""
GROW_SETTLE_SECONDS = 10.0
"""Machines that are started together come one after the other. One restart then takes up all of them."""


class Answer(Enum):
    """How a machine answers a new connection."""

    TAKEN = 1
    """The port takes it."""
    REFUSED = 2
    """The machine is there, and nothing listens on the port."""
    NONE = 3
    """Nothing comes back."""


class NodeWatch:
    """Records an event when a node on which the run depends no longer answers, answers again, or is lost."""

    def __init__(
        self,
        folder: RunFolder,
        then: str,
        stuck_after_seconds: float,
        *,
        decodes: bool = False,
        ask: Callable[[str, int], Answer] | None = None,
    ) -> None:
        """Watch the nodes that `workers.json` in the run's folder names.

        Args:
            folder: Folder of the run.
            then: What follows when a node is lost, e.g. "the workers start again once there is room for 2".
            stuck_after_seconds: After so long without a step the watchdog ends the group in any case.
            decodes: Watch the other nodes with CPUs too, because clips may be decoded there.
            ask: Returns how a port of an address answers. A test may replace it.
        """
        self._folder, self._then, self._bound = folder, then, stuck_after_seconds
        self._decodes, self._ask = decodes, ask or ask_for_connection
        self._missed: dict[str, int] = {}
        self._refused: dict[str, int] = {}
        self._silent_since: dict[str, float] = {}
        self._lost: set[str] = set()

    def look(self) -> None:
        """Look at every node once."""
        group = self._folder.read(WorkerNodes)
        if group is None:
            return
        watched = [node for node in _nodes() if self._matters(node, group)]
        alive = [node for node in watched if node["Alive"]]
        with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
            answers = pool.map(lambda node: self._ask(node["NodeManagerAddress"], node["NodeManagerPort"]), alive)
        answered = dict(zip((node["NodeID"] for node in alive), answers, strict=True))
        for node in watched:
            ranks = [rank for rank, where in enumerate(group.nodes) if where == node["NodeID"]]
            self._judge(node, ranks, answered.get(node["NodeID"]))

    def _matters(self, node: dict[str, Any], group: WorkerNodes) -> bool:
        key = node["NodeID"]
        # A node without ranks that is gone in order, because it was idle, is not worth a word.
        may_decode = self._decodes and (key in self._silent_since or (node["Alive"] and "CPU" in node["Resources"]))
        return key not in self._lost and (key in group.nodes or may_decode)

    def _judge(self, node: dict[str, Any], ranks: list[int], answer: Answer | None) -> None:
        """Record what a node's answer means; None is a node that Ray has given up."""
        key = node["NodeID"]
        self._refused[key] = self._refused.get(key, 0) + 1 if answer is Answer.REFUSED else 0
        if answer is None or self._refused[key] == MISSED_ANSWERS:
            self._lost.add(key)
            why = "Ray has given it up" if answer is None else "its Ray has ended"
            then = f"From {self._newest()}, {self._then}" if ranks else "Its clips are decoded on other nodes"
            self._record("node_lost", f"{_name(node, ranks)} is lost: {why}. {then}")
        elif answer is Answer.NONE:
            self._miss(node, ranks)
        else:
            self._missed[key] = 0
            if (since := self._silent_since.pop(key, None)) is not None:
                self._record("node_back", f"{_name(node, ranks)} answers again after {time.monotonic() - since:.0f} s")

    def _miss(self, node: dict[str, Any], ranks: list[int]) -> None:
        key = node["NodeID"]
        self._missed[key] = self._missed.get(key, 0) + 1
        if self._missed[key] == MISSED_ANSWERS:
            silent = MISSED_ANSWERS * LOOK_SECONDS
            self._silent_since[key] = time.monotonic() - silent
            at = time.strftime("%H:%M:%S", time.localtime(time.time() + self._bound))
            then = (
                f"The other ranks wait for it. When Ray gives it up, in about a minute and at {at} at the latest, "
                f"{self._then}, from {self._newest()}"
                if ranks
                else "Ranks may wait for its clips. When Ray gives it up, in about a minute, other nodes decode them"
            )
            self._record(
                "node_silent",
                f"{_name(node, ranks)} has not answered for {silent:.0f} s or more: its power or network is gone, or it is "
                f"overloaded. {then}",
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
def watch_nodes(task: TrainTask) -> Iterator[None]:
    """Within this context, which lasts for the whole training, watch the nodes of its workers."""
    resources, folder = task.spec.resources, task.folder
    if connect().local:
        yield
        return
    fewest, most, wait = resources.min_workers, resources.max_workers, resources.wait_for_room_seconds
    then = "the workers start again" + (
        f" with as many as there is room for, {fewest} at least"
        if fewest < most
        else f" once there is room for {most}, for which it waits {wait:g} s at most"
    )
    folder.remove(WorkerNodes)  # of the driver before
    # The last look is for a node whose loss ends the training before the next one.
    decodes = task.spec.data.decode == "cluster"
    nodes = NodeWatch(folder, then, resources.stuck_after_seconds, decodes=decodes)
    with Background("starlab-nodes", nodes.look, LOOK_SECONDS, last_call=True):
        yield


@contextmanager
def watch_room(task: TrainTask, placement: Placement) -> Iterator[None]:
    """Within this context, which lasts for one group of an elastic training's workers, watch the room for more of them."""
    resources, folder = task.spec.resources, task.folder
    workers = placement.workers or resources.max_workers

    def most() -> int:
        with suppress(UserError):
            return place(task.spec, connect(), placement.share).workers or workers
        return workers

    def grow(to: int) -> None:
        if read_request(folder) is None:
            line = f"there is room for {to} workers instead of {workers}; they go on from the next step"
            events.record(folder.path, "workers", line)
            request_end(folder, EndRequest(reason=f"{to} workers take over", signal=0, resize=True))

    with ExitStack() as stack:
        if workers < resources.max_workers and not connect().local:
            room = stack.enter_context(SpareRoom(demand_of(task.spec, placement)))
            stack.enter_context(Background("starlab-room", Growth(room, workers, most, grow).look, LOOK_SECONDS))
        yield


def ask_for_connection(address: str, port: int) -> Answer:
    """How a port answers a new connection. Of a living machine the kernel answers, also while its processes are busy."""
    try:
        socket.create_connection((address, port), ANSWER_SECONDS).close()
    except ConnectionRefusedError:
        return Answer.REFUSED
    except OSError:
        return Answer.NONE
    return Answer.TAKEN


def _nodes() -> list[dict[str, Any]]:
    try:
        return list(ray.nodes())
    except Exception:  # the head does not answer; Ray ends the driver if that lasts
        return []


def _name(node: dict[str, Any], ranks: list[int]) -> str:
    name = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
    if not ranks:
        return f"{name}, where clips may be decoded,"
    return f"{name} with rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
