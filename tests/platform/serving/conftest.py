"""One small finished run and what came of it, for the tests of this folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from starlab.experiments.spec import load_spec
from starlab.pipelines.generated.penn_action import SYNTHETIC_CLASSES, write_penn_action
from starlab.pipelines.penn_action import PennActionSource
from starlab.platform.cluster.connect import Cluster
from starlab.platform.trainer import RunResult, train

SYNTHETIC = dataclasses.replace(load_spec("demo").data.synthetic, train_clips_per_class=6, test_clips_per_class=3, size_px=48)
TINY = [
    "data.synthetic.train_clips_per_class=6",
    "data.synthetic.test_clips_per_class=3",
    "data.synthetic.size_px=48",
    "data.frames=4",
    "data.size=24",
    "model.dim=16",
    "model.heads=2",
    "train.epochs=2",
    "train.schedule=constant",
    "train.warmup_fraction=0",
    "train.evaluate_every_epochs=1",
    "train.precision=fp32",
]


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of generated people."""
    root = tmp_path_factory.mktemp("people") / "people"
    write_penn_action(root, SYNTHETIC, workers=1)
    return root


@pytest.fixture(scope="session")
def people_source(people: Path) -> PennActionSource:
    return PennActionSource(people, classes=SYNTHETIC_CLASSES)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def run(local_ray: Cluster, people: Path, runs: Path) -> RunResult:
    """A finished run of two epochs. Tests do not change its folder."""
    return train(load_spec("demo", [*TINY, f"data.store={people}"]), runs=runs)
