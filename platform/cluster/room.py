"""Waits until a cluster has room for a group of workers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from starlab.platform.cluster.connect import Cluster, describe_cluster
from starlab.platform.errors import UserError

_FIRST_SAY_SECONDS = 5.0
_SAY_SECONDS = 30.0
_LOOK_SECONDS = 1.0


class NoRoomError(UserError):
    """The cluster had no room for the workers within the time allowed."""


@dataclass(frozen=True, slots=True)
class Demand:
    """The resources of a group of equal workers."""

    workers: int
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    accelerator: str | None = None
    """Ray's name for the GPU that each worker needs; None takes any."""

    @property
    def bundle(self) -> dict[str, float]:
        """What one worker needs, in Ray's terms."""
        bundle = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}
        bundle = {name: amount for name, amount in bundle.items() if amount}
        if self.accelerator is not None:
            bundle[f"accelerator_type:{self.accelerator}"] = 0.001
        return bundle

    def __str__(self) -> str:
        return f"{self.workers} × {{{', '.join(f'{name}: {amount:g}' for name, amount in self.bundle.items())}}}"


def could_hold(demand: Demand) -> bool:
    """Whether the nodes that are not about to be taken away could hold the workers if nothing else ran on them."""
    return groups_that_fit(demand) >= 1


def groups_that_fit(demand: Demand) -> int:
    """Number of such groups of workers that the nodes which stay could hold at once if nothing else ran on them."""
    leaving = ray._private.state.state.get_draining_nodes()
    staying = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
    workers = 0
    for resources in staying:
        # A quotient such as 3 / 0.3 is slightly below the whole number that is meant.
        workers += min(int(resources.get(name, 0.0) / amount + 1e-9) for name, amount in demand.bundle.items())
    return workers // demand.workers


def wait_for_room(
    demand: Demand,
    *,
    timeout_seconds: float,
    say: Callable[[str], None] = lambda _: None,
    queue: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Cluster:
    """Ask a connected cluster for the machines that the workers need, wait for them, and count the cluster again.

    A cluster that scales by itself begins as a head without a GPU. Nothing stays reserved when this returns; idle machines
    stay for some minutes.

    Args:
        timeout_seconds: how long to wait before the cluster counts as too small or too busy.
        say: called with a line for the user after some seconds of waiting and then every half minute.
        queue: time in which the machines are there and others use them does not count.
        check: called every second of waiting; what it raises ends the wait.

    Raises:
        NoRoomError: there is still no room; names what is wanted and what is there.
    """
    group = placement_group([demand.bundle] * demand.workers)
    began = time.monotonic()
    say_at, until = began + _FIRST_SAY_SECONDS, time.strftime("%H:%M:%S", time.localtime(time.time() + timeout_seconds))
    try:
        while not group.wait(min(_LOOK_SECONDS, _SAY_SECONDS, max(0.1, timeout_seconds))):
            check()
            now, held = time.monotonic(), could_hold(demand)
            if held and queue:
                began = now
            elif now >= began + timeout_seconds:
                raise NoRoomError(
                    f"no room for {demand} after {timeout_seconds:.0f} s (resources.wait_for_room_seconds); the cluster has "
                    f"{_inventory()}, taken or not: use fewer resources.workers, or a range of them such as "
                    "{min: 1, max: 4}, wait for other jobs, or let the cluster grow (max_workers in cluster.yaml)"
                )
            if now >= say_at:
                say_at = now + _SAY_SECONDS
                # Ray counts a lost node for up to a minute.
                reason = "others use them, or a node was just lost" if held else "that is too few"
                if not (held and queue):
                    reason += f"; at {until} it gives up (resources.wait_for_room_seconds)"
                say(f"waiting for {demand}; the cluster has {_inventory()}: {reason}")
    finally:
        remove_placement_group(group)
    return describe_cluster()


def _inventory() -> str:
    here = describe_cluster()
    return f"{here.nodes} nodes with {here.cpus:g} CPUs and {here.gpus:g} GPUs {' '.join(here.accelerators)}".rstrip()
