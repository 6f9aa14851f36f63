"""`starlab compare` as a user calls it: formats, files, the paper, runs of a tracking server, and mistakes."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from starlab.platform import cli
from starlab.platform.errors import UserError
from starlab.platform.reports.simulated import write_rows
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.records import RunInfo
from starlab.platform.tracking.downloads import download_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    write_rows(folder, {"zb": ([], 0.97), "ff": (["model.encoder=FF"], 0.85)}, clips=300)
    return folder


def starlab(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["starlab", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def compare(monkeypatch: pytest.MonkeyPatch, runs: Path, *arguments: str) -> int:
    return starlab(monkeypatch, "compare", *arguments, "--runs", str(runs))


def test_it_prints_a_table_with_verdicts_and_sentences(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(monkeypatch, runs, "demo") == 0
    said = capsys.readouterr().out
    assert "encoder=FF [2]" in said
    assert "better" in said
    assert "points above encoder=FF" in said
    assert "[1] runs zb-0, zb-1, zb-2; code 1a2b3c4d5e6f" in said


def test_the_ending_of_the_file_names_the_format(
    runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, begins in (("t.md", "**top1"), ("t.tex", "% needs"), ("t.csv", "row,"), ("t.json", "{")):
        assert compare(monkeypatch, runs, "demo", "--output", str(tmp_path / "tables" / name)) == 0
        assert (tmp_path / "tables" / name).read_text().startswith(begins)
        assert f"written  {tmp_path / 'tables' / name}" in capsys.readouterr().out
    assert compare(monkeypatch, runs, "demo", "--output", str(tmp_path / "t.dat"), "--format", "csv") == 0


def test_rows_are_fused_and_a_wrong_name_is_a_users_error(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(monkeypatch, runs, "demo", "--fuse", "encoder=FZ,encoder=FF") == 0
    assert "encoder=FZ + encoder=FF" in capsys.readouterr().out
    assert compare(monkeypatch, runs, "demo", "--fuse", "encoder=FZ,encoder=F") == 2
    assert "no row is called 'encoder=F'" in capsys.readouterr().err


def test_base_metric_and_rope_are_taken(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--base", "ff-1", "--metric", "mean_class", "--rope", "2", "--by", "model.encoder", "--format", "json"]
    assert compare(monkeypatch, runs, "demo", *options) == 0
    whole = json.loads(capsys.readouterr().out)
    assert (whole["base"], whole["metric"], whole["rope"]) == ("encoder=FF", "mean_class", 2)


def test_a_single_run_is_compared_with_the_paper_together_with_its_other_seeds(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(monkeypatch, runs, "zb-1", "--paper") == 0
    said = capsys.readouterr().out
    assert "over 3 seeds" in said
    assert "train.optimizer" in said
    assert "encoder=FF" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name at least one run"),
        (["demo", "--format", "pdf"], "--format pdf is not a format; choose one with --format: terminal"),
        (["demo", "--output", "table.doc"], "the ending of table.doc names no format"),
        (["demo", "--metric", "f1"], "there is no such metric"),
        (["demo", "--base", "none"], "no row has this name"),
        (["demo", "--by", "model.encodr"], "Close to it: model.encoder"),
        (["nothing"], "no run or experiment 'nothing'"),
        (["--mlflow", "tags.a = 'b'"], "name the tracking server with --uri"),
    ],
)
def test_a_mistake_ends_with_one_message_and_exit_code_2(
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert compare(monkeypatch, runs, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not Path("table.doc").exists()


def test_code_versions_are_warned_of_also_where_the_format_holds_no_notes(
    runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    folder = RunFolder(tmp_path / "runs" / "ff-0")
    folder.write_json(RunInfo.FILE, folder.read_json(RunInfo.FILE) | {"tags": {"starlab.code": "ffffffffffff"}})
    assert compare(monkeypatch, tmp_path / "runs", "demo", "--format", "csv") == 0
    assert "warning: 2 versions of the code" in capsys.readouterr().err


@pytest.fixture(scope="module")
def server(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow database with these runs, another one without a spec or a result, and one without predictions."""
    place = tmp_path_factory.mktemp("server")
    uri = f"sqlite:///{place}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment("elsewhere", artifact_location=(place / "artifacts").as_uri())
    for path in sorted(runs.iterdir()):
        folder = RunFolder(path)
        tags = {"starlab.run_id": path.name, "starlab.code": "1a2b3c4d5e6f", "team": "a"}
        run_id = client.create_run(experiment, run_name=path.name, tags=tags).info.run_id
        client.log_artifact(run_id, str(folder.artifacts / "predictions.parquet"))
        if path.name == "ff-2":
            for key, value in {"train.seed": "2", "train.lr": "1e-05", "model.encoder": "FF", "model.grid": "None"}.items():
                client.log_param(run_id, key, value)
        else:
            client.log_dict(run_id, folder.read_json("spec.json"), "spec.yaml")
            client.log_artifact(run_id, str(path / "result.json"))
        client.set_terminated(run_id)
    client.create_run(experiment, run_name="nothing to see", tags={"team": "a"})
    return uri


def test_runs_of_a_tracking_server_are_found_by_a_filter_and_compared_like_local_ones(
    runs: Path, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(monkeypatch, runs, "demo", "--format", "json") == 0
    local = json.loads(capsys.readouterr().out)
    by = ["--by", "model.encoder", "--format", "json"]
    assert compare(monkeypatch, runs, "--mlflow", "tags.team = 'a'", "--uri", server, *by) == 0
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert [sorted(run["run"] for run in row["runs"]) for row in found["rows"]] == [
        ["zb-0", "zb-1", "zb-2"],
        ["ff-0", "ff-1", "ff-2"],
    ]
    assert found["rows"][0]["difference"]["seeds"] == 2  # ff-2 has only three keys of its spec, so it has no partner
    assert found["rows"][0]["mean"] == pytest.approx(local["rows"][0]["mean"])
    assert "nothing to see" in output.err
    assert "it has no predictions.parquet" in output.err


def test_a_filter_that_finds_nothing_or_is_not_valid_is_an_error(
    runs: Path, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(monkeypatch, runs, "--mlflow", "tags.team = 'nobody'", "--uri", server) == 2
    assert "finds 0 runs" in capsys.readouterr().err
    assert compare(monkeypatch, runs, "--mlflow", "team is a", "--uri", server) == 2
    assert "Invalid clause" in capsys.readouterr().err


def test_a_spec_is_read_from_params_where_there_is_no_artifact_and_one_that_is_none_is_named(
    server: str, tmp_path: Path
) -> None:
    said: list[str] = []
    folders = download_runs("attributes.run_name = 'ff-2'", tmp_path, tmp_path / "a", uri=server, complain=said.append)
    spec = folders[0].read_json("spec.json")
    assert spec == {"train": {"seed": 2, "lr": 1e-5}, "model": {"encoder": "FF", "grid": None}}
    client = MlflowClient(server)
    [found] = client.search_runs([client.get_experiment_by_name("elsewhere").experiment_id], "attributes.run_name = 'ff-2'")
    client.log_text(found.info.run_id, "- not a spec", "spec.yaml")
    with pytest.raises(UserError, match="finds 1 runs, none of them"):
        download_runs("attributes.run_name = 'ff-2'", tmp_path, tmp_path / "b", uri=server, complain=said.append)
    assert [line for line in said if "its spec.yaml is not a mapping of sections" in line]
