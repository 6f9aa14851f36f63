"""What the driver says of nodes that stop to answer, and when it asks for a larger group."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from starlab.pipelines.storage import Folder
from starlab.platform import group_watch
from starlab.platform.group_watch import Answer, Growth, NodeWatch, ask_for_connection
from starlab.platform.runs.events import read_events
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.records import WorkerNodes

THEN = "the workers start again once there is room for 2"


class Cluster:
    """Two nodes with a rank each, of which tests change what they answer."""

    def __init__(self, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.silent, self.refusing, self.dead = folder, set[str](), set[str](), set[str]()
        monkeypatch.setattr(group_watch, "_nodes", self._nodes)
        monkeypatch.setattr(group_watch, "checkpoint_steps", lambda _: [10, 20])
        monkeypatch.setattr(RunFolder, "stored_checkpoints", property(lambda folder: Folder(folder.path)))
        folder.path.mkdir()
        folder.write(WorkerNodes(nodes=("a", "b")))
        self.watch = NodeWatch(folder, THEN, 600.0, ask=self._ask)

    def _ask(self, address: str, _: int) -> Answer:
        return Answer.NONE if address in self.silent else Answer.REFUSED if address in self.refusing else Answer.TAKEN

    def _nodes(self) -> list[dict[str, Any]]:
        return [
            {
                "NodeID": node,
                "Alive": node not in self.dead,
                "NodeManagerAddress": f"10.0.0.{number}",
                "NodeManagerHostname": f"host-{node}",
                "NodeManagerPort": 1,
                "Resources": {"CPU": 1.0} if node not in self.dead else {},
            }
            for number, node in enumerate("abc", 1)
        ]

    def look(self, times: int = 1) -> list[tuple[str, str]]:
        for _ in range(times):
            self.watch.look()
        return [(event.kind, event.says) for event in read_events(self.folder.path)]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(RunFolder(tmp_path / "demo-1"), monkeypatch)


def test_a_node_that_answers_is_not_worth_a_word(cluster: Cluster) -> None:
    assert cluster.look(10) == []


def test_a_silent_node_is_named_with_its_ranks_with_what_follows_and_with_a_bound(cluster: Cluster) -> None:
    cluster.silent.add("10.0.0.2")
    assert cluster.look(2) == []
    [(kind, says)] = cluster.look(8)
    assert kind == "node_silent"
    assert says.startswith("node host-b (10.0.0.2) with rank 1 has not answered for 6 s or more")
    assert THEN in says
    assert "the checkpoint of step 20" in says
    assert " at the latest" in says


def test_the_silence_is_said_within_twenty_seconds() -> None:
    looks = group_watch.MISSED_ANSWERS * (group_watch.LOOK_SECONDS + group_watch.ANSWER_SECONDS)
    assert looks + group_watch.LOOK_SECONDS < 20


def test_a_node_that_answers_again_is_said_to_be_back_and_can_fall_silent_again(cluster: Cluster) -> None:
    cluster.silent.add("10.0.0.2")
    cluster.look(5)
    cluster.silent.clear()
    cluster.look(2)
    cluster.silent.add("10.0.0.2")
    assert [kind for kind, _ in cluster.look(5)] == ["node_silent", "node_back", "node_silent"]


def test_a_node_that_ray_gives_up_is_said_to_be_lost_once(cluster: Cluster) -> None:
    cluster.dead.add("b")
    [(kind, says)] = cluster.look(5)
    assert kind == "node_lost"
    assert says == ("node host-b (10.0.0.2) with rank 1 is lost: Ray has given it up. From the checkpoint of step 20, " + THEN)


def test_a_node_whose_ray_has_ended_is_lost_after_three_looks_before_ray_notices(cluster: Cluster) -> None:
    cluster.refusing.add("10.0.0.2")
    assert cluster.look(group_watch.MISSED_ANSWERS - 1) == []
    [(kind, says)] = cluster.look(5)
    assert kind == "node_lost"
    assert "is lost: its Ray has ended. From the checkpoint of step 20" in says
    cluster.dead.add("b")
    assert len(cluster.look()) == 1  # said once


def test_many_silent_nodes_take_no_longer_than_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunFolder, "stored_checkpoints", property(lambda folder: Folder(folder.path)))
    monkeypatch.setattr(group_watch, "checkpoint_steps", lambda _: [])
    nodes = [
        {"NodeID": str(at), "Alive": True, "NodeManagerAddress": str(at), "NodeManagerHostname": str(at), "NodeManagerPort": 1}
        for at in range(50)
    ]
    monkeypatch.setattr(group_watch, "_nodes", lambda: nodes)
    asked_together = threading.Barrier(50, timeout=30)

    def silence(*_: object) -> Answer:
        asked_together.wait()
        return Answer.NONE

    folder = RunFolder(tmp_path)
    folder.write(WorkerNodes(nodes=tuple(map(str, range(50)))))
    watch = NodeWatch(folder, THEN, 600.0, ask=silence)
    for _ in range(group_watch.MISSED_ANSWERS):
        watch.look()
    assert [event.kind for event in read_events(tmp_path)] == ["node_silent"] * 50


def test_a_node_without_a_worker_of_the_run_does_not_matter(cluster: Cluster) -> None:
    cluster.dead.add("c")
    cluster.silent.add("10.0.0.3")
    assert cluster.look(5) == []


def test_a_node_that_decodes_clips_is_named_too(cluster: Cluster) -> None:
    cluster.watch = NodeWatch(cluster.folder, THEN, 600.0, decodes=True, ask=cluster._ask)
    cluster.silent.add("10.0.0.3")
    [(kind, says)] = cluster.look(5)
    assert (kind, says.split(" has not")[0]) == ("node_silent", "node host-c (10.0.0.3), where clips may be decoded,")
    assert says.endswith("other nodes decode them")
    cluster.dead.add("c")
    assert cluster.look(5)[-1] == (
        "node_lost",
        "node host-c (10.0.0.3), where clips may be decoded, is lost: Ray has given it up. Its clips are decoded on "
        "other nodes",
    )


def test_a_decoding_node_that_ends_in_order_is_not_worth_a_word(cluster: Cluster) -> None:
    cluster.watch = NodeWatch(cluster.folder, THEN, 600.0, decodes=True, ask=cluster._ask)
    assert cluster.look() == []
    cluster.dead.add("c")
    assert cluster.look(3) == []


def test_a_living_machine_answers_also_where_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert ask_for_connection("127.0.0.1", port) is Answer.TAKEN
    assert ask_for_connection("127.0.0.1", port) is Answer.REFUSED  # by a kernel that is there


@pytest.mark.parametrize("error", [TimeoutError, OSError("No route to host")])
def test_an_address_from_which_nothing_comes_back_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, error: BaseException | type[BaseException]
) -> None:
    def no_way(*_: object) -> None:
        raise error

    monkeypatch.setattr(group_watch.socket, "create_connection", no_way)
    assert ask_for_connection("10.0.0.2", 9) is Answer.NONE


class Room:
    def __init__(self) -> None:
        self.there, self.asked = 0, list[int]()

    def ask_for(self, workers: int) -> None:
        self.asked.append(workers)

    def found(self) -> int:
        return min(self.there, self.asked[-1])


class Growing:
    """A group of two workers beside which room appears."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int = 4) -> None:
        self.now, self.most, self.room, self.grown = 0.0, most, Room(), list[int]()
        monkeypatch.setattr(group_watch.time, "monotonic", lambda: self.now)
        self.growth = Growth(cast("Any", self.room), 2, lambda: self.most, self.grown.append)

    def at(self, seconds: float, there: int) -> list[int]:
        self.now, self.room.there = seconds, there
        self.growth.look()
        return self.grown


def test_a_group_grows_once_when_there_is_room_for_the_largest_number(monkeypatch: pytest.MonkeyPatch) -> None:
    growing = Growing(monkeypatch)
    assert growing.at(100, 0) == []
    assert growing.at(102, 2) == [4]
    assert growing.at(104, 2) == [4]


def test_machines_that_come_one_after_the_other_cost_one_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    growing = Growing(monkeypatch)
    assert growing.at(100, 1) == []
    assert growing.at(105, 1) == []
    assert growing.at(111, 1) == [3]  # the other one did not come


def test_a_group_that_has_just_started_trains_for_a_while_first(monkeypatch: pytest.MonkeyPatch) -> None:
    growing = Growing(monkeypatch)
    assert growing.at(group_watch.GROW_AFTER_SECONDS - 1, 2) == []
    assert growing.at(group_watch.GROW_AFTER_SECONDS + 1, 2) == [4]


def test_no_room_is_taken_that_the_decoding_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    growing = Growing(monkeypatch, most=2)
    assert growing.at(100, 2) == []
    assert growing.room.asked == [0]
