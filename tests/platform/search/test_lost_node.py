"""A search on several nodes loses one under a trial: that trial alone is disturbed, and goes on from its checkpoint."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster as Nodes

from starlab.experiments.spec import load_search
from starlab.platform.cluster.connect import SETTINGS
from starlab.platform.runs.events import read_events
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import read_points
from starlab.platform.search.search import search

pytestmark = [pytest.mark.slow_fault, pytest.mark.timeout(900)]
SMALL = [
    "data.synthetic.train_clips_per_class=16",
    "data.synthetic.test_clips_per_class=2",
    "data.synthetic.size_px=48",
    "data.frames=4",
    "data.size=24",
    "data.decode=worker",
    "model.dim=16",
    "model.heads=2",
    "train.epochs=12",
    "train.evaluate_every_epochs=1",
    "resources.cpus_per_worker=1",
    "search.trials=2",
    "search.early_stopping=none",
]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """A head without CPUs, where the search and its trials' drivers run, and three nodes of one CPU."""
    ray.shutdown()
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    cluster = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 200_000_000})
    for _ in range(3):
        cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    ray.init(address=cluster.address, log_to_driver=False, runtime_env={"env_vars": SETTINGS})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


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
