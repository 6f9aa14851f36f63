"""What a finished run holds besides its curve: predictions, model, machine metrics, trace, and no password anywhere."""

import dataclasses
import gzip
import json
import os
import re
import shutil
import sqlite3
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from starlab.experiments.spec import SpecError, load_spec
from starlab.pipelines.clip import DataError
from starlab.pipelines.generated.penn_action import write_penn_action
from starlab.pipelines.loading import LoadClips
from starlab.pipelines.schedule import EvalPlan
from starlab.pipelines.sources import open_source
from starlab.platform import worse_joints
from starlab.platform.cluster.connect import Cluster
from starlab.platform.errors import UserError
from starlab.platform.evaluation import evaluate_run
from starlab.platform.reports.compare import compare
from starlab.platform.reports.results import read_results
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import FILE, SYSTEM_FILE, read_points
from starlab.platform.serving.registry import load_model
from starlab.platform.tracking.sender import stored_uri, sync
from starlab.platform.trainer import RunResult, train
from starlab.platform.worker.predictions import read_predictions

PASSWORD = "correct-horse-battery"
SECRET = "AKIA-not-to-be-seen-0123"
SYNTHETIC = dataclasses.replace(load_spec("demo").data.synthetic, train_clips_per_class=6, test_clips_per_class=3, size_px=48)
TINY = [
    "data.synthetic.train_clips_per_class=6",
    "data.synthetic.test_clips_per_class=3",
    "data.synthetic.size_px=48",
    "data.frames=4",
    "data.size=24",
    "model.dim=16",
    "model.heads=2",
    "train.epochs=3",
    "train.profile=true",
    "train.ema=0.9",  # so that the weights to register are not simply those that were trained last
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store") / "people"
    write_penn_action(root, SYNTHETIC, workers=1)
    return root


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def run(local_ray: Cluster, tmp_path_factory: pytest.TempPathFactory, store: Path, said: list[str]) -> RunResult:
    """A run tracked at an address with a password, in an environment with a secret."""
    runs = tmp_path_factory.mktemp("runs")
    address = f"sqlite:///{runs}/mlflow.db?password={PASSWORD}"  # SQLite does not mind
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        return train(load_spec("demo", [*TINY, f"data.store={store}", f"tracking.uri={address}"]), runs=runs, say=said.append)


def client(run: RunResult) -> MlflowClient:
    uri = f"sqlite:///{run.folder.parent}/mlflow.db"
    return MlflowClient(uri, registry_uri=uri)


def test_neither_password_nor_secret_is_in_anything_that_was_written_or_said(run: RunResult, said: list[str]) -> None:
    assert run.tracking_problem is None
    words = (PASSWORD.encode(), SECRET.encode())
    files = [path for path in run.folder.parent.rglob("*") if path.is_file()]
    assert {"run.json", "spec.json", "mlflow.db", "MLmodel", "state.json"} <= {path.name for path in files}
    for path in files:
        data = path.read_bytes()
        assert not [word for word in words if word in data], path
    assert not [line for line in [*said, repr(run)] if PASSWORD in line or SECRET in line]
    assert json.loads((run.folder / "run.json").read_text())["tracking_uri"].endswith("?password=***")
    with sqlite3.connect(run.folder.parent / "mlflow.db") as database:
        dump = "\n".join(database.iterdump())
    assert "?password=***" in dump  # the param is there, without it
    assert PASSWORD not in dump


def test_mlflow_has_the_machines_metrics_under_its_own_names(run: RunResult) -> None:
    metrics = client(run).get_run(str(run.mlflow_run_id)).data.metrics
    assert 0 < metrics["system/system_memory_usage_percentage"] <= 100
    assert 0 <= metrics["system/cpu_utilization_percentage"] <= 100
    history = client(run).get_metric_history(str(run.mlflow_run_id), "system/system_memory_usage_megabytes")
    assert [metric.step for metric in history] == list(range(len(history)))


def test_the_predictions_of_the_look_at_test_give_its_metrics_again(run: RunResult) -> None:
    clips, evaluation, classes = read_predictions(run.folder / "artifacts" / "predictions.parquet")
    assert len(set(clips)) == len(clips) == 30
    result = json.loads((run.folder / "result.json").read_text())
    assert evaluation.metrics() == pytest.approx(result["test"])
    assert evaluation.confusion().tolist() == result["confusion"]
    assert classes == result["classes"]
    assert run.per_class == pytest.approx(dict(zip(classes, evaluation.per_class().tolist(), strict=True)))


def test_the_registered_model_is_the_best_checkpoint_by_mlflow_and_by_starlab_without_a_pickle(
    run: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    [version] = client(run).search_model_versions("name = 'demo'")
    assert version.run_id == run.mlflow_run_id
    assert version.tags["starlab.val_top1"] == str(run.metrics["val/top1"])
    uri = f"sqlite:///{run.folder.parent}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        by_mlflow = mlflow.pyfunc.load_model(f"models:/demo/{version.version}")
        by_starlab = load_model(f"models:/demo/{version.version}")
        by_folder = load_model(str(run.folder))
        local = Path(mlflow.artifacts.download_artifacts(f"models:/demo/{version.version}"))
    finally:
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 4, 24, 24, 3), dtype=np.uint8)
    joints = rng.random((3, 4, 1, 13, 3), dtype=np.float32)
    with torch.no_grad():
        expected = by_starlab(torch.from_numpy(frames), torch.from_numpy(joints)).numpy()
        assert np.array_equal(expected, by_folder(torch.from_numpy(frames), torch.from_numpy(joints)).numpy())
    assert np.array_equal(by_mlflow.predict({"frames": frames, "joints": joints}), expected)
    with pytest.raises(mlflow.MlflowException, match="frames"):  # the signature is enforced
        by_mlflow.predict({"frames": frames[:, :2], "joints": joints})
    assert {path.name for path in local.rglob("*") if path.is_file()} >= {"MLmodel", "weights.safetensors", "spec.json"}
    for path in local.rglob("*"):
        assert not path.is_file() or not path.read_bytes().startswith((b"\x80", b"PK")), f"{path} is pickled"
    result = json.loads((run.folder / "result.json").read_text())
    assert version.tags["starlab.step"] == str(result["best_step"])


def test_the_registered_model_predicts_what_the_run_predicted_of_its_test_clips(run: RunResult, store: Path) -> None:
    spec = load_spec("demo", [*TINY, f"data.store={store}"])
    source = open_source(spec.data, run.folder.parent)
    test = tuple(index for index, row in enumerate(source.clips) if row.split == "test")
    batch = LoadClips(source, spec.data, EvalPlan(test, rank=0, world=1), first_row=0)({"id": np.arange(len(test))})
    with torch.no_grad():
        logits = load_model(str(run.folder))(torch.from_numpy(batch["frames"]), torch.from_numpy(batch["joints"])).numpy()
    clips, evaluation, _ = read_predictions(run.folder / "artifacts" / "predictions.parquet")
    assert clips == [source.clips[index].clip_id for index in test]
    assert np.allclose(logits, evaluation.logits, atol=1e-5)


def test_best_and_last_checkpoints_are_kept(run: RunResult) -> None:
    steps = {int(path.parent.name[5:13]) for path in run.folder.glob("checkpoints/*/manifest.json")}
    result = json.loads((run.folder / "result.json").read_text())
    assert {result["best_step"], result["total_steps"]} <= steps


@pytest.mark.longer
def test_evaluating_the_best_checkpoint_again_gives_the_same_numbers_and_is_counted_as_a_look(
    run: RunResult, store: Path
) -> None:
    folder = RunFolder(run.folder)
    moved = store.parent / "moved"
    store.rename(moved)  # the data lie elsewhere now
    try:
        again = evaluate_run(run.run_id, runs=run.folder.parent, overrides=[f"data.store={moved}", "resources.workers=1"])
        validation = evaluate_run(
            run.run_id, runs=run.folder.parent, part="validation", checkpoint="last", overrides=[f"data.store={moved}"]
        )
    finally:
        moved.rename(store)
    before = read_predictions(run.folder / "artifacts" / "predictions.parquet")
    after = read_predictions(again.folder / "predictions.parquet")
    assert before[0] == after[0]  # the same clips in the same order, by one worker instead of two
    assert np.allclose(before[1].logits, after[1].logits, atol=1e-5)
    assert again.metrics == pytest.approx({name: run.metrics[f"test/{name}"] for name in again.metrics}, abs=1e-5)
    assert (again.look, folder.looks_at_test()) == (2, 2)
    assert (validation.look, validation.step) == (0, json.loads((run.folder / "result.json").read_text())["total_steps"])
    compared = compare(read_results([folder]))
    assert f"looked at the test part more than once: {run.run_id}" in compared.notes
    [row] = compared.rows
    assert row.mean == pytest.approx(100 * run.metrics["test/top1"])
    assert row.low is not None  # the run's own predictions give an interval
    assert row.runs[0].cost.parameters
    tags = client(run).get_run(str(run.mlflow_run_id)).data.tags
    assert tags["starlab.test_looks"] == "2"
    listed = [file.path for file in client(run).list_artifacts(str(run.mlflow_run_id), "evaluations")]
    assert sorted(listed) == sorted(f"evaluations/{path.name}" for path in (run.folder / "artifacts" / "evaluations").iterdir())


def test_worse_joints_are_tested_once_each_and_drawn_in_the_report(run: RunResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worse_joints, "JITTER_SHARES", (1 / 8,))
    monkeypatch.setattr(worse_joints, "DROPS", (1.0,))
    folder, lines = RunFolder(run.folder), list[str]()
    looks = folder.looks_at_test()
    page = worse_joints.evaluate_worse_joints(run.run_id, runs=run.folder.parent, say=lines.append)
    assert "Accuracy over missing joints" in page.read_text()
    assert folder.looks_at_test() == looks + 2  # the run's own test is the one without noise
    assert next(line for line in lines if "joints moved by" in line).startswith(
        f"{run.run_id}, joints moved by 3 px, 0 % missing: test top-1 0."
    )
    worse_joints.evaluate_worse_joints(run.run_id, runs=run.folder.parent)
    assert folder.looks_at_test() == looks + 2
    with pytest.raises(UserError, match=r"sets the noise itself, so 'data\.joint_drop=1' cannot be given"):
        worse_joints.evaluate_worse_joints(run.run_id, runs=run.folder.parent, overrides=["data.joint_drop=1"])


def test_an_evaluation_on_other_data_or_with_another_model_is_refused_and_no_look(run: RunResult, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_penn_action(other, dataclasses.replace(SYNTHETIC, seed=SYNTHETIC.seed + 1), workers=1)
    looks = RunFolder(run.folder).looks_at_test()
    with pytest.raises((UserError, DataError), match=r"fingerprint|generated"):
        evaluate_run(run.run_id, runs=run.folder.parent, overrides=[f"data.store={other}"])
    with pytest.raises(SpecError, match=r"only data.store.* can be changed"):
        evaluate_run(run.run_id, runs=run.folder.parent, overrides=["model.layers=2"])
    with pytest.raises(UserError, match=r"holds no checkpoint of step 7; there are steps \d"):
        evaluate_run(run.run_id, runs=run.folder.parent, checkpoint="7")
    with pytest.raises(UserError, match="'newest'; it must be best, last or the step"):
        evaluate_run(run.run_id, runs=run.folder.parent, checkpoint="newest")
    assert RunFolder(run.folder).looks_at_test() == looks


def test_a_profile_is_a_trace_of_some_steps(run: RunResult) -> None:
    with gzip.open(run.folder / "artifacts" / "trace.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    names = {event.get("name", "") for event in events}
    assert any(re.search("convolution", name) for name in names)
    assert any("backward" in name.lower() for name in names)


@pytest.mark.slow_fault
def test_a_run_whose_server_is_never_there_ends_as_ever_and_is_sent_later(run: RunResult, store: Path, tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"  # nobody listens on the discard port
    alone = train(load_spec("demo", [*TINY, f"data.store={store}", f"tracking.uri={nowhere}"]), runs=tmp_path)
    assert alone.metrics == run.metrics
    assert alone.tracking_problem is not None
    assert alone.mlflow_run_id is None
    folder = RunFolder(alone.folder)
    uri = f"sqlite:///{tmp_path}/later.db"
    folder.write_json("run.json", folder.read_json("run.json") | {"tracking_uri": uri})
    points = [point for name in (FILE, SYSTEM_FILE) for point in read_points(alone.folder / name)]
    assert sync(folder) == len(points)
    assert sync(folder) == 0
    later, run_id = MlflowClient(uri), folder.read_json("mlflow.json")["run_id"]
    held = [(m.key, m.step, m.value) for key in {p.key for p in points} for m in later.get_metric_history(run_id, key)]
    assert sorted(held) == sorted((point.key, point.step, point.value) for point in points)
    assert later.get_run(run_id).info.status == "FINISHED"


def test_a_password_that_is_not_stored_is_asked_for(run: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(shutil.copytree(run.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints")))
    stored = "postgresql://me:***@db.example/mlflow"
    folder.write_json("run.json", folder.read_json("run.json") | {"tracking_uri": stored})
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        stored_uri(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://me:{PASSWORD}@db.example/mlflow")
    assert stored_uri(folder) == os.environ["MLFLOW_TRACKING_URI"]
    folder.write_json("run.json", folder.read_json("run.json") | {"tracking_uri": "https://me:***@mlflow.example"})
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    assert stored_uri(folder) == "https://mlflow.example"
