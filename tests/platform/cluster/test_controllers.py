"""Trainings of one process that take over the controller of the one before."""

from __future__ import annotations

import contextlib
import gc
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.util.placement_group import placement_group_table

from starlab.platform.cluster import controllers
from starlab.platform.cluster.connect import Cluster
from starlab.platform.cluster.controllers import ReusingTrainer
from starlab.platform.cluster.network import NodeAddressTorchConfig

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(autouse=True)
def no_idle_controller(local_ray: Cluster) -> None:
    """Lets those go that the trainings of other tests have left."""
    controllers._idle_controllers(ray.get_runtime_context().get_worker_id()).clear()
    gc.collect()
    deadline = time.monotonic() + 120
    while processes("Controller") and time.monotonic() < deadline:
        time.sleep(0.2)


def train(path: Path, name: str, *, fails: bool = False) -> dict[str, Any]:
    def loop(config: dict[str, Any]) -> dict[str, Any]:
        import os

        import ray.train

        if config["fails"]:
            raise ValueError("a wire broke")
        return {"pid": os.getpid(), "world": ray.train.get_context().get_world_size()}

    result = ReusingTrainer(
        loop,
        train_loop_config={"fails": fails},
        backend_config=NodeAddressTorchConfig(),
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name=name, storage_path=str(path), failure_config=FailureConfig(max_failures=0)),
    ).fit()
    return dict(result.return_value)


def idle() -> list[Any]:
    return list(controllers._idle_controllers(ray.get_runtime_context().get_worker_id()))


def processes(name: str) -> set[int]:
    """Ids of this process's actors of a class."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] == [f"ray::{name}"]:
                found.add(process.pid)
    return found


def groups_in_use() -> int:
    return sum(group["state"] == "CREATED" for group in placement_group_table().values())


def test_a_controller_serves_one_training_after_another_and_their_workers_are_new(tmp_path: Path) -> None:
    first = train(tmp_path, "one")
    [controller] = idle()
    stay = processes("Controller")
    assert len(stay) == 1
    second = train(tmp_path, "two")
    assert processes("Controller") == stay
    assert not processes("PreemptionWatcher") | processes("DatasetManager") | processes("PlacementGroupCleaner")
    assert idle() == [controller]
    assert (first["world"], second["world"]) == (1, 1)
    assert first["pid"] != second["pid"]
    assert groups_in_use() == 0
    assert ray.cluster_resources()["CPU"] == 4


def test_a_training_takes_the_controller_that_was_started_ahead(tmp_path: Path) -> None:
    controllers.start_ahead(streams=False)
    [ahead] = idle()
    controllers.start_ahead(streams=False)
    assert idle() == [ahead]
    assert train(tmp_path, "one")["world"] == 1
    assert idle() == [ahead]


def test_a_controller_whose_training_failed_goes_away_and_gives_its_room_back(tmp_path: Path) -> None:
    train(tmp_path, "before")
    with pytest.raises(TrainingFailedError, match="a wire broke"):
        train(tmp_path, "fails", fails=True)
    assert idle() == []
    assert train(tmp_path, "after")["world"] == 1
    assert groups_in_use() == 0


def test_a_controller_that_was_killed_while_idle_is_replaced(tmp_path: Path) -> None:
    train(tmp_path, "before")
    [controller] = idle()
    ray.kill(controller)
    assert train(tmp_path, "after")["world"] == 1
    assert idle() != [controller]
