"""Nodes as separate as machines, of which one loses its power. Row 24 of docs/reliability.md."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from driven import EACH_ONE_CPU, LONG, Driven
from separate_nodes import FAST_HEALTH_CHECKS, SeparateNodes, can_separate

from starlab.platform.runs.events import Event, read_events

pytestmark = [
    pytest.mark.slow_fault,
    pytest.mark.timeout(1200),  # a hang guard for a busy machine
    pytest.mark.skipif(not can_separate(), reason="needs root, iproute2 and unshare"),
]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[SeparateNodes]:
    """A head and two nodes of one CPU."""
    nodes = SeparateNodes(tmp_path / "nodes", FAST_HEALTH_CHECKS)
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
