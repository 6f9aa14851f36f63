"""How many workers an elastic run may have, where they go, and how the room for them is counted."""

from __future__ import annotations

from typing import Any

import pytest

from starlab.experiments.spec import load_spec
from starlab.platform.cluster import placement, spare_room
from starlab.platform.cluster.connect import Cluster
from starlab.platform.cluster.placement import demand_of, place, worker_group
from starlab.platform.cluster.room import Demand
from starlab.platform.cluster.spare_room import SpareRoom, count_room
from starlab.platform.errors import UserError

ELASTIC = ["resources.workers={min: 2, max: 8}", "resources.cpus_per_worker=1"]


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement.ray, "cluster_resources", lambda: {"object_store_memory": 1e9})


def cluster(cpus: float, gpus: float = 0.0, local: bool = False) -> Cluster:
    return Cluster(local=local, nodes=2, cpus=cpus, gpus=gpus, accelerators=())


@pytest.mark.parametrize(("cpus", "workers"), [(100, 8), (9, 8), (8, 7), (4, 3), (3, 2)])
def test_an_elastic_run_leaves_cpus_for_decoding(cpus: float, workers: int) -> None:
    placed = place(load_spec("demo", ELASTIC), cluster(cpus))
    assert placed.workers == workers
    assert cpus - workers * placed.cpus_per_worker > 0


@pytest.mark.parametrize(("cpus", "workers"), [(100, 8), (8, 8), (5, 5), (2, 2)])
def test_workers_that_decode_by_themselves_may_take_every_cpu(cpus: float, workers: int) -> None:
    assert place(load_spec("demo", [*ELASTIC, "data.decode=worker"]), cluster(cpus)).workers == workers


def test_a_cluster_too_small_for_the_smallest_number_is_refused() -> None:
    with pytest.raises(UserError, match="2 workers of 1 CPUs leave 0 of 2 CPUs for decoding"):
        place(load_spec("demo", ELASTIC), cluster(2))


def test_on_one_machine_an_elastic_run_takes_the_gpus_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "mismatch", lambda _: None)
    spec = load_spec("demo", ["resources.workers={min: 1, max: 8}", "resources.gpus_per_worker=1"])
    assert place(spec, cluster(32, gpus=3, local=True)).workers == 3


def test_a_fixed_run_has_its_number_and_its_share() -> None:
    placed = place(load_spec("demo", ["resources.workers=2"]), cluster(8), share=0.5)
    assert (placed.workers, placed.share) == (2, 0.5)


def test_the_smallest_group_is_what_a_run_waits_for() -> None:
    spec = load_spec("demo", ELASTIC)
    assert demand_of(spec, place(spec, cluster(100))) == Demand(2, cpus_per_worker=1.0)


@pytest.mark.parametrize(("gpus", "strategy"), [(0, "SPREAD"), (1, "PACK")])
def test_ranks_on_cpus_are_spread_and_ranks_with_gpus_are_packed(gpus: int, strategy: str) -> None:
    spec = load_spec("demo", ["resources.workers={min: 2, max: 8}", f"resources.gpus_per_worker={gpus}"])
    group = worker_group(spec, place(spec, cluster(100, gpus=100.0), workers=3))
    assert (group.num_workers, group.placement_strategy) == (3, strategy)


class Ray:
    """Placement groups, of which the first `room` are ready."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int, could_hold: int) -> None:
        self.room, self.groups, self.now = room, list[Any](), 0.0
        monkeypatch.setattr(spare_room, "placement_group", self.reserve)
        monkeypatch.setattr(spare_room, "remove_placement_group", self.groups.remove)
        monkeypatch.setattr(spare_room, "groups_that_fit", lambda one: could_hold if one.workers == 1 else 0)
        monkeypatch.setattr(spare_room.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(spare_room.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def reserve(self, bundles: list[dict[str, float]]) -> Any:
        ray, number = self, len(self.groups)
        assert bundles == [{"CPU": 1.0}]

        class Group:
            def wait(self, _: float) -> bool:
                return number < ray.room

        self.groups.append(Group())
        return self.groups[-1]


def test_room_is_counted_at_once_where_all_that_could_be_there_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray(monkeypatch, room=3, could_hold=3)
    assert count_room(Demand(2), 8) == 3
    assert ray.now == 0.0
    assert ray.groups == []


def test_room_that_others_use_is_waited_for_a_few_seconds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray(monkeypatch, room=1, could_hold=8)
    assert count_room(Demand(2), 8) == 1
    assert ray.now == pytest.approx(15.0, abs=0.3)
    assert ray.groups == []


def test_spare_room_is_given_back_when_less_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray(monkeypatch, room=2, could_hold=8)
    with SpareRoom(Demand(1)) as room:
        room.ask_for(4)
        assert (len(ray.groups), room.found()) == (4, 2)
        room.ask_for(1)
        assert (len(ray.groups), room.found()) == (1, 1)
    assert ray.groups == []
