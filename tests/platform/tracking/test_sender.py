import threading
from pathlib import Path

import pytest
from mlflow import MlflowClient

from starlab.experiments.sections import TrackingConfig
from starlab.experiments.spec import flatten
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import Journal
from starlab.platform.tracking import sender as sending
from starlab.platform.tracking.sender import ParentUnknownError, Sender, is_sent, sync, sync_all


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "demo-12345678")
    folder.write_json("spec.json", {"name": "demo", "train": {"lr": 0.1}, "model": {f"k{i}": i for i in range(120)}})
    folder.write_json(
        "run.json",
        {
            "key": "abc",
            "run_id": "demo-12345678",
            "experiment": "demo",
            "mlflow_experiment": "demo",
            "tracking_uri": TrackingConfig().address(tmp_path),
            "runs": str(tmp_path),
            "tags": {"starlab.git_commit": "c0ffee"},
            "parent": None,
            "status": "RUNNING",
        },
    )
    return folder


def history(folder: RunFolder, key: str) -> list[tuple[int, float, int]]:
    client = MlflowClient(folder.read_json("run.json")["tracking_uri"])
    return sorted(
        (m.step, m.value, m.timestamp) for m in client.get_metric_history(folder.read_json("mlflow.json")["run_id"], key)
    )


def test_only_new_points_are_sent_and_none_twice(folder: RunFolder) -> None:
    journal = Journal(folder.path / "journal.jsonl")
    journal.log(1, {"train/loss": 0.5})
    assert sync(folder) == 1
    assert sync(folder) == 0
    journal.log(2, {"train/loss": 0.4})
    assert sync(folder) == 1
    assert [(step, value) for step, value, _ in history(folder, "train/loss")] == [(1, 0.5), (2, 0.4)]


def test_the_first_send_waits_for_the_first_point_and_not_longer_than_it_may(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = threading.Event()
    monkeypatch.setattr(sending, "sync", lambda *_: sent.set() or 0)
    with Sender(folder, every_seconds=0.01, patience_seconds=600):
        assert not sent.wait(0.5)
        Journal(folder.path / "journal.jsonl").log(1, {"train/loss": 0.5})
        assert sent.wait(60)
    sent.clear()
    (folder.path / "journal.jsonl").unlink()
    with Sender(folder, every_seconds=0.01, patience_seconds=0.05):
        assert sent.wait(60)


def test_what_a_run_has_that_ends_without_a_point_is_sent(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = threading.Event()
    monkeypatch.setattr(sending, "sync", lambda *_: sent.set() or 0)
    with Sender(folder, every_seconds=0.01, patience_seconds=600):
        pass
    assert sent.is_set()


def test_a_sender_killed_before_it_records_its_progress_sends_again_and_mlflow_holds_each_point_once(
    folder: RunFolder,
) -> None:
    journal = Journal(folder.path / "journal.jsonl")
    for step in range(5):
        journal.log(step, {"train/loss": step / 7})
    before = folder.read_json("mlflow.json")
    sync(folder)
    folder.write_json("mlflow.json", folder.read_json("mlflow.json") | {"offsets": {}})
    assert sync(folder) == 5
    assert len(history(folder, "train/loss")) == 5
    (folder.path / "mlflow.json").unlink()  # the run id is lost too, and the run is found by its key
    assert sync(folder) == 5
    assert len(history(folder, "train/loss")) == 5
    client = MlflowClient(folder.read_json("run.json")["tracking_uri"])
    assert len(client.search_runs([e.experiment_id for e in client.search_experiments()])) == 1
    assert before == {}


def test_a_long_journal_is_sent_in_batches_that_mlflow_accepts(folder: RunFolder) -> None:
    journal = Journal(folder.path / "journal.jsonl")
    for step in range(1100):
        journal.log(step, {"a": 1.0 * step, "b": 2.0})
    assert sync(folder) == 2200
    assert len(history(folder, "a")) == 1100


def test_params_tags_artifacts_and_the_final_status_are_sent(folder: RunFolder) -> None:
    folder.artifacts.mkdir()
    (folder.artifacts / "result.json").write_text("{}")
    sync(folder)
    client = MlflowClient(folder.read_json("run.json")["tracking_uri"])
    run_id = folder.read_json("mlflow.json")["run_id"]
    assert client.get_run(run_id).info.status == "RUNNING"
    folder.write_json("run.json", folder.read_json("run.json") | {"status": "FINISHED"})
    sync(folder)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.lr"] == "0.1"
    assert len(run.data.params) == 122
    assert run.data.tags["starlab.git_commit"] == "c0ffee"
    assert [file.path for file in client.list_artifacts(run_id)] == ["result.json"]


def test_a_resumed_run_shows_as_running_again(folder: RunFolder) -> None:
    client = MlflowClient(folder.read_json("run.json")["tracking_uri"])
    for status in ("FAILED", "RUNNING", "FINISHED"):
        folder.write_json("run.json", folder.read_json("run.json") | {"status": status})
        sync(folder)
        assert client.get_run(folder.read_json("mlflow.json")["run_id"]).info.status == status


def test_a_child_waits_for_its_parent_and_is_nested_under_it(folder: RunFolder, tmp_path: Path) -> None:
    child = RunFolder(tmp_path / "child")
    child.write_json("spec.json", {"name": "child"})
    child.write_json("run.json", folder.read_json("run.json") | {"key": "def", "run_id": "child", "parent": str(folder.path)})
    Journal(child.path / "journal.jsonl").log(1, {"a": 1.0})
    with pytest.raises(ParentUnknownError, match="child is a trial of a search"):
        sync(child)
    sync(folder)
    assert sync(child) == 1
    client = MlflowClient(child.read_json("run.json")["tracking_uri"])
    tags = client.get_run(child.read_json("mlflow.json")["run_id"]).data.tags
    assert tags["mlflow.parentRunId"] == folder.read_json("mlflow.json")["run_id"]


def test_a_dead_server_does_not_disturb_the_run_and_the_rest_can_be_sent_later(folder: RunFolder, tmp_path: Path) -> None:
    run = folder.read_json("run.json")
    folder.write_json("run.json", run | {"tracking_uri": "http://127.0.0.1:9"})  # nothing listens on the discard port
    journal = Journal(folder.path / "journal.jsonl")
    with Sender(folder, every_seconds=0.05) as sender:
        journal.log(1, {"a": 1.0})
    assert sender.problem is not None
    assert "127.0.0.1" in sender.problem
    folder.write_json("run.json", run)
    assert sync(folder) == 1


def test_a_nested_mapping_becomes_dotted_keys() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [1]}}, "e": None}) == {"a.b": 1, "a.c.d": [1], "e": None}


def test_syncing_a_search_sends_its_trials_too(folder: RunFolder) -> None:
    trial = RunFolder(folder.path / "trials" / "t-1")
    trial.write_json("spec.json", {"name": "t"})
    run = folder.read_json("run.json") | {"key": "def", "run_id": "t-1", "parent": str(folder.path), "status": "FINISHED"}
    trial.write_json("run.json", run)
    Journal(trial.path / "journal.jsonl").log(1, {"a": 1.0})
    said: list[str] = []
    assert not is_sent(trial)
    sync_all([folder, trial], said.append)
    assert [line.split(":")[0] for line in said] == [folder.path.name, "t-1"]
    assert "1 points sent" in said[1]
    assert is_sent(trial)
    assert len(history(trial, "a")) == 1


def test_many_runs_that_send_to_one_server_slow_down_with_it(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    now, takes = [0.0], [0.01]

    def send(*_: object) -> int:
        now[0] += takes[0]
        return 1

    monkeypatch.setattr(sending, "sync", send)
    monkeypatch.setattr(sending.time, "monotonic", lambda: now[0])
    sender = Sender(folder, every_seconds=2.0)
    assert sender._send_in_turn() == 2.0
    takes[0] = 1.5
    assert sender._send_in_turn() == pytest.approx(15.0)
    takes[0] = 9.0
    assert sender._send_in_turn() == 60.0  # never longer than a minute
    takes[0] = 0.01
    assert sender._send_in_turn() == 2.0
