"""Waiting for room: what counts as room, what is said, and when the wait ends."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest

from starlab.experiments.spec import load_spec
from starlab.pipelines.stream import StreamLimits
from starlab.platform.cluster import room
from starlab.platform.cluster.connect import Cluster
from starlab.platform.cluster.placement import Placement, demand_of
from starlab.platform.cluster.room import Demand, NoRoomError, could_hold, groups_that_fit, wait_for_room

CLUSTER = Cluster(local=False, nodes=2, cpus=4.0, gpus=0.0, accelerators=())


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`nodes(*resources, leaving=…)`: what Ray says of the cluster's nodes."""

    def say(*resources: dict[str, float], leaving: tuple[int, ...] = ()) -> None:
        found = [{"Alive": True, "NodeID": str(i), "Resources": one} for i, one in enumerate(resources)]
        monkeypatch.setattr(room.ray, "nodes", lambda: found)
        monkeypatch.setattr(room.ray._private.state.state, "get_draining_nodes", lambda: {str(i): 0 for i in leaving})

    return say


@pytest.mark.parametrize(
    ("demand", "fits"),
    [
        (Demand(4), True),
        (Demand(5), False),
        (Demand(1, cpus_per_worker=3.0), False),  # four CPUs in all, two on each node
        (Demand(10, cpus_per_worker=0.4), True),
        (Demand(1, gpus_per_worker=1.0), False),
        (Demand(1, accelerator="V100"), False),
    ],
)
def test_room_is_counted_node_by_node(nodes: Callable[..., None], demand: Demand, fits: bool) -> None:
    nodes({"CPU": 2.0}, {"CPU": 2.0})
    assert could_hold(demand) is fits


def test_a_node_that_is_taken_away_counts_no_more(nodes: Callable[..., None]) -> None:
    resources = {"CPU": 4.0, "GPU": 4.0, "accelerator_type:V100": 1.0}
    demand = Demand(4, gpus_per_worker=1.0, accelerator="V100")
    nodes(resources, {"CPU": 8.0})
    assert could_hold(demand)
    nodes(resources, {"CPU": 8.0}, leaving=(0,))
    assert not could_hold(demand)


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """`waiting(n)`: the workers get their room at the n-th look; a look takes a second of a clock that only looks move."""
    log: list[str] = []

    def plan(looks: int) -> list[str]:
        clock, looked = itertools.count(), itertools.count(1)
        now = [0.0]

        class Group:
            def wait(self, seconds: float) -> bool:
                now[0] = float(next(clock))
                return next(looked) >= looks

        def reserve(bundles: list[dict[str, float]]) -> Any:
            log.append(f"reserved {len(bundles)}")
            return Group()

        monkeypatch.setattr(room, "placement_group", reserve)
        monkeypatch.setattr(room, "remove_placement_group", lambda _: log.append("removed"))
        monkeypatch.setattr(room, "describe_cluster", lambda: CLUSTER)
        monkeypatch.setattr(room.time, "monotonic", lambda: now[0])
        return log

    return plan


def test_the_wait_says_what_it_waits_for_and_ends_with_the_room(
    waiting: Callable[..., Any], nodes: Callable[..., None]
) -> None:
    nodes({"CPU": 1.0})
    log, said = waiting(100), list[str]()
    assert wait_for_room(Demand(2), timeout_seconds=3600, say=said.append) == CLUSTER
    assert log == ["reserved 2", "removed"]
    assert len(said) == 4  # after 5 s, then every 30 s
    [line] = set(said)
    assert re.fullmatch(
        r"waiting for 2 × \{CPU: 1\}; the cluster has 2 nodes with 4 CPUs and 0 GPUs: that is too few; "
        r"at \d\d:\d\d:\d\d it gives up \(resources.wait_for_room_seconds\)",
        line,
    )


def test_the_wait_is_bounded_and_names_the_setting(waiting: Callable[..., Any], nodes: Callable[..., None]) -> None:
    nodes({"CPU": 1.0})
    log = waiting(100)
    with pytest.raises(NoRoomError, match=r"no room for 2 × \{CPU: 1\} after 20 s \(resources.wait_for_room_seconds\)"):
        wait_for_room(Demand(2), timeout_seconds=20)
    assert log == ["reserved 2", "removed"]


def test_in_a_queue_the_time_in_which_others_use_the_room_does_not_count(
    waiting: Callable[..., Any], nodes: Callable[..., None]
) -> None:
    nodes({"CPU": 2.0})
    waiting(1000)
    said: list[str] = []
    assert wait_for_room(Demand(2), timeout_seconds=20, say=said.append, queue=True) == CLUSTER
    assert said[0].endswith("others use them, or a node was just lost")
    waiting(1000)
    with pytest.raises(NoRoomError):
        wait_for_room(Demand(2), timeout_seconds=20)
    nodes({"CPU": 1.0})
    waiting(1000)
    with pytest.raises(NoRoomError):
        wait_for_room(Demand(2), timeout_seconds=20, queue=True)


def test_what_the_check_raises_ends_the_wait_and_leaves_nothing_reserved(
    waiting: Callable[..., Any], nodes: Callable[..., None]
) -> None:
    nodes({"CPU": 1.0})
    log = waiting(1000)

    def asked() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wait_for_room(Demand(2), timeout_seconds=20, check=asked)
    assert log == ["reserved 2", "removed"]


def test_the_groups_of_a_run_on_gpus_are_counted_by_gpus_and_several_runs_need_a_multiple(nodes: Callable[..., None]) -> None:
    spec = load_spec("penn_action")  # four workers of a GPU each, and no word on CPUs
    node = {"CPU": 2.0, "GPU": 4.0, "accelerator_type:V100": 1.0}
    nodes(node, node, {"CPU": 64.0})
    assert groups_that_fit(demand_of(spec)) == 2
    assert could_hold(demand_of(spec, groups=2))
    assert not could_hold(demand_of(spec, groups=3))


def test_every_count_of_room_takes_the_same_resources_of_a_spec() -> None:
    spec = load_spec("demo", ["resources.workers=3", "resources.cpus_per_worker=2"])
    limits = StreamLimits(cpus=1.0, cpus_per_task=0.25, object_store_bytes=10**8, threads=1)
    assert demand_of(spec) == demand_of(spec, Placement(2.0, limits)) == Demand(3, cpus_per_worker=2.0)
    assert demand_of(spec, groups=2) == Demand(6, cpus_per_worker=2.0)
