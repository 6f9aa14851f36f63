"""Trainings over several nodes of one machine: nodes lost, added back and drained, room waited for, processes killed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import ray
from driven import EACH_ONE_CPU, LONG, Driven
from many_nodes import ONE_CPU, nodes_on_this_machine
from ray.cluster_utils import Cluster as Nodes
from ray.core.generated import autoscaler_pb2

from starlab.platform.runs.events import read_events
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import read_points
from starlab.platform.runs.records import Result

pytestmark = [pytest.mark.slow_fault, pytest.mark.timeout(1200)]  # a hang guard for a busy machine


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """A head without CPUs, where drivers run, and three nodes of one CPU."""
    with nodes_on_this_machine([ONE_CPU] * 3, monkeypatch, dashboard=True) as cluster:
        yield cluster


@pytest.fixture
def drive(training, nodes: Nodes, tmp_path: Path) -> Iterator[Callable[..., Driven]]:
    """`drive(name, *overrides, pause=…)` starts a training on the nodes."""
    started: list[Driven] = []

    def start(name: str, *overrides: str, pause: float = 0.0) -> Driven:
        started.append(
            Driven(
                tmp_path / name,
                training.store,
                {"RAY_ADDRESS": nodes.address},
                *training.overrides,
                *LONG,
                *overrides,
                pause=pause,
            )
        )
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()


def same_training(elastic: Driven, fixed: Driven) -> None:
    """Assert that both trained on the same clips in the same order, and that their curves agree as rounding allows."""
    mine, theirs = elastic.sequence(), fixed.sequence()
    assert sorted(mine) == list(range(len(theirs)))
    assert {step: clips for step, (_, clips) in mine.items()} == {step: clips for step, (_, clips) in theirs.items()}
    assert elastic.losses() == pytest.approx(fixed.losses(), rel=1e-3)


def test_an_elastic_run_loses_a_node_takes_it_up_again_and_trains_on_the_same_clips(
    training, nodes: Nodes, drive: Callable[..., Driven]
) -> None:
    # With a large learning rate two curves part after some hundred steps, whatever the rounding that began it.
    gentle = [*EACH_ONE_CPU, "train.optimizer=sgd", "train.lr=1.0e-3"]
    fixed = drive("fixed", *gentle, "resources.workers=2")
    assert fixed.end() == 0, fixed.output()

    run = drive("elastic", *gentle, "resources.workers={min: 1, max: 3}", pause=0.2)
    run.until(lambda: run.steps() > 25)
    assert run.said("workers") == ["3 of 3 start (resources.workers.max; 1 at least)"]
    lost_at, steps = time.time(), run.steps()
    nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
    run.until(lambda: len(run.said("workers")) > 1 and run.steps() > steps + 20)
    assert run.said("workers")[1] == "2 of 3 start (resources.workers.max; 1 at least)"
    assert len(run.said("restarted")) == 1
    training.measure("23", "SIGKILL of a node's Ray; an elastic run goes on with two workers of three", run.folder, lost_at)

    nodes.add_node(**ONE_CPU)
    run.until(lambda: len(run.said("workers")) > 3)
    assert run.said("workers")[2:] == [
        "there is room for 3 workers instead of 2; they go on from the next step",
        "3 of 3 start (resources.workers.max; 1 at least)",
    ]
    grown = [event for event in read_events(run.folder) if event.kind == "preempted"]
    assert len(grown) == 1
    assert run.end() == 0, run.output()
    resumed = [event.step for event in read_events(run.folder) if event.kind == "resumed"]
    assert resumed[-1] == grown[0].step  # to grow costs no step
    assert {world for world, _ in run.sequence().values()} == {2, 3}
    same_training(run, fixed)


def test_an_elastic_run_leaves_a_node_that_is_taken_away_and_loses_no_step(
    training, nodes: Nodes, drive: Callable[..., Driven]
) -> None:
    run = drive("drained", *EACH_ONE_CPU, "resources.workers={min: 1, max: 3}", pause=0.05)
    run.until(lambda: run.steps() > 15)
    ray.init(address=nodes.address, log_to_driver=False)
    node = next(iter(nodes.worker_nodes))
    reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    client = ray._private.worker.global_worker.gcs_client
    drained_at = time.time()
    client.drain_node(node.node_id, reason, "a test", int(1000 * (time.time() + 60)))
    run.until(lambda: len(run.said("workers")) > 1)
    assert run.said("workers")[1] == "2 of 3 start (resources.workers.max; 1 at least)"
    nodes.remove_node(node, allow_graceful=False)
    assert run.end() == 0, run.output()
    [preempted] = [event for event in read_events(run.folder) if event.kind == "preempted"]
    assert [event.step for event in read_events(run.folder) if event.kind == "resumed"] == [preempted.step]
    assert run.said("restarted") == []
    training.measure("23a", "a node is drained; an elastic run goes on with two workers of three", run.folder, drained_at)


def test_a_node_lost_for_good_ends_a_fixed_run_within_its_bound_with_what_to_do(
    nodes: Nodes, drive: Callable[..., Driven]
) -> None:
    run = drive("bound", *EACH_ONE_CPU, "resources.workers=3", "resources.wait_for_room_seconds=20", pause=0.1)
    run.until(lambda: run.steps() > 15)
    lost_at = time.monotonic()
    nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
    assert run.end(180) == 1, run.output()
    assert time.monotonic() - lost_at < 120  # 20 s of waiting, and Ray's own times
    [lost], waits = run.said("node_lost"), run.said("waiting")
    assert "once there is room for 3, for which it waits 20 s at most" in lost
    assert waits[0].startswith("waiting for 3 × {CPU: 0.9}; the cluster has ")
    # Ray may still count the lost node at that moment.
    assert "the cluster has 3 nodes with 2 CPUs" in waits[0] or "or a node was just lost" in waits[0]
    assert "no room for 3 × {CPU: 0.9} after 20 s" in run.output()
    assert "it gives up (resources.wait_for_room_seconds)" in waits[0]
    assert "it goes on from its newest checkpoint when started again" in run.output()
    assert "use fewer resources.workers" in run.output()


def test_of_two_submissions_the_second_waits_for_the_room_of_the_first(nodes: Nodes, drive: Callable[..., Driven]) -> None:
    first = drive("first", *EACH_ONE_CPU, "resources.workers=2", pause=0.1)
    first.until(lambda: first.steps() > 5)
    second = drive("second", *EACH_ONE_CPU, "resources.workers=2", "train.seed=1")
    second.until(lambda: "others use them" in second.output())
    assert second.steps() == 0
    assert first.end() == 0, first.output()
    assert second.end() == 0, second.output()
    assert RunFolder(second.folder).require(Result).steps == RunFolder(first.folder).require(Result).steps


def test_killing_any_process_but_the_head_and_the_driver_costs_no_run(
    training, nodes: Nodes, drive: Callable[..., Driven]
) -> None:
    chance = random.Random(0)
    run = drive("killed", *EACH_ONE_CPU, "resources.workers=2", pause=0.05)
    killed: list[str] = []
    began = time.time()
    for _ in range(10):
        before = run.steps()
        run.until(lambda before=before: run.steps() > before + 12 or run.process.poll() is not None)
        if run.process.poll() is not None:
            break
        process = chance.choice(_processes_of_job(nodes))
        name = " ".join(process.cmdline()[:1])
        raylets = {node.all_processes["raylet"][0].process.pid: node for node in nodes.worker_nodes}
        process.kill()
        killed.append(name)
        if process.pid in raylets:  # a node for a node
            nodes.remove_node(raylets[process.pid], allow_graceful=False)
            nodes.add_node(**ONE_CPU)
    assert run.end() == 0, f"killed {killed}\n{run.output()}"
    assert len(killed) == 10, killed
    keys = [(p.key, p.step) for p in read_points(run.folder / "journal.jsonl")]
    assert len(keys) == len(set(keys))
    assert sorted(run.losses()) == list(range(1, RunFolder(run.folder).require(Result).steps + 1))
    restarts = [event for event in read_events(run.folder) if event.kind == "resumed"]
    training.note("25", f"ten processes killed, {len(restarts)} restarts: seconds of the whole run", time.time() - began, 0)


def _processes_of_job(nodes: Nodes) -> list[psutil.Process]:
    """The workers, agents and raylets of all worker nodes, and the run's own actors on the head."""
    raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in nodes.worker_nodes]
    head = psutil.Process(nodes.head_node.all_processes["raylet"][0].process.pid)
    actors = [process for process in head.children() if any("Train" in word for word in process.cmdline()[:1])]
    ranks = [child for raylet in raylets for child in raylet.children() if "Agent" not in " ".join(child.cmdline()[:1])]
    return [process for process in [*raylets, *ranks, *actors] if process.is_running()]
