"""What several rooms' tests share: one local Ray, and a small generated data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from hypothesis import settings

from starlab.pipelines.penn_action import PennActionSource
from starlab.pipelines.synthetic import SYNTHETIC_CLASSES, SyntheticConfig, write_penn_action
from starlab.pipelines.synthetic_ntu import SyntheticNtuConfig, write_ntu
from starlab.platform.cluster import Cluster, connect

# No deadline: a test says nothing about the load of the machine that it runs on.
settings.register_profile("starlab", deadline=None)
settings.load_profile("starlab")

SMALL = SyntheticConfig(train_subjects=3, test_subjects=2, train_clips_per_class=6, test_clips_per_class=3, size_px=64)
"""60 training and 30 test clips."""

SMALL_NTU = SyntheticNtuConfig(train_performers=2, test_performers=1, cameras=2, height_px=90, min_frames=40, max_frames=44)
"""36 clips of 160×90 and one without a body."""


@pytest.fixture(scope="session")
def local_ray() -> Iterator[Cluster]:
    """Four logical CPUs in this process's own cluster."""
    ray.shutdown()
    yield connect(num_cpus=4, object_store_bytes=200_000_000)
    ray.shutdown()


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated Penn Action folder; read only."""
    root = tmp_path_factory.mktemp("data") / "small"
    write_penn_action(root, SMALL, workers=1)
    return root


@pytest.fixture(scope="session")
def small_source(small_folder: Path) -> PennActionSource:
    return PennActionSource(small_folder, classes=SYNTHETIC_CLASSES)


@pytest.fixture(scope="session")
def ntu_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated NTU RGB+D folder; read only."""
    root = tmp_path_factory.mktemp("data") / "ntu"
    write_ntu(root, SMALL_NTU, workers=1)
    return root
