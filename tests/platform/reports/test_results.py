"""Run folders as typed rows: keys of later versions, runs without a result, and searches, ablations and runs side by side."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starlab.experiments.spec import load_spec
from starlab.platform.reports.results import read_results, results_table
from starlab.platform.reports.simulated import write_run
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.records import Result, RunInfo
from starlab.platform.runs.search_records import AblationRecord, SearchSummary

DEMO = load_spec("demo").to_dict()
RIGHT = np.arange(40) % 4 > 0


def test_a_key_that_the_runs_version_did_not_have_has_its_default(tmp_path: Path) -> None:
    old: dict[str, Any] = json.loads(json.dumps(DEMO))
    del old["train"]["select_by"], old["data"]["train_fraction"], old["model"]["init"]
    del old["data"]["synthetic_bystanders"], old["data"]["synthetic"]["max_frames"]
    [run] = read_results([write_run(tmp_path / "old", RIGHT, old)], costs=False).runs
    assert (run.spec["train.select_by"], run.spec["data.train_fraction"]) == ("top1", 1.0)
    assert run.spec == read_results([write_run(tmp_path / "new", RIGHT, DEMO)], costs=False).runs[0].spec


def test_a_run_that_has_not_finished_is_a_row_without_values(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", RIGHT, DEMO)
    (folder.path / Result.FILE).unlink()
    folder.write_json(RunInfo.FILE, folder.read_json(RunInfo.FILE) | {"status": "RUNNING"})
    [run] = read_results([folder]).runs
    assert (run.status, run.test, run.val, run.selected_by) == ("RUNNING", {}, {}, "")
    assert results_table(read_results([folder])).column("status").to_pylist() == ["RUNNING"]


@pytest.mark.parametrize("file", [RunInfo.FILE, Result.FILE, "spec.json", SearchSummary.FILE, AblationRecord.FILE])
def test_a_damaged_record_is_named_and_the_other_runs_are_read(tmp_path: Path, file: str) -> None:
    damaged, whole = write_run(tmp_path / "damaged", RIGHT, DEMO), write_run(tmp_path / "whole", RIGHT, DEMO)
    (damaged.path / file).write_text('{"half": ')
    said: list[str] = []
    assert [run.run for run in read_results([damaged, whole], said.append).runs] == ["whole"]
    assert len(said) == 1
    assert said[0].startswith("skipped  ")
    assert str(damaged.path / file) in said[0]


def test_a_search_without_trials_yet_is_a_row_of_its_own_and_no_search(tmp_path: Path) -> None:
    results = read_results([write_run(tmp_path / "s", RIGHT, DEMO)])
    assert results.searches == ()
    assert [run.kind for run in results.runs] == ["run"]


def test_looks_at_test_and_unreadable_clips_are_counted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", RIGHT, DEMO)
    folder.write_json(Result.FILE, folder.read_json(Result.FILE) | {"unreadable": {"0099": "damaged"}})
    for number in range(2):
        again = folder.artifacts / "evaluations" / f"test-{number}"
        again.mkdir(parents=True)
        (again / "metrics.json").write_text("{}")
    [run] = read_results([RunFolder(folder.path)]).runs
    assert (run.looks, run.test_clips, run.unreadable) == (3, 40, 1)
