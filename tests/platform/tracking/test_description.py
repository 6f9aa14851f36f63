"""What MLflow shows of a run without set-up, in a real SQLite store: name, command, source, datasets, model and order."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Run
from mlflow.server.security_utils import INVALID_HOST_MSG

from starlab.experiments.sections import TrackingConfig
from starlab.experiments.spec import load_search, load_spec
from starlab.platform.errors import StarlabError
from starlab.platform.runs.folder import MODEL, RunFolder
from starlab.platform.runs.journal import SYSTEM_FILE, Journal
from starlab.platform.runs.records import Result
from starlab.platform.runs.search_records import AblationRecord, AblationRow, Cell
from starlab.platform.tracking.description import command, run_name
from starlab.platform.tracking.sender import Sender, sync

FINGERPRINT = "d4c17d0e12754a2a"
RESULT = Result(
    steps=20, total_steps=20, best_step=10, selected_by="validation", classes=("a", "b"), val={"top1": 0.5}, test={"top1": 0.25}
)


def make_run(runs: Path, run_id: str, spec: dict[str, Any], status: str = "RUNNING", parent: Path | None = None) -> RunFolder:
    folder = RunFolder((parent / "trials" if parent else runs) / run_id)
    folder.write_json("spec.json", spec)
    folder.write_json(
        "run.json",
        {
            "key": f"key-of-{run_id}",
            "run_id": run_id,
            "experiment": spec["name"],
            "mlflow_experiment": spec["name"],
            "tracking_uri": TrackingConfig().address(runs),
            "runs": str(runs),
            "tags": {
                "starlab.git_commit": "c0ffee",
                "starlab.git_dirty": "true",
                "starlab.data_fingerprint": FINGERPRINT,
                "starlab.device": "4 x Tesla V100",
            },
            "parent": str(parent) if parent else None,
            "status": status,
        },
    )
    return folder


def finish(folder: RunFolder) -> None:
    journal = Journal(folder.path / "journal.jsonl")
    for step, best in ((10, 0.5), (20, 0.5)):
        journal.log(step, {"train/loss": 1.0 / step, "train/top1": 0.3, "best/val_top1": best, "val/top1": 10 / step / 2})
    journal.log(20, {"test/top1": 0.25})
    journal.close()
    folder.write(RESULT)
    (folder.artifacts / MODEL).mkdir(parents=True)
    (folder.artifacts / MODEL / "MLmodel").write_text("flavors: {}\n")
    folder.write_json("run.json", folder.read_json("run.json") | {"status": "FINISHED"})


def client(folder: RunFolder) -> MlflowClient:
    uri = folder.info.tracking_uri
    return MlflowClient(uri, registry_uri=uri)


def tracked(folder: RunFolder) -> Run:
    return client(folder).get_run(folder.read_json("mlflow.json")["run_id"])


@pytest.fixture
def refusing_server() -> Iterator[str]:
    """A server that answers as MLflow's does when a request names a host that it does not accept."""

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(403)
            self.send_header("Content-Length", str(len(INVALID_HOST_MSG)))
            self.end_headers()
            self.wfile.write(INVALID_HOST_MSG.encode())

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_run_is_named_by_what_differs_from_the_packaged_experiment(tmp_path: Path) -> None:
    names = {}
    for overrides in (
        [],
        ["model.encoder=FF", "train.epochs=3"],
        ["resources.workers=1"],
        ["data.frames=8", "train.lr=0.001234"],
    ):
        folder = make_run(tmp_path, f"demo-{len(names)}", load_spec("demo", overrides).to_dict())
        names[tuple(overrides)] = run_name(folder)
    assert list(names.values()) == ["demo", "demo encoder=FF epochs=3", "demo", "demo lr=0.00123 frames=8"]


def test_a_trial_is_named_by_its_point_and_a_cell_of_an_ablation_by_its_row_and_seed(tmp_path: Path) -> None:
    spec = load_search("demo_search")
    search = make_run(tmp_path, "demo_search-1", spec.to_dict())
    point = {"model.layers": 2, "model.encoder": "FZ", "model.decoder": "FB", "train.lr": 0.00123456}
    trial = make_run(tmp_path, "t-1", spec.spec_of(point).to_dict(), parent=search.path)
    assert run_name(search) == "demo_search"
    assert run_name(trial) == "decoder=FB encoder=FZ layers=2 lr=0.00123"
    ablation = make_run(tmp_path, "attention-1", load_spec("demo").to_dict())
    ablation.write(
        AblationRecord(
            claim="",
            metric="top1",
            reference="FZ",
            rows=(AblationRow(name="FF, no bodies", changes={}),),
            seeds=(7,),
            cells=(Cell(row="FF, no bodies", seed=7, run="c-1", folder="attention-1/trials/c-1"),),
        )
    )
    assert run_name(make_run(tmp_path, "c-1", load_spec("demo").to_dict(), parent=ablation.path)) == "FF, no bodies, seed 7"


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.encoder=FF", "train.epochs=3"],
        ["data.store=/data/a folder; with 'signs'", "data.oversample={swing_red_ball: 3}"],
        ["data.crop_area=[0.5, 1.0]", "train.clip_norm=null"],
    ],
)
def test_the_command_in_the_description_makes_the_same_spec_again(tmp_path: Path, overrides: list[str]) -> None:
    spec = load_spec("demo", overrides)
    words = shlex.split(command(make_run(tmp_path, "demo-1", spec.to_dict())))
    assert words[:3] == ["starlab", "train", "demo"]
    assert load_spec(words[2], words[3:]) == spec


def test_the_command_of_a_search_makes_the_same_search_again(tmp_path: Path) -> None:
    spec = load_search("demo_search", ["search.trials=4", "space.train.weight_decay={log: [0.01, 0.1]}"])
    words = shlex.split(command(make_run(tmp_path, "demo_search-1", spec.to_dict())))
    assert words[:3] == ["starlab", "search", "demo_search"]
    assert load_search(words[2], words[3:]) == spec


def test_the_command_of_an_experiment_of_the_users_own_names_its_stored_spec(tmp_path: Path) -> None:
    spec = load_spec("demo").to_dict() | {"name": "mine"}
    folder = make_run(tmp_path / "my runs", "mine-1", spec)
    assert shlex.split(command(folder)) == ["starlab", "train", str(folder.artifacts / "spec.yaml")]
    assert run_name(folder) == "mine-1"


def test_mlflow_has_source_commit_description_and_device_of_a_run_while_it_trains(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "demo-1", load_spec("demo", ["model.encoder=FF"]).to_dict())
    sync(folder)
    run = tracked(folder)
    assert run.info.run_name == "demo encoder=FF"
    tags = run.data.tags
    assert (tags["mlflow.source.name"], tags["mlflow.source.type"]) == ("starlab train demo", "LOCAL")
    assert (tags["mlflow.source.git.commit"], tags["mlflow.source.git.dirty"]) == ("c0ffee", "true")
    assert tags["mlflow.note.content"].startswith("    starlab train demo model.encoder=FF\n")
    assert "demo-1" in tags["mlflow.note.content"]
    folder.write_json("run.json", folder.read_json("run.json") | {"tags": folder.info.tags | {"starlab.device": "8 x H100"}})
    sync(folder)  # rank 0 names the device that trains after the run was created
    assert tracked(folder).data.tags["starlab.device"] == "8 x H100"


def test_every_part_of_the_data_is_an_input_with_its_own_digest_that_follows_the_split(tmp_path: Path) -> None:
    digests = []
    for number, overrides in enumerate(([], ["data.split_seed=5"], ["train.epochs=9"])):
        folder = make_run(tmp_path, f"demo-{number}", load_spec("demo", overrides).to_dict())
        sync(folder)
        sync(folder)
        inputs = tracked(folder).inputs.dataset_inputs
        found = {tag.value: i.dataset.digest for i in inputs for tag in i.tags if tag.key == "mlflow.data.context"}
        assert {i.dataset.name for i in inputs} == {"synthetic_penn_action"}
        assert FINGERPRINT in inputs[0].dataset.source
        assert sorted(found) == ["test", "train", "validation"]
        assert len(set(found.values())) == 3
        digests.append(found)
    assert digests[0] == digests[2]
    assert digests[0]["test"] == digests[1]["test"]
    assert digests[0]["validation"] != digests[1]["validation"]


def test_a_finished_run_has_one_logged_model_with_its_metrics_and_a_version_whatever_is_repeated(
    tmp_path: Path,
) -> None:
    folder = make_run(tmp_path, "demo-1", load_spec("demo").to_dict())
    finish(folder)
    sync(folder)
    (folder.path / "mlflow.json").unlink()  # everything is sent again
    sync(folder)
    run = tracked(folder)
    [model] = client(folder).search_logged_models([run.info.experiment_id])
    assert (model.name, model.source_run_id, model.status) == (MODEL, run.info.run_id, LoggedModelStatus.READY)
    assert model.params["encoder"] == "FZ"
    metrics = {metric.key: (metric.step, metric.value, metric.dataset_name) for metric in model.metrics}
    assert metrics == {
        "val/top1": (10, 0.5, "synthetic_penn_action"),  # of the best step, not of the last
        "test/top1": (20, 0.25, "synthetic_penn_action"),
    }
    assert {output.model_id for output in run.outputs.model_outputs} == {model.model_id}
    [version] = client(folder).search_model_versions("name = 'demo'")
    assert version.tags["starlab.test_top1"] == "0.25"
    assert len(client(folder).get_metric_history(run.info.run_id, "val/top1")) == 2  # the model's metric is no third point
    mlflow.set_tracking_uri(folder.info.tracking_uri)
    mlflow.set_registry_uri(folder.info.tracking_uri)
    try:
        for uri in (f"runs:/{run.info.run_id}/{MODEL}", f"models:/{model.model_id}", "models:/demo/1"):
            assert (Path(mlflow.artifacts.download_artifacts(uri)) / "MLmodel").read_text() == "flavors: {}\n"
    finally:  # other tests of this process have their own server
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)


def test_accuracy_is_the_first_metric_and_the_machines_metrics_wait_for_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "demo-1", load_spec("demo").to_dict())
    Journal(folder.path / SYSTEM_FILE).log(0, {"system/cpu_utilization_percentage": 99.0})
    sync(folder)
    assert tracked(folder).data.metrics == {}
    finish(folder)
    sync(folder)
    keys = list(tracked(folder).data.metrics)
    assert keys[0] == "best/val_top1" == min(keys)  # first by arrival and by the alphabet
    assert keys[-1] == "system/cpu_utilization_percentage"


def test_an_experiment_is_tagged_as_one_of_model_training_also_where_it_exists_already(tmp_path: Path) -> None:
    for number, name in enumerate(("demo", "demo_search")):
        spec = load_spec("demo").to_dict() | {"name": name}
        folder = make_run(tmp_path, f"r-{number}", spec)
        if number:
            client(folder).create_experiment(name)
        sync(folder)
        found = client(folder).get_experiment_by_name(name)
        assert found is not None
        assert found.tags["mlflow.experimentKind"] == "custom_model_development"
        assert found.tags["mlflow.experiment.primaryMetric.name"] == "best/val_top1"


@pytest.mark.parametrize("before", [True, False])
def test_a_deleted_experiment_is_named_with_the_commands_that_restore_it(tmp_path: Path, before: bool) -> None:
    folder = make_run(tmp_path, "demo-1", load_spec("demo").to_dict())
    mlflow_client = client(folder)
    if before:
        mlflow_client.create_experiment("demo")
    else:
        sync(folder)
    found = mlflow_client.get_experiment_by_name("demo")
    assert found is not None
    mlflow_client.delete_experiment(found.experiment_id)
    Journal(folder.path / "journal.jsonl").log(1, {"train/loss": 1.0})
    with pytest.raises(StarlabError, match="experiment 'demo' was deleted in MLflow") as refused:
        sync(folder)
    assert f"mlflow experiments restore --experiment-id {found.experiment_id}" in str(refused.value)
    assert f"mlflow gc --backend-store-uri {folder.info.tracking_uri}" in str(refused.value)
    mlflow_client.restore_experiment(found.experiment_id)
    assert sync(folder) == 1


def test_a_server_that_refuses_the_host_is_named_with_the_option_that_allows_it(tmp_path: Path, refusing_server: str) -> None:
    folder = make_run(tmp_path, "demo-1", load_spec("demo").to_dict())
    folder.write_json("run.json", folder.read_json("run.json") | {"tracking_uri": refusing_server})
    sender = Sender(folder)
    sender.send_now()
    assert sender.problem is not None
    assert "answers 403" in sender.problem
    assert "mlflow server --allowed-hosts" in sender.problem
    assert "\n" not in sender.problem
