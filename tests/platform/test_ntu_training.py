"""The NTU path from videos and skeleton files to a result, on generated files: two bodies, one of them often absent."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from starlab.experiments.spec import Spec, load_spec
from starlab.pipelines.generated.ntu import SYNTHETIC_NTU_CLASSES
from starlab.pipelines.ntu import MISSING_LISTS, NtuSource
from starlab.pipelines.ntu_names import parse_name
from starlab.pipelines.schedule import EvalPlan
from starlab.pipelines.sources import open_source
from starlab.pipelines.stream import StreamLimits, eval_batches
from starlab.platform.cluster.connect import Cluster
from starlab.platform.trainer import train

TINY = [
    "data.dataset=synthetic_ntu",
    "data.protocol=xsub",
    "data.synthetic_ntu.train_performers=2",
    "data.synthetic_ntu.test_performers=1",
    "data.synthetic_ntu.cameras=2",
    "data.synthetic_ntu.height_px=90",
    "data.synthetic_ntu.max_frames=44",
    "data.validation_fraction=0.4",
    "data.frames=4",
    "data.size=24",
    "model.dim=16",
    "model.heads=2",
    "train.epochs=1",
    "train.evaluate_every_epochs=1",
    "train.global_batch=4",
    "resources.workers=1",
]


@pytest.fixture(scope="module")
def spec(ntu_folder: Path) -> Spec:
    return load_spec("demo", [*TINY, f"data.store={ntu_folder}"])


@pytest.mark.longer
def test_a_run_on_generated_ntu_trains_an_epoch_and_looks_at_every_test_clip_once(
    local_ray: Cluster, spec: Spec, tmp_path: Path
) -> None:
    result = train(spec, runs=tmp_path)
    assert math.isfinite(result.metrics["test/loss"])
    assert set(result.per_class) == set(SYNTHETIC_NTU_CLASSES)
    found = json.loads((result.folder / "result.json").read_text())
    assert found["test_clips"] == sum(map(sum, found["confusion"])) == 12
    skipped = json.loads((result.folder / "skipped.json").read_text())
    assert list(skipped) == ["S001C001P001R002A901"]
    assert (spec.model.max_bodies, spec.model.num_joints) == (2, 25)


@pytest.mark.parametrize("decode", ["cluster", "worker"])
def test_a_missing_skeleton_that_no_list_names_is_reported_by_the_stream_and_nobody_else_is_lost(
    local_ray: Cluster, spec: Spec, ntu_folder: Path, tmp_path: Path, decode: Literal["cluster", "worker"]
) -> None:
    folder = Path(shutil.copytree(ntu_folder, tmp_path / "ntu"))
    (folder / MISSING_LISTS[1]).unlink()
    data = replace(spec.data, store=str(folder), decode=decode)
    source = open_source(data, tmp_path)
    plan = EvalPlan(clips=tuple(range(len(source.clips))), rank=0, world=1)
    limits = StreamLimits(cpus=2, cpus_per_task=1, object_store_bytes=50_000_000)
    batches = list(eval_batches(source, data, plan, 10, limits))
    [(clip_id, reason)] = [problem for batch in batches for problem in batch.unreadable]
    assert clip_id == "S001C001P001R002A901"
    assert "nobody is seen" in reason
    read = [source.clips[clip].clip_id for batch in batches for clip in batch.clips]
    assert read == [row.clip_id for row in source.clips if row.clip_id != clip_id]


def test_the_stream_hands_over_two_bodies_and_marks_the_absent_one_by_its_confidence(
    local_ray: Cluster, spec: Spec, tmp_path: Path
) -> None:
    source = open_source(spec.data, tmp_path)
    assert isinstance(source, NtuSource)
    plan = EvalPlan(clips=tuple(range(len(source.clips))), rank=0, world=1)
    limits = StreamLimits(cpus=2, cpus_per_task=1, object_store_bytes=50_000_000)
    seen = 0
    for batch in eval_batches(source, spec.data, plan, 6, limits):
        assert batch.joints.shape[1:] == (4, 2, 25, 3)
        assert batch.unreadable == ()
        for joints, clip in zip(batch.joints, batch.clips, strict=True):
            present = joints[..., 2].any(axis=(0, 2))
            assert present.tolist() == [True, parse_name(source.clips[clip].clip_id).action >= 950]
            assert not joints[:, ~present].any()
            assert np.isfinite(joints).all()
        seen += len(batch.clips)
    assert seen == 36
