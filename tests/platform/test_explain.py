"""What `starlab explain` writes, for a small untrained run with a real checkpoint and real clips."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from starlab.experiments.spec import load_spec
from starlab.models.star import StarTransformer
from starlab.pipelines.sources import open_source
from starlab.platform.errors import UserError
from starlab.platform.explain import explain_run
from starlab.platform.reports.attention import MODEL
from starlab.platform.reports.explain_files import read_embedding, read_rollouts, read_untrained
from starlab.platform.reports.report import report
from starlab.platform.reports.untrained import changes
from starlab.platform.runs.checkpoint import write_checkpoint
from starlab.platform.runs.folder import SPEC, RunFolder
from starlab.platform.runs.records import Result, RunInfo

SMALL = [
    "data.synthetic.train_clips_per_class=4",
    "data.synthetic.test_clips_per_class=2",
    "data.synthetic.size_px=48",
    "data.synthetic.min_frames=20",
    "data.synthetic.max_frames=24",
    "data.size=32",
    "model.dim=16",
    "model.heads=2",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with `small-1`, which has evaluated its test part."""
    root = tmp_path_factory.mktemp("runs")
    spec = load_spec("demo", SMALL)
    source = open_source(spec.data, root)
    folder = RunFolder(root / "small-1")
    folder.write_json(SPEC, spec.to_dict())
    info = RunInfo(
        run_id="small-1",
        key="k",
        experiment="demo",
        mlflow_experiment="demo",
        tracking_uri="sqlite:///x",
        runs=str(root),
        status="FINISHED",
        tags={"starlab.data_fingerprint": source.fingerprint},
    )
    folder.write(info)
    torch.manual_seed(0)
    tensors = {f"model/{name}": value for name, value in StarTransformer(spec.model).state_dict().items()}
    write_checkpoint(folder.stored_checkpoints, 5, tensors, {"best": {"step": 5}})
    metrics = {"top1": 0.1, "top5": 0.5, "mean_class": 0.1, "loss": 2.3}
    folder.write(
        Result(steps=5, total_steps=5, best_step=5, selected_by="validation", classes=source.classes, val=metrics, test=metrics)
    )
    return root


def test_every_test_clip_has_a_rollout_by_pattern_and_the_report_draws_it(runs: Path) -> None:
    folder = RunFolder(runs / "small-1")
    looks = folder.looks_at_test()
    found = explain_run("small-1", embedding=True, runs=runs)
    rollouts = read_rollouts(folder.artifacts)
    assert rollouts is not None
    assert list(rollouts.importance) == [MODEL, "B", "F", "Z"]
    assert len(set(rollouts.clip_ids)) == 20
    for values in rollouts.importance.values():
        assert values.shape == (20, 16)
        np.testing.assert_allclose(values.sum(axis=1), 1, atol=1e-5)
    assert [focus.pattern for focus in found.focuses] == list(rollouts.importance)
    clip = json.loads((found.folder / "clip.json").read_text())
    joints = np.array(clip["joint_importance"])
    assert joints.shape == (13, 16)
    assert joints.sum() + clip["grid_share"] + clip["class_share"] == pytest.approx(1, abs=1e-4)
    frame = np.array(clip["frames"][MODEL])
    assert (joints.sum(axis=0) < frame + 1e-6).all()
    assert found.untrained is not None
    assert {len(values) for values in found.untrained.late.values()} == {5}
    assert read_untrained(folder.artifacts) == found.untrained
    for focus in found.focuses:  # the run was never trained itself
        assert changes(focus, found.untrained) == ("no change shown", "no change shown")
    picture = cv2.imread(str(found.folder / "clip.jpg"))
    assert picture.shape == (4 * 115, 8 * 115, 3)  # two rows of frames, each above the importance of its places
    points = read_embedding(folder.artifacts)
    assert points is not None
    assert (points.part, points.points["PCA"].shape) == ("test", (20, 2))
    page = report(folder).read_text()
    assert "What the attention looks at" in page
    assert "data:image/jpeg" in page
    assert "Untrained models of the same wiring are the control" in page
    assert folder.looks_at_test() == looks


def test_a_named_clip_is_drawn_and_an_unknown_one_refused(runs: Path) -> None:
    rollouts = read_rollouts(RunFolder(runs / "small-1").artifacts)
    name = rollouts.clip_ids[3] if rollouts else explain_run("small-1", runs=runs).clip.clip_id
    found = explain_run("small-1", clip=name, most_clips=4, runs=runs)
    assert found.clip.clip_id == name
    assert {focus.clips for focus in found.focuses} == {4}
    assert found.untrained is not None
    assert found.untrained.clips == 4
    assert explain_run("small-1", clip=name, most_clips=4, untrained=0, runs=runs).untrained is None
    assert read_untrained(RunFolder(runs / "small-1").artifacts) is None
    with pytest.raises(UserError, match="--untrained is 1; it must be 0, or at least 2"):
        explain_run("small-1", untrained=1, runs=runs)
    with pytest.raises(UserError, match=r"the test part has no clip 'nobody'; it has, for example, \d+"):
        explain_run("small-1", clip="nobody", runs=runs)


def test_the_embedding_of_a_run_without_a_test_result_shows_validation_clips(runs: Path) -> None:
    folder = RunFolder(runs / "small-1")
    result = folder.require(Result)
    said: list[str] = []
    folder.write(dataclasses.replace(result, test=None))
    try:
        found = explain_run("small-1", embedding=True, most_clips=4, runs=runs, say=said.append)
    finally:
        folder.write(result)
    assert found.embedding is not None
    assert found.embedding.part == "validation"
    assert any("has not evaluated its test part" in line for line in said)


def test_other_data_than_those_of_the_training_are_refused(runs: Path) -> None:
    folder = RunFolder(runs / "small-1")
    info = folder.info
    folder.write(dataclasses.replace(info, tags={"starlab.data_fingerprint": "0" * 64}))
    try:
        with pytest.raises(UserError, match="was trained on data with fingerprint 000000000000, not"):
            explain_run("small-1", runs=runs)
    finally:
        folder.write(info)
