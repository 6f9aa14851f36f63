"""Which of Ray Train's callbacks, each a process, a training starts."""

import pytest
from ray.train import ScalingConfig
from ray.train.v2._internal.callbacks import BackendSetupCallback, DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from starlab.platform.cluster import lean_trainer
from starlab.platform.cluster.connect import Cluster
from starlab.platform.cluster.lean_trainer import LeanTrainer


def callbacks(monkeypatch: pytest.MonkeyPatch, *, local: bool) -> set[type]:
    cluster = Cluster(local=local, nodes=1, cpus=2.0, gpus=0.0, accelerators=())
    monkeypatch.setattr(lean_trainer, "describe_cluster", lambda: cluster)
    trainer = LeanTrainer(lambda: None, scaling_config=ScalingConfig(num_workers=1))
    return {type(callback) for callback in trainer._create_default_callbacks()}


def test_a_local_training_starts_no_manager_of_data_sets_and_no_cleaner(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = callbacks(monkeypatch, local=True)
    assert not kinds & {DatasetsCallback, PlacementGroupCleanerCallback}
    assert BackendSetupCallback in kinds


def test_on_a_shared_cluster_placement_groups_of_dead_drivers_are_still_cleaned_up(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = callbacks(monkeypatch, local=False)
    assert DatasetsCallback not in kinds
    assert {PlacementGroupCleanerCallback, BackendSetupCallback} <= kinds
