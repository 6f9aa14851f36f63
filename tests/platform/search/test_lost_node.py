"""A search on several nodes loses one under a trial: that trial alone is disturbed, and goes on from its checkpoint."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from many_nodes import ONE_CPU, join, nodes_on_this_machine
from ray.cluster_utils import Cluster as Nodes
from tiny import TINY

from starlab.experiments.spec import load_search
from starlab.platform.runs.events import read_events
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import read_points
from starlab.platform.search.search import search

pytestmark = [pytest.mark.slow_fault, pytest.mark.timeout(900)]
SMALL = [
    *TINY,
    "data.synthetic.train_clips_per_class=16",
    "data.decode=worker",
    "train.epochs=12",
    "train.evaluate_every_epochs=1",
    "resources.cpus_per_worker=1",
    "search.trials=2",
    "search.early_stopping=none",
]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """A head without CPUs, where the search and its trials' drivers run, and three nodes of one CPU."""
    with nodes_on_this_machine([ONE_CPU] * 3, monkeypatch) as cluster:
        join(cluster)
        yield cluster


def steps(run: Path) -> int:
    return max((point.step for point in read_points(run / "journal.jsonl")), default=0)


def node_of(run: Path, cluster: Nodes) -> object | None:
    """The node on which a worker of this run computes, by its open journal."""
    for node in list(cluster.worker_nodes):
        raylet = node.all_processes["raylet"][0].process.pid
        for pid in map(int, os.popen(f"pgrep -P {raylet}").read().split()):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    if link.readlink() == run / "journal.jsonl":
                        return node
                except OSError:
                    continue
    return None


def test_a_lost_node_costs_its_own_trial_only_the_way_back_to_its_checkpoint(nodes: Nodes, tmp_path: Path) -> None:
    said: list[str] = []
    lost: dict[str, int] = {}

    def lose_a_node() -> None:
        while not lost:
            time.sleep(0.2)
            runs = [run for run in tmp_path.glob("demo_search-*/trials/*") if list(run.glob("checkpoints/step_*"))]
            if len(runs) == 2 and (node := node_of(runs[0], nodes)):
                lost[runs[0].name] = steps(runs[0])
                nodes.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=lose_a_node, daemon=True)
    thread.start()
    result = search(load_search("demo_search", SMALL), runs=tmp_path, say=said.append)
    thread.join(timeout=10)
    [name] = lost
    assert result.failed == {}
    assert [trial.whole for trial in result.trials] == [True, True]
    assert not [line for line in said if "starts again" in line]  # the trial's driver is on the head
    for run in (RunFolder(path) for path in result.folder.glob("trials/*")):
        kinds = [event.kind for event in read_events(run.path)]
        if run.path.name == name:
            assert kinds.count("restarted") == 1
            [resumed] = [event for event in read_events(run.path) if event.kind == "resumed"][:1]
            assert resumed.step is None or resumed.step > 0
        else:
            assert "restarted" not in kinds
            assert "waiting" not in kinds
    keys = [(point.key, point.step) for point in read_points(result.folder / "trials" / name / "journal.jsonl")]
    assert len(keys) == len(set(keys))
