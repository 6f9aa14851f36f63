"""Training from a prepared store: the same run as from the authors' files, wherever clips are decoded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from starlab.experiments.spec import load_spec
from starlab.pipelines.penn_action import PennActionSource
from starlab.pipelines.prepare import StoreLayout, prepare
from starlab.platform.evaluation import evaluate_run
from starlab.platform.runs.journal import read_points
from starlab.platform.runs.metric_names import SYSTEM
from starlab.platform.trainer import RunResult, train

TINY = ["data.frames=4", "data.size=24", "model.dim=16", "model.heads=2", "train.epochs=1", "train.log_every_steps=1"]
TINY += ["resources.workers=1", "train.global_batch=4", "data.limit=2", "data.oversample={swing_red_ball: 3}"]
TINY += ["data.test_views=[2, 2]", "data.test_crop=0.9", "data.synthetic.size_px=64", "data.synthetic.train_subjects=3"]
TINY += ["data.synthetic.test_subjects=2", "data.synthetic.train_clips_per_class=6", "data.synthetic.test_clips_per_class=3"]
TINY += ["data.validation_fraction=0.3"]


def curve(result: RunResult) -> list[tuple[str, int, float]]:
    return [(p.key, p.step, p.value) for p in read_points(result.folder / "journal.jsonl") if not p.key.startswith(SYSTEM)]


@pytest.mark.usefixtures("local_ray")
@pytest.mark.longer
def test_a_run_from_a_store_that_decodes_in_the_worker_has_the_losses_of_one_from_the_files_that_decodes_in_tasks(
    small_folder: Path, small_source: PennActionSource, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    prepare(small_source, "synthetic_penn_action", store, StoreLayout(clips_per_shard=20))
    from_files = train(load_spec("demo", [*TINY, f"data.store={small_folder}"]), runs=tmp_path / "runs")
    from_store = train(load_spec("demo", [*TINY, f"data.store={store}", "data.decode=worker"]), runs=tmp_path / "others")
    assert from_files.run_id == from_store.run_id  # one data set, one identity
    assert len(curve(from_files)) > 10
    assert curve(from_files) == curve(from_store)
    assert from_files.metrics == from_store.metrics
    result = json.loads((from_store.folder / "result.json").read_text())
    assert result["test_clips"] == 20  # two of each of ten classes, each once, whatever the views


@pytest.mark.usefixtures("local_ray")
def test_a_run_on_the_files_is_found_and_evaluated_on_their_store(small_folder, small_source, tmp_path: Path) -> None:
    store, runs = tmp_path / "store", tmp_path / "runs"
    prepare(small_source, "synthetic_penn_action", store, StoreLayout(clips_per_shard=20))
    first = train(load_spec("demo", [*TINY, f"data.store={small_folder}"]), runs=runs)
    steps = curve(first)
    again = train(load_spec("demo", [*TINY, f"data.store={store}"]), runs=runs)
    assert (again.run_id, again.metrics) == (first.run_id, first.metrics)
    assert curve(again) == steps
    evaluated = evaluate_run(first.run_id, overrides=[f"data.store={store}"], runs=runs)
    assert evaluated.metrics["top1"] == pytest.approx(json.loads((first.folder / "result.json").read_text())["test"]["top1"])
