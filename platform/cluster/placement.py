"""Divides a cluster's CPUs between the workers of a run and the decode tasks that feed them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import ray
import torch
from ray.train import ScalingConfig

from starlab.experiments.spec import Spec
from starlab.pipelines.stream import StreamLimits
from starlab.platform.cluster.connect import Cluster
from starlab.platform.cluster.device import mismatch
from starlab.platform.cluster.room import Demand
from starlab.platform.errors import UserError


@dataclass(frozen=True, slots=True)
class Placement:
    """The share of a cluster that one run may take."""

    cpus_per_worker: float
    limits: StreamLimits
    workers: int | None = None
    """Number of workers that this is for; None is the number in the spec."""
    share: float = 1.0
    """Fraction of the cluster that the run may use."""


def place(spec: Spec, cluster: Cluster, share: float = 1.0, workers: int | None = None) -> Placement:
    """Divide `share` of the connected cluster between the workers and their decode tasks, so that neither can starve the other.

    Args:
        workers: Number of workers; None is the largest number of the spec that leaves enough for decoding.

    Raises:
        UserError: the run does not fit; the message gives the numbers.
    """
    store = ray.cluster_resources().get("object_store_memory", 5e8)
    most = workers or spec.resources.max_workers
    for fewer in range(most, workers or spec.resources.min_workers, -1):
        with suppress(UserError):
            return divide(spec, cluster, store, share, fewer)
    return divide(spec, cluster, store, share, workers or spec.resources.min_workers)


def divide(
    spec: Spec, cluster: Cluster, object_store_bytes: float, share: float = 1.0, workers: int | None = None
) -> Placement:
    """Divide as `place` does, for a cluster that need not be connected. `workers` is by default the largest number of the spec.

    A worker's stream has two overlapping windows (stream.py), and each plans as if the cluster were its own. The limits of all
    windows together must therefore fit what the workers leave. A worker that decodes by itself takes its whole share of the
    machine; on a cluster that others may use it takes `resources.cpus_per_worker`, or 1.

    Raises:
        UserError: the run does not fit; the message gives the numbers.
    """
    wanted = spec.resources
    workers = workers or wanted.max_workers
    cpus = cluster.cpus * share
    by_itself = spec.data.decode == "worker"
    most = cpus / workers - 0.05 if by_itself else cpus / 2 / workers  # a little is left for a search's own actors
    per_worker = wanted.cpus_per_worker or (most if by_itself and cluster.local else min(1.0, most))
    free = cpus - per_worker * workers
    if by_itself and free < -1e-9:
        raise UserError(
            f"{workers} workers of {per_worker:g} CPUs do not fit into {cpus:g} CPUs; use fewer resources.workers or a "
            "smaller resources.cpus_per_worker"
        )
    if not by_itself and free < 0.05 * workers:
        raise UserError(
            f"{workers} workers of {per_worker:g} CPUs leave {free:g} of {cpus:g} CPUs for decoding, which would wait "
            "for ever; use fewer resources.workers, a smaller resources.cpus_per_worker or data.decode=worker"
        )
    gpus = workers * wanted.gpus_per_worker
    if cluster.local and gpus > cluster.gpus:
        raise UserError(
            f"the run wants {gpus} GPUs and this machine has {cluster.gpus:g}; use resources.gpus_per_worker=0, "
            "fewer resources.workers, or submit it to a cluster: starlab submit -- train …"
        )
    if cluster.local and gpus:
        for problem in filter(None, map(mismatch, range(torch.cuda.device_count()))):
            raise UserError(problem)
    window_cpus = free / (2 * workers)
    store = object_store_bytes * share * 0.5 / (2 * workers)
    limits = StreamLimits(
        cpus=window_cpus,
        # Two tasks per CPU of the window: one works while the block of the other is fetched or its successor is started.
        cpus_per_task=min(0.25, window_cpus / 2),
        object_store_bytes=int(store),
        threads=max(1, round(per_worker)),
    )
    return Placement(per_worker, limits, workers, share)


def demand_of(spec: Spec, placement: Placement | None = None, *, groups: int = 1) -> Demand:
    """What the smallest group of workers with which a run trains needs, or the groups of several equal runs.

    Args:
        placement: Share of the cluster that the run has. Without one, a worker that the spec gives no number of CPUs counts
            as one CPU, and as none where it has a GPU: `divide` gives such workers what CPUs their machine has.
        groups: Number of equal runs.
    """
    wanted = spec.resources
    usual = 0.0 if wanted.gpus_per_worker else 1.0
    return Demand(
        wanted.min_workers * groups,
        cpus_per_worker=placement.cpus_per_worker if placement else wanted.cpus_per_worker or usual,
        gpus_per_worker=wanted.gpus_per_worker,
        accelerator=wanted.accelerator if wanted.gpus_per_worker else None,
    )


def worker_group(spec: Spec, placement: Placement) -> ScalingConfig:
    """The number of workers, the resources of each, and how they are spread over the nodes, for Ray Train.

    Ranks with GPUs fill one node after the other: their gradients cross few links, and fewer nodes are lost with them. Ranks on
    CPUs go to different nodes where they can: on one node they would share the cores and the memory, and other nodes be idle.
    """
    wanted = spec.resources
    gpu = {"GPU": float(wanted.gpus_per_worker)} if wanted.gpus_per_worker else {}
    return ScalingConfig(
        num_workers=placement.workers or wanted.max_workers,
        use_gpu=bool(gpu),
        resources_per_worker={"CPU": placement.cpus_per_worker, **gpu},
        accelerator_type=wanted.accelerator if gpu else None,
        placement_strategy="PACK" if gpu else "SPREAD",
    )
