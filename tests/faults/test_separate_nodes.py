"""Nodes as separate as machines: one loses its power or its network, or the head restarts. Rows 24 of docs/reliability.md."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from driven import EACH_ONE_CPU, LONG, Driven
from separate_nodes import FAST_HEALTH_CHECKS, SeparateNodes, can_separate

from starlab.platform.runs.events import Event, read_events
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import read_points
from starlab.platform.runs.records import Result

pytestmark = [
    pytest.mark.slow_fault,
    pytest.mark.timeout(1200),  # a hang guard for a busy machine
    pytest.mark.skipif(not can_separate(), reason="needs root, iproute2 and unshare"),
]


RECONNECT = {"RAY_grpc_client_keepalive_timeout_ms": "15000"}
"""As every deployment sets it."""
RAYS_OWN = pytest.mark.parametrize("nodes", [RECONNECT], indirect=True, ids=["Ray's own health checks"])
"""They give a node up after a minute instead of a quarter of one."""
CACHED = {"CACHED": "1"}
"""The runs folder is seen through caches that are each node's own."""


@pytest.fixture
def nodes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SeparateNodes]:
    """A head and two nodes of one CPU."""
    settings = getattr(request, "param", FAST_HEALTH_CHECKS)
    (tmp_path / "run").mkdir()
    nodes = SeparateNodes(tmp_path / "nodes", settings, tmp_path / "run" if settings is CACHED else None)
    try:
        nodes.add("one", 2)
        nodes.add("two", 3)
        yield nodes
    finally:
        nodes.close()


@pytest.fixture
def drive(training, nodes: SeparateNodes, tmp_path: Path) -> Iterator[Callable[..., Driven]]:
    """`drive(*overrides, pause=…)` starts a training on the head."""
    started: list[Driven] = []

    def start(*overrides: str, pause: float = 0.0) -> Driven:
        environment = nodes.environment | {"RAY_ADDRESS": nodes.address}
        within, every = tuple(nodes.enter()), (*training.overrides, *LONG, *EACH_ONE_CPU, *overrides)
        started.append(Driven(tmp_path / "run", training.store, environment, *every, pause=pause, within=within))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()


def steps_once(run: Driven) -> None:
    """Assert that every step is in the journal, and that each is there once."""
    keys = [(p.key, p.step) for p in read_points(run.folder / "journal.jsonl")]
    assert len(keys) == len(set(keys))
    assert sorted(run.losses()) == list(range(1, RunFolder(run.folder).require(Result).steps + 1))


def first(run: Driven, kind: str) -> Event:
    return next(event for event in read_events(run.folder) if event.kind == kind)


def test_a_node_without_power_is_named_within_twenty_seconds_and_the_run_goes_on_with_the_rest_and_grows_again(
    training, nodes: SeparateNodes, drive: Callable[..., Driven]
) -> None:
    run = drive("resources.workers={min: 1, max: 2}", pause=0.1)
    run.until(lambda: run.steps() > 15)
    lost_at, steps = time.time(), run.steps()
    nodes.cut_power("two")
    run.until(lambda: run.said("node_silent"), 60)
    assert first(run, "node_silent").time - lost_at < 20
    assert "node two" in run.said("node_silent")[0]
    run.until(lambda: len(run.said("workers")) > 1)
    assert run.said("workers")[1] == "1 of 2 start (resources.workers.max; 1 at least)"
    run.until(lambda: run.steps() > steps + 5)
    training.measure("24", "power failure of a node; an elastic run goes on with one worker of two", run.folder, lost_at)
    nodes.add("two", 3)
    run.until(lambda: len(run.said("workers")) > 3)
    assert run.end() == 0, run.output()
    assert {world for world, _ in run.sequence().values()} == {1, 2}


@RAYS_OWN
def test_a_network_that_is_cut_for_thirty_seconds_costs_no_step(
    training, nodes: SeparateNodes, drive: Callable[..., Driven]
) -> None:
    run = drive("resources.workers=2", pause=0.05)
    run.until(lambda: run.steps() > 15)
    cut_at = time.time()
    nodes.cut_network("two")
    run.until(lambda: run.said("node_silent"), 25)
    time.sleep(max(0.0, cut_at + 30 - time.time()))
    steps = run.steps()
    nodes.heal_network("two")
    run.until(lambda: run.said("node_back"), 30)
    assert "node two" in run.said("node_back")[0]
    run.until(lambda: run.steps() > steps)
    training.note("24a", "network of a node cut for 30 s; seconds from the cut to the next step", time.time() - cut_at, 0)
    assert run.end() == 0, run.output()
    assert run.said("node_lost") == run.said("restarted") == []
    steps_once(run)


@RAYS_OWN
def test_a_network_that_is_cut_for_three_minutes_costs_the_steps_since_the_checkpoint(
    training, nodes: SeparateNodes, drive: Callable[..., Driven]
) -> None:
    run = drive("resources.workers=2", pause=0.05)
    run.until(lambda: run.steps() > 15)
    cut_at = time.time()
    nodes.cut_network("two")
    run.until(lambda: run.said("node_lost"), 100)
    run.until(lambda: run.said("waiting"), 60)
    time.sleep(max(0.0, cut_at + 180 - time.time()))
    assert run.process.poll() is None, run.output()
    steps = run.steps()
    nodes.heal_network("two")
    run.until(lambda: run.steps() > steps, 200)
    training.measure("24b", "network of a node cut for 3 minutes; seconds from the cut to the next step", run.folder, cut_at)
    assert run.end() == 0, run.output()
    assert len(run.said("restarted")) == 1
    steps_once(run)


@RAYS_OWN
def test_after_the_head_restarts_its_nodes_join_the_new_one_and_the_same_command_goes_on(
    training, nodes: SeparateNodes, drive: Callable[..., Driven]
) -> None:
    long = ("resources.workers=2", "train.epochs=150")  # workers of the old group train on for a while
    run = drive(*long, pause=0.05)
    run.until(lambda: run.steps() > 25)
    lost_at = time.time()
    nodes.cut_power("head")
    run.process.wait(30)
    nodes.start_head()
    again = drive(*long, pause=0.05)
    # The old workers train on until their nodes notice that the head is gone, so steps alone do not show the new ones.
    again.until(lambda: any(event.kind == "resumed" and event.time > lost_at for event in read_events(again.folder)), 200)
    steps = again.steps()
    again.until(lambda: again.steps() > steps)
    training.measure("24c", "power failure of the head, the same command on a new one", run.folder, lost_at)
    assert again.end() == 0, again.output()
    steps_once(again)


@pytest.mark.skipif(not shutil.which("tc"), reason="needs tc of iproute2")
@RAYS_OWN
def test_a_link_that_becomes_slow_makes_the_steps_slow_and_ends_nothing(
    training, nodes: SeparateNodes, drive: Callable[..., Driven]
) -> None:
    run = drive("resources.workers=2", pause=0.05)
    run.until(lambda: run.steps() > 15)
    nodes.slow_network("two", megabits=4)
    began, steps = time.time(), run.steps()
    run.until(lambda: time.time() > began + 60 and run.steps() > steps + 2)
    slow = (time.time() - began) / (run.steps() - steps)
    nodes.fast_network("two")
    began, steps = time.time(), run.steps()
    run.until(lambda: run.steps() > steps + 20)
    fast = (time.time() - began) / (run.steps() - steps)
    training.note("24d", "link of a node at 4 Mbit/s; seconds of a step more than without", slow - fast, 0)
    assert run.end() == 0, run.output()
    assert run.said("node_silent") == run.said("node_lost") == run.said("restarted") == []
    steps_once(run)


@pytest.mark.skipif(not shutil.which("bindfs"), reason="needs bindfs")
@pytest.mark.parametrize("nodes", [CACHED], indirect=True, ids=["half a minute"])
def test_where_each_node_keeps_what_it_knows_of_files_a_run_ends_when_asked_and_goes_on_from_that_step(
    training, nodes: SeparateNodes, drive: Callable[..., Driven]
) -> None:
    never = "train.checkpoint_every_steps=null"  # so that the request alone makes it write one
    run = drive("resources.workers=2", never, pause=0.05)
    run.until(lambda: run.steps() > 15)
    asked = time.time()
    for process in psutil.Process(run.process.pid).children():  # nsenter itself would end without it
        process.send_signal(signal.SIGTERM)
    run.until(lambda: run.said("preempted"), 60)
    assert run.process.wait(120) == 128 + signal.SIGTERM, run.output()
    [stopped] = [event.step for event in read_events(run.folder) if event.kind == "preempted"]
    seconds = first(run, "preempted").time - asked
    training.note("24e", "SIGTERM where each node caches files; seconds to the checkpoint", seconds, 0)
    assert seconds < 20  # a rank that had cached that no request exists would see it after 30 s
    again = drive("resources.workers=2", never)
    assert again.end() == 0, again.output()
    assert first(again, "resumed").step == stopped
    steps_once(again)
