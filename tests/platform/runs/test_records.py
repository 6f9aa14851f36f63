"""Tests the records of a run: other versions can be read, damage is reported, changes are made under a lock."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from starlab.platform import cli
from starlab.platform.errors import StarlabError
from starlab.platform.runs import lifecycle, records
from starlab.platform.runs.folder import RunFolder, find_runs
from starlab.platform.runs.lifecycle import close_abandoned, close_run
from starlab.platform.runs.process import this_process
from starlab.platform.runs.records import DamagedRecordError, MlflowState, Result, RunInfo, plain
from starlab.platform.runs.search_records import SearchSummary, Trial

RESULT = Result(
    steps=9, total_steps=9, best_step=6, selected_by="validation", classes=("a", "b"), val={"top1": 0.5, "loss": float("nan")}
)


def info(name: str, runs: Path, **other: object) -> RunInfo:
    known = RunInfo(
        run_id=name,
        key=name,
        experiment="demo",
        mlflow_experiment="demo",
        tracking_uri=f"sqlite:///{runs}/mlflow.db",
        runs=str(runs),
        status="RUNNING",
        tags={"a": "b"},
        created=name,
        driver=this_process(),
    )
    return replace(known, **other)  # type: ignore[arg-type]


def new_run(runs: Path, name: str) -> RunFolder:
    folder = RunFolder(runs / name)
    folder.write(info(name, runs))
    folder.write_json("spec.json", {"name": "demo"})
    return folder


@pytest.mark.parametrize(
    "record",
    [
        info("demo-1", Path("/runs"), parent="/runs/search", checkpoints="s3://bucket/x"),
        replace(
            RESULT, val={"top1": 0.5}, test={"top1": 0.25}, test_clips=4, confusion=[[1, 1], [2, 0]], unreadable={"7": "torn"}
        ),
        MlflowState(uri="http://x", run_id="0" * 32, offsets={"journal.jsonl": 7}, model_version="3"),
        SearchSummary(
            trials=(Trial(run="r", values={"train.lr": 0.1, "model.encoder": None}, val_top1=0.5, epochs=2, whole=True),),
            best="r",
            test_top1=0.5,
        ),
    ],
    ids=lambda record: type(record).__name__,
)
def test_a_record_that_was_written_is_read_back_equal(tmp_path: Path, record: records.Record) -> None:
    folder = RunFolder(tmp_path)
    folder.write(record)
    assert folder.read(type(record)) == record


def test_a_missing_record_is_none_or_an_error_that_names_its_file_if_it_is_required(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).read(Result) is None
    with pytest.raises(DamagedRecordError, match=r"run.json is missing"):
        RunFolder(tmp_path).info  # noqa: B018


def test_a_result_without_a_test_evaluation_has_no_keys_for_it(tmp_path: Path) -> None:
    assert {"test", "test_clips", "confusion"}.isdisjoint(plain(RESULT))


def test_keys_of_a_newer_version_are_ignored_when_a_record_is_read_and_kept_when_it_is_changed(tmp_path: Path) -> None:
    folder = new_run(tmp_path, "demo-1")
    folder.write_json("run.json", folder.read_json("run.json") | {"from_the_future": [1]})
    assert folder.info == info("demo-1", tmp_path)
    close_run(folder, "FINISHED", {"c": "d"})
    assert folder.read_json("run.json")["from_the_future"] == [1]
    assert (folder.info.status, folder.info.tags) == ("FINISHED", {"a": "b", "c": "d"})


def test_a_record_of_an_older_version_without_newer_keys_can_be_read(tmp_path: Path) -> None:
    folder = new_run(tmp_path, "demo-1")
    old = folder.read_json("run.json")
    for key in ("parent", "checkpoints", "driver", "created"):
        del old[key]
    folder.write_json("run.json", old)
    assert folder.info.driver is None
    assert close_abandoned(tmp_path) == []


DAMAGE = {
    "empty": (b"", "run.json is damaged: it is empty"),
    "truncated": (b'{"run_id": "x", "key"', "run.json is damaged: it is not whole JSON"),
    "a list": (b"[]", "run.json is damaged"),
    "another type": (b'{"tags": 7}', "run.json is damaged"),
    "binary": (b"\0\0\0\0", "run.json is damaged"),
    "not UTF-8": (b'{"run_id": "\xff\xfe"}', "run.json is damaged"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_error_for_a_damaged_record_names_its_file_and_other_runs_still_work(tmp_path: Path, kind: str) -> None:
    text, says = DAMAGE[kind]
    good, bad = new_run(tmp_path, "demo-good"), new_run(tmp_path, "demo-bad")
    (bad.path / "run.json").write_bytes(text)
    with pytest.raises(DamagedRecordError, match=says):
        find_runs(tmp_path, "demo-bad", print)
    complaints: list[str] = []
    assert find_runs(tmp_path, "demo", complaints.append) == [good]
    [complaint] = complaints
    assert str(bad.path / "run.json") in complaint
    assert close_abandoned(tmp_path) == []
    compared = CliRunner().invoke(cli.app, ["compare", "demo", "--runs", str(tmp_path)])
    assert compared.exit_code == 0, compared.output
    assert "demo-good" in compared.output


@pytest.mark.parametrize("name", ["result.json", "run.json"])
def test_compare_reports_a_run_with_a_damaged_record_and_shows_the_others(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    new_run(tmp_path, "demo-good")
    bad = new_run(tmp_path, "demo-bad")
    (bad.path / name).write_text("{")
    compared = CliRunner().invoke(cli.app, ["compare", "demo", "--runs", str(tmp_path)])
    assert compared.exit_code == 0, compared.output
    assert "demo-good" in compared.output
    assert str(bad.path / name) in compared.output + compared.stderr


def _add_tags(folder: Path, process: int) -> None:
    for number in range(25):
        tag = {f"{process}.{number}": "x"}
        RunFolder(folder).update(RunInfo, lambda run, tag=tag: replace(run, tags={**run.tags, **tag}))  # type: ignore[misc]


def test_no_change_is_lost_when_several_processes_change_a_record(tmp_path: Path) -> None:
    folder = new_run(tmp_path, "demo-1")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_add_tags, args=(folder.path, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(folder.info.tags) == 1 + 3 * 25


def test_an_evaluation_that_adds_a_tag_while_the_run_ends_does_not_restore_the_old_status(tmp_path: Path) -> None:
    folder = new_run(tmp_path, "demo-1")

    def slow(run: RunInfo) -> RunInfo:
        assert run.status == "FINISHED"  # the record is read inside the lock, not before
        return replace(run, tags={**run.tags, "starlab.test_looks": "2"})

    close_run(folder, "FINISHED")
    folder.update(RunInfo, slow)
    assert folder.info.status == "FINISHED"


def test_no_draft_is_left_behind_when_a_record_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = new_run(tmp_path, "demo-1")
    before = sorted(path.name for path in folder.path.iterdir())

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        folder.write(RESULT)
    assert sorted(path.name for path in folder.path.iterdir()) == before
    assert json.loads((folder.path / "run.json").read_text())["status"] == "RUNNING"


def test_a_run_that_is_taken_up_or_ends_while_others_look_for_abandoned_ones_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = replace(this_process(), started=1)
    for name in ("taken-up", "ended"):
        folder = new_run(tmp_path, name)
        folder.write(info(name, tmp_path, driver=dead))
    read = lifecycle.read_infos

    def read_then_change(folders: object) -> object:
        found = read(folders)  # type: ignore[arg-type]
        RunFolder(tmp_path / "taken-up").write(info("taken-up", tmp_path))
        RunFolder(tmp_path / "ended").write(info("ended", tmp_path, driver=dead, status="FINISHED"))
        return found

    monkeypatch.setattr(lifecycle, "read_infos", read_then_change)
    assert close_abandoned(tmp_path) == []
    assert RunFolder(tmp_path / "taken-up").info == info("taken-up", tmp_path)
    assert RunFolder(tmp_path / "ended").info.status == "FINISHED"


def test_a_run_that_another_process_took_over_is_not_closed_by_the_old_one(tmp_path: Path) -> None:
    folder = new_run(tmp_path, "demo-1")
    folder.write(info("demo-1", tmp_path, driver=replace(this_process(), pid=1)))
    close_run(folder, "FINISHED")
    assert folder.info.status == "RUNNING"


def test_syncing_names_the_runs_that_it_cannot_read_sends_the_others_and_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new_run(tmp_path, "demo-good")
    bad = new_run(tmp_path, "demo-bad")
    (bad.path / "run.json").write_text("{")
    done = CliRunner().invoke(cli.app, ["sync", "demo", "--runs", str(tmp_path)])
    assert "demo-good: 0 points sent" in done.output
    assert isinstance(done.exception, StarlabError)
    assert done.exception.exit_code == 1
    assert str(bad.path / "run.json") in str(done.exception)
