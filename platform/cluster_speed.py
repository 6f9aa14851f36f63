"""Measures between the nodes of a cluster: its object store, its network, and how many cores decode for one GPU."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from starlab.experiments.spec import Spec
from starlab.models.cost import cost
from starlab.pipelines.clip import ClipSource, DataError
from starlab.pipelines.loading import LoadClips
from starlab.pipelines.schedule import EvalPlan
from starlab.pipelines.sources import open_source
from starlab.platform.cluster.node_checks import Rank, receive

_SECONDS = 120.0
"""How long a check of a node may take, its waiting for a free process included."""
_BLOCK_MEGABYTES = 64
_SAMPLE_CLIPS = 6
_TRAINING_FLOPS = {"V100": 40e12, "T4": 20e12, "A10G": 40e12, "A100": 120e12, "H100": 300e12}
"""FLOP/s that training in half precision reaches of a GPU, roughly a third of its peak."""

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check."""

    level: Level
    name: str
    says: str
    """What was found."""
    fix: str = ""
    """What to do about it."""


def on(node: dict[str, Any], function: Any, *arguments: Any) -> Any:
    """Run a function as a task on a node that takes no CPU, and return its result."""
    place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=place)(function)
    return ray.get(task.remote(*arguments), timeout=_SECONDS)


def on_each(nodes: Sequence[dict[str, Any]], function: Any, *arguments: Any) -> list[tuple[str, Any]]:
    """Run a function on each node. Returns each node's name with the result; an exception takes the place of a result."""
    results: list[tuple[str, Any]] = []
    for node in nodes:
        try:
            results.append((name_of(node), on(node, function, *arguments)))
        except Exception as error:
            results.append((name_of(node), error))
    return results


def name_of(node: dict[str, Any]) -> str:
    """A node's host name and address."""
    host, address = node["NodeManagerHostname"], node["NodeManagerAddress"]
    return str(address) if host == address else f"{host} ({address})"


def object_store(nodes: Sequence[dict[str, Any]]) -> Check:
    """Send a block through the object store to every node."""
    smallest = min(node["Resources"].get("object_store_memory", 0.0) for node in nodes) / 1e9
    block = np.ones(_BLOCK_MEGABYTES * 1_000_000, np.uint8)
    reference = ray.put(block)
    rates = []
    for node in nodes:
        began = time.monotonic()
        if on(node, receive, reference) != block.size:
            return Check(
                "error", "object store", f"{name_of(node)} received other bytes than were sent", "check its memory and network"
            )
        rates.append(_BLOCK_MEGABYTES / (time.monotonic() - began))
    says = (
        f"{smallest:.1f} GB on the smallest node; {_BLOCK_MEGABYTES} MB reach every node, the slowest at {min(rates):,.0f} MB/s"
    )
    if smallest < 1:
        return Check("warning", "object store", says, "give it more: ray start --object-store-memory, --shm-size")
    return Check("ok", "object store", says)


def all_reduce(nodes: Sequence[dict[str, Any]], spec: Spec | None) -> Check:
    """Sum a block over one rank per node: NCCL where nodes have GPUs, else Gloo."""
    with_gpus = [node for node in nodes if node["Resources"].get("GPU", 0.0)]
    members = with_gpus or [node for node in nodes if node["Resources"].get("CPU", 0.0)] or list(nodes)
    backend = "NCCL" if with_gpus else "Gloo"
    if len(members) < 2:
        return Check("ok", "all-reduce", "one node computes, so nothing crosses the network")
    gpu = 1 if with_gpus else 0
    ranks = [
        Rank.options(  # type: ignore[attr-defined]
            num_cpus=0, num_gpus=gpu, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in members
    ]
    try:
        meet = ray.get(ranks[0].find_port.remote(), timeout=_SECONDS)
        calls = [
            rank.measure.remote(index, len(ranks), meet, _BLOCK_MEGABYTES, _SECONDS / 2) for index, rank in enumerate(ranks)
        ]
        seconds = max(ray.get(calls, timeout=_SECONDS))
    except ray.exceptions.GetTimeoutError:
        says = f"{backend} between {len(members)} nodes gave no answer within {_SECONDS:g} s"
        return Check(
            "warning", "all-reduce", says, "try again while no job holds the GPUs, and open all ports between the nodes"
        )
    except Exception as error:
        says = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        return Check(
            "error",
            "all-reduce",
            f"{backend} did not work between {len(members)} nodes ({says})",
            "open all ports between the nodes, or name the interface: GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME",
        )
    finally:
        for rank in ranks:
            ray.kill(rank)
    rate = 2 * (len(ranks) - 1) / len(ranks) * _BLOCK_MEGABYTES / 1000 / seconds
    says = f"{backend} between {len(ranks)} nodes: {rate:.2f} GB/s"
    if spec is not None:
        gradients = cost(spec.model, height=spec.data.size, width=spec.data.size).parameters * 4 / 1e6
        says += (
            f"; the gradients of {spec.name} ({gradients:,.0f} MB) take {seconds * gradients / _BLOCK_MEGABYTES:.2f} s a step"
        )
    if rate < 0.1:
        return Check("warning", "all-reduce", says, "use the faster network: GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME")
    return Check("ok", "all-reduce", says)


def seconds_per_clip(source: ClipSource, spec: Spec) -> float:
    """CPU seconds that one clip of a data set takes to read, decode and augment, the mean of a few."""
    clips = tuple(np.linspace(0, len(source.clips) - 1, min(_SAMPLE_CLIPS, len(source.clips)), dtype=int).tolist())
    load = LoadClips(source, spec.data, EvalPlan(clips, 0, 1), 0)
    load({"id": np.arange(1)})  # opens files and libraries
    began = time.process_time()
    load({"id": np.arange(len(clips))})
    return (time.process_time() - began) / len(clips)


def decoding(nodes: Sequence[dict[str, Any]], spec: Spec, runs: Path) -> Check:
    """Compare the cores that feed one GPU with those that there are, by the time that clips of the data set take."""
    try:
        source = open_source(spec.data, runs)
    except (DataError, OSError) as error:
        return Check(
            "error", "decoding", f"the data of {spec.name} cannot be opened here: {error}", "name it as the nodes see it"
        )
    decoders = [node for node in nodes if node["Resources"].get("CPU", 0.0)] or list(nodes)
    results = on_each(decoders, seconds_per_clip, source, spec)
    if failed := [(name, result) for name, result in results if isinstance(result, Exception)]:
        name, failure = failed[0]
        says = (str(failure).strip() or type(failure).__name__).splitlines()[-1]
        return Check(
            "error", "decoding", f"{name} cannot read {spec.data.store or 'the data'}: {says}", "mount the data there too"
        )
    seconds = max(result for _, result in results)
    cpus = sum(node["Resources"].get("CPU", 0.0) for node in nodes)
    gpus = sum(node["Resources"].get("GPU", 0.0) for node in nodes)
    measured = f"a clip of {spec.name} takes {seconds * 1000:.0f} ms of one core"
    kinds = {key.removeprefix("accelerator_type:") for node in nodes for key in node["Resources"] if "accelerator_type:" in key}
    kind = next((kind for kind in (spec.resources.accelerator, *sorted(kinds)) if kind in _TRAINING_FLOPS), None)
    if not gpus or kind is None:
        return Check("ok", "decoding", f"{measured}; {cpus:g} CPUs decode at most {cpus / max(seconds, 1e-6):,.0f} clips/s")
    training = cost(spec.model, height=spec.data.size, width=spec.data.size).training_flops
    rate = _TRAINING_FLOPS[kind] / training
    needed, there = rate * seconds, cpus / gpus
    says = f"{measured}; a {kind} trains about {rate:,.0f} clips/s, so {needed:.1f} cores per GPU; there are {there:.1f}"
    if needed > there:
        missing = math.ceil((needed - there) * gpus)
        return Check("warning", "decoding", says, f"add {missing} CPUs (decode machines in cluster.yaml), or prepare a store")
    return Check("ok", "decoding", says)
