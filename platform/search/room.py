"""How many runs of a search compute at once: as many as the cluster holds, and more when it grows."""

from __future__ import annotations

import time
from collections.abc import Callable

import ray

from starlab.experiments.spec import SearchSpec
from starlab.platform.cluster.connect import Cluster, describe_cluster

_LOOK_SECONDS = 5.0


def runs_that_fit(spec: SearchSpec, cluster: Cluster) -> int:
    """How many runs fit on the cluster: by its GPUs where a run needs them, else one per CPU and worker. At least 1."""
    return _fit(spec, cluster.cpus, cluster.gpus)


def runs_at_once(spec: SearchSpec, cluster: Cluster, most: dict[str, int] | None) -> int:
    """How many runs a search may have under way now.

    Args:
        most: what a cluster that scales by itself can grow to, by resource; None for a cluster of a fixed size. Below it one
            run more than fit is started: it waits for room, which makes the cluster grow.
    """
    if spec.search.concurrent is not None:
        return spec.search.concurrent
    now = runs_that_fit(spec, cluster)
    grown = _fit(spec, most.get("CPU", 0), most.get("GPU", 0)) if most else now
    return now + 1 if grown > now else now


def watch_room(spec: SearchSpec, clock: Callable[[], float] = time.monotonic) -> Callable[[], int]:
    """A function that returns `runs_at_once` for the connected cluster as it is now, counted again every few seconds."""
    counted, runs = -_LOOK_SECONDS, 1

    def room() -> int:
        nonlocal counted, runs
        if clock() - counted >= _LOOK_SECONDS:
            counted = clock()
            runs = runs_at_once(spec, describe_cluster(), most_resources())
        return runs

    return room


def most_resources() -> dict[str, int] | None:
    """What the connected cluster can grow to, by resource; None if it has a fixed size."""
    most: dict[str, int] | None = ray._private.state.state.get_max_resources_from_cluster_config()
    return most


def _fit(spec: SearchSpec, cpus: float, gpus: float) -> int:
    resources = spec.base.resources
    if resources.gpus_per_worker:
        return max(1, int(gpus // (resources.max_workers * resources.gpus_per_worker)))
    return max(1, int(cpus // resources.max_workers))
