"""Training end to end in small, in this process's Ray: exact order, exact resume, exact evaluation, honest records."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
import torch
from mlflow import MlflowClient

from starlab.experiments.spec import Spec, load_spec
from starlab.pipelines.clip import DataError
from starlab.platform.cluster.connect import Cluster
from starlab.platform.cluster.placement import place
from starlab.platform.errors import RunFailedError, UserError
from starlab.platform.preflight import open_data
from starlab.platform.runs.checkpoint import Checkpoint, newest_checkpoint
from starlab.platform.runs.end_request import request_early_end
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import read_points
from starlab.platform.runs.metric_names import SYSTEM
from starlab.platform.trainer import RunRequest, RunResult, run_training, train

TINY = [
    "data.frames=4",
    "data.size=24",
    "model.dim=16",
    "model.heads=2",
    "train.epochs=2",
    "train.log_every_steps=2",
    "train.checkpoint_every_steps=3",
]


def tiny(store: Path, *overrides: str) -> Spec:
    return load_spec("demo", [*TINY, f"data.store={store}", *overrides])


def weights(result: RunResult) -> Checkpoint:
    checkpoint, complaints = newest_checkpoint(result.folder / "checkpoints")
    assert checkpoint is not None
    assert complaints == []
    return checkpoint


def curve(folder: Path) -> list[tuple[str, int, float]]:
    return [(p.key, p.step, p.value) for p in read_points(folder / "journal.jsonl") if not p.key.startswith(SYSTEM)]


@pytest.fixture(scope="module")
def whole(local_ray: Cluster, tmp_path_factory: pytest.TempPathFactory, tiny_store: Path) -> RunResult:
    """A two-worker run that nobody disturbed."""
    return train(tiny(tiny_store), runs=tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default generator's settings in small, so that the spec's own data section describes the folder."""
    from starlab.pipelines.generated.penn_action import write_penn_action

    root = tmp_path_factory.mktemp("store") / "people"
    write_penn_action(root, SYNTHETIC, workers=1)
    return root


SYNTHETIC = load_spec("demo").data.synthetic
SYNTHETIC = dataclasses.replace(SYNTHETIC, train_clips_per_class=6, test_clips_per_class=3, size_px=48)
TINY += ["data.synthetic.train_clips_per_class=6", "data.synthetic.test_clips_per_class=3", "data.synthetic.size_px=48"]


def test_a_run_leaves_its_result_its_checkpoints_its_curve_and_its_figures(whole: RunResult) -> None:
    assert not whole.was_complete
    assert {"val/top1", "test/top1", "test/top5", "test/mean_class", "test/loss"} <= whole.metrics.keys()
    assert len(whole.per_class) == 10
    keys = {key for key, _, _ in curve(whole.folder)}
    assert {"train/loss", "train/top1", "train/lr", "val/top1", "epoch/train_loss", "test/top1", "epoch"} <= keys
    assert {path.name for path in (whole.folder / "artifacts").iterdir()} == {
        "spec.yaml",
        "result.json",
        "confusion.png",
        "curves.png",
        "model",
        "predictions.parquet",
        "validation.parquet",
    }
    result = json.loads((whole.folder / "result.json").read_text())
    assert sum(map(sum, result["confusion"])) == result["test_clips"] == 30
    assert not (whole.folder / "ray").exists()


def test_mlflow_holds_the_run_once_with_params_tags_every_point_and_the_artifacts(whole: RunResult) -> None:
    assert whole.tracking_problem is None
    assert whole.mlflow_run_id is not None
    client = MlflowClient(whole.tracking_uri)
    run = client.get_run(whole.mlflow_run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == "2.0"
    assert run.data.params["model.encoder"] == "FZ"
    for tag in ("git_commit", "git_dirty", "spec_hash", "data_fingerprint", "version.torch", "version.ray", "device", "code"):
        assert run.data.tags[f"starlab.{tag}"]
    for key in ("train/loss", "val/top1", "test/top1"):
        sent = [(m.step, m.value, m.timestamp) for m in client.get_metric_history(run.info.run_id, key)]
        written = [(p.step, p.value, p.time_ms) for p in read_points(whole.folder / "journal.jsonl") if p.key == key]
        assert sorted(sent) == sorted(written)
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {
        "spec.yaml",
        "result.json",
        "confusion.png",
        "curves.png",
        "predictions.parquet",
        "validation.parquet",
    }


def test_the_same_command_again_says_complete_and_neither_trains_nor_starts_ray(
    whole: RunResult, tiny_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("starlab.platform.preflight.connect", lambda: pytest.fail("Ray was asked for"))
    before = (whole.folder / "journal.jsonl").read_bytes()
    said: list[str] = []
    again = train(tiny(tiny_store), runs=whole.folder.parent, say=said.append)
    assert again.was_complete
    assert again.metrics == whole.metrics
    assert any("complete already" in line for line in said)
    assert (whole.folder / "journal.jsonl").read_bytes() == before


def test_fresh_sets_the_old_run_aside_and_the_same_seed_gives_the_same_numbers(whole: RunResult, tiny_store: Path) -> None:
    copy = shutil.copytree(whole.folder.parent, whole.folder.parent.with_name("fresh"))
    for file in copy.glob("*/run.json"):
        file.write_text(file.read_text().replace(str(whole.folder.parent), str(copy)))
    again = train(tiny(tiny_store), runs=copy, fresh=True)
    assert not again.was_complete
    assert again.metrics == whole.metrics
    assert again.mlflow_run_id != whole.mlflow_run_id
    assert curve(again.folder) == curve(whole.folder)
    assert len(list(copy.glob(f"{whole.run_id}.until-*"))) == 1
    mine, theirs = weights(again), weights(whole)
    assert all(torch.equal(mine.tensors[name], theirs.tensors[name]) for name in theirs.tensors)


def test_a_run_killed_in_mid_epoch_and_resumed_ends_bit_identical(whole: RunResult, tiny_store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "starlab.platform.cli", "train", "demo", *TINY, f"data.store={tiny_store}"]
    environment = os.environ | {"STARLAB_RUNS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    folder = tmp_path / whole.run_id
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and not list(folder.glob("checkpoints/*/manifest.json")):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "result.json").exists(), "the run was over before it could be killed"
    resumed = train(tiny(tiny_store), runs=tmp_path)
    assert resumed.run_id == whole.run_id
    mine, theirs = weights(resumed), weights(whole)
    assert all(torch.equal(mine.tensors[name], theirs.tensors[name]) for name in theirs.tensors)
    assert resumed.metrics == whole.metrics
    assert sorted(curve(resumed.folder)) == sorted(curve(whole.folder))


@pytest.mark.longer
def test_one_worker_trains_on_the_same_clips_as_two(whole: RunResult, tiny_store: Path, tmp_path: Path) -> None:
    alone = train(tiny(tiny_store, "resources.workers=1"), runs=tmp_path)
    assert alone.run_id == whole.run_id
    steps = [(key, step) for key, step, _ in curve(alone.folder)]
    assert sorted(steps) == sorted((key, step) for key, step, _ in curve(whole.folder))


def test_a_trial_that_is_asked_to_end_keeps_its_best_look_closes_itself_and_gives_its_cpus_back(
    local_ray: Cluster, tiny_store: Path, tmp_path: Path
) -> None:
    spec = tiny(tiny_store, "train.epochs=50", "resources.workers=1")
    source, parts = open_data(spec, tmp_path, lambda _: None)
    folder = RunFolder(tmp_path / spec.run_id(source.fingerprint))
    request_early_end(folder, "a test asks")
    request = RunRequest(spec=spec, source=source, parts=parts, runs=tmp_path, cluster=local_ray, is_trial=True)
    result = run_training(request)
    stored = folder.read_json("result.json")
    assert folder.ended_early
    assert 0 < stored["steps"] < stored["total_steps"]
    assert "test" not in stored
    assert result.metrics["val/top1"] == max(value for key, _, value in curve(folder.path) if key == "val/top1")
    run = MlflowClient(result.tracking_uri).get_run(str(result.mlflow_run_id))
    assert (run.info.status, run.data.tags["starlab.ended_early"]) == ("FINISHED", "true")
    deadline = time.monotonic() + 60  # Ray counts what is free every now and then
    while ray.available_resources().get("CPU") != local_ray.cpus and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == local_ray.cpus
    assert run_training(request).was_complete


def test_unreadable_clips_are_replaced_counted_and_listed_and_the_run_goes_on(
    local_ray: Cluster, tiny_store: Path, tmp_path: Path
) -> None:
    store = shutil.copytree(tiny_store, tmp_path / "store")
    for frame in (store / "frames" / "0002").glob("*.jpg"):
        frame.write_bytes(frame.read_bytes()[:99])
    (store / "labels" / "0005.mat").write_bytes(b"this is no .mat file")
    said: list[str] = []
    spec = tiny(store, "train.epochs=1", "data.max_unreadable_fraction=0.5", "resources.max_failures=0")
    source, parts = open_data(spec, tmp_path / "runs", said.append)
    held_out = source.clips[parts.validation[0]].clip_id
    for frame in (store / "frames" / held_out).glob("*.jpg"):
        frame.write_bytes(b"no jpeg")
    result = train(spec, runs=tmp_path / "runs", say=said.append)
    assert any("skipped  1 clips" in line for line in said)
    assert "0005" in json.loads((result.folder / "skipped.json").read_text())
    unreadable = json.loads((result.folder / "result.json").read_text())["unreadable"]
    assert set(unreadable) == {"0002", held_out}
    assert {value for key, _, value in curve(result.folder) if key == "val/clips"} == {len(parts.validation) - 1}
    assert "000001.jpg" in unreadable["0002"] or ".jpg" in unreadable["0002"]


@pytest.mark.longer
def test_too_many_unreadable_clips_stop_the_run_with_their_list(local_ray: Cluster, tiny_store: Path, tmp_path: Path) -> None:
    store = shutil.copytree(tiny_store, tmp_path / "store")
    for clip in range(1, 31):
        for frame in (store / "frames" / f"{clip:04d}").glob("*.jpg"):
            frame.write_bytes(b"no jpeg")
    with pytest.raises(RunFailedError, match=r"clips drawn could not be read.*00\d\d: .*unreadable.json"):
        train(tiny(store, "train.epochs=1"), runs=tmp_path / "runs")


def test_a_data_folder_that_is_not_there_is_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    spec = load_spec("demo", ["data.dataset=penn_action", f"data.store={tmp_path / 'nowhere'}"])
    with pytest.raises(DataError, match="nowhere"):
        train(spec, runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_run_that_the_machine_cannot_hold_is_refused_with_the_numbers() -> None:
    machine = Cluster(local=True, nodes=1, cpus=2, gpus=0, accelerators=())
    with pytest.raises(UserError, match=r"leave 0 of 2 CPUs for decoding"):
        place(load_spec("demo", ["resources.cpus_per_worker=1"]), machine)
    with pytest.raises(UserError, match=r"wants 2 GPUs and this machine has 0"):
        place(load_spec("demo", ["resources.gpus_per_worker=1"]), machine)


@pytest.mark.usefixtures("local_ray")
def test_a_gpu_that_torch_was_not_built_for_is_refused_before_workers_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100-SXM2-16GB")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    machine = Cluster(local=True, nodes=1, cpus=8, gpus=1, accelerators=("V100",))
    with pytest.raises(UserError, match=r"V100.* is sm_70, and torch .* was built for sm_75 sm_80; .*CUDA 12.6"):
        place(load_spec("demo", ["resources.gpus_per_worker=1", "resources.workers=1"]), machine)


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(("cpus", "workers", "share"), [(2, 1, 1), (2, 2, 1), (2, 1, 0.5), (16, 4, 1), (4, 1, 0.25)])
def test_workers_that_decode_by_themselves_take_the_machine_but_for_a_crumb(cpus: int, workers: int, share: float) -> None:
    spec = load_spec("demo", [f"resources.workers={workers}", "data.decode=worker"])
    machine = Cluster(local=True, nodes=1, cpus=cpus, gpus=0, accelerators=())
    placement = place(spec, machine, share)
    assert 0.9 * cpus * share <= workers * placement.cpus_per_worker + 0.05 * workers <= cpus * share + 1e-9
    assert placement.limits.threads == max(1, round(placement.cpus_per_worker))
    shared = place(spec, dataclasses.replace(machine, local=False, cpus=64), share)
    assert (shared.cpus_per_worker, shared.limits.threads) == (1, 1)
    named = [f"resources.workers={workers}", "data.decode=worker", "resources.cpus_per_worker=3"]
    assert place(load_spec("demo", named), dataclasses.replace(machine, cpus=64)).limits.threads == 3
    with pytest.raises(UserError, match=rf"{workers} workers of 65 CPUs do not fit into {cpus} CPUs"):
        place(load_spec("demo", [*named[:2], "resources.cpus_per_worker=65"]), machine)


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(("cpus", "workers", "share"), [(2, 1, 1), (2, 2, 1), (2, 1, 0.5), (64, 4, 1), (8, 8, 1), (4, 1, 0.25)])
def test_workers_and_both_windows_of_every_stream_fit_the_share_of_the_cluster(cpus: int, workers: int, share: float) -> None:
    spec = load_spec("demo", [f"resources.workers={workers}"])
    placement = place(spec, Cluster(local=True, nodes=1, cpus=cpus, gpus=0, accelerators=()), share)
    taken = workers * (placement.cpus_per_worker + 2 * placement.limits.cpus)
    assert taken <= cpus * share + 1e-9
    assert 0 < placement.limits.cpus_per_task <= placement.limits.cpus
