"""Finds room for further workers of an elastic run: pending placement groups of one worker each, which Ray fills when it can.

A pending group is also what makes a cluster that scales by itself start machines.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Self

from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from starlab.platform.cluster.room import Demand, groups_that_fit

_SETTLE_SECONDS = 15.0
"""A group of workers that has ended gives its resources back within seconds. After so long they are counted as they are."""
_LOOK_SECONDS = 0.2


class SpareRoom:
    """Room for single workers. What is found stays reserved until it is given back."""

    def __init__(self, worker: Demand) -> None:
        """Look for room for workers that each need what one worker of `worker` needs."""
        self._bundle, self._groups = worker.bundle, list[PlacementGroup]()

    def ask_for(self, workers: int) -> None:
        """Look for room for this number of workers from now on."""
        while len(self._groups) > max(0, workers):
            remove_placement_group(self._groups.pop())
        while len(self._groups) < workers:
            self._groups.append(placement_group([self._bundle]))

    def found(self) -> int:
        """Number of workers for which there is room now."""
        return sum(group.wait(0.01) for group in self._groups)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.ask_for(0)


def count_room(worker: Demand, at_most: int) -> int:
    """Count the workers for which the cluster has room now, up to `at_most`. Nothing stays reserved.

    Returns when there is room for as many as the nodes that stay could hold, or after some seconds.
    """
    one = replace(worker, workers=1)
    deadline = time.monotonic() + _SETTLE_SECONDS
    with SpareRoom(one) as room:
        room.ask_for(at_most)
        while (found := room.found()) < min(at_most, groups_that_fit(one)) and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
        return found
