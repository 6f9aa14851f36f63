"""Where the run of a cell is found: by its identity, whoever made it, and which of several is taken."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from starlab.experiments.ablation import AblationSpec, load_ablation
from starlab.experiments.spec import Spec
from starlab.pipelines.clip import ClipSource
from starlab.pipelines.splits import Parts
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.records import Result, RunInfo, Status
from starlab.platform.search.ablate import AblationPlan, ablation_id, plan_cells
from starlab.platform.search.cells import OpenData, PlannedCell, codes_of, state_of

CODE = "c0de00000000"


@pytest.fixture(autouse=True)
def code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("starlab.platform.search.ablate.code_hash", lambda _: CODE)


@pytest.fixture
def spec() -> AblationSpec:
    return load_ablation("demo_temporal", ["seeds=1"])


def data_of(spec: AblationSpec) -> dict[str, OpenData]:
    source = cast(ClipSource, SimpleNamespace(fingerprint="f"))
    return {row.name: OpenData(source, cast(Parts, None)) for row in spec.rows}


def plan(spec: AblationSpec, runs: Path, said: list[str] | None = None) -> AblationPlan:
    return plan_cells(spec, data_of(spec), runs, (said if said is not None else []).append)


def cell(spec: AblationSpec, runs: Path, row: str = "sincos") -> PlannedCell:
    return next(cell for cell in plan(spec, runs).cells if cell.row == row)


def make_run(
    path: Path,
    *,
    state: str = "finished",
    codes: tuple[str, ...] = (CODE,),
    experiment: str = "demo",
    status: Status = "FINISHED",
) -> RunFolder:
    folder = RunFolder(path)
    folder.write(
        RunInfo(
            run_id=path.name,
            key="k",
            experiment=experiment,
            mlflow_experiment=experiment,
            tracking_uri="sqlite:///x",
            runs=str(path.parent),
            status=status,
            tags={"starlab.code": codes[0]},
        )
    )
    lines = [json.dumps({"time": "t", "tags": {"starlab.code": code}}) for code in codes]
    (path / "provenance.jsonl").write_text("\n".join(lines) + "\n")
    if state != "started":
        test: dict[str, Any] | None = {"top1": 0.5} if state in ("finished", "without predictions") else None
        steps = 5 if state == "ended early" else 10
        folder.write(
            Result(
                steps=steps, total_steps=10, best_step=5, selected_by="validation", classes=("a",), val={"top1": 1.0}, test=test
            )
        )
    if state == "finished":
        folder.artifacts.mkdir()
        (folder.artifacts / "predictions.parquet").touch()
    return folder


def run_id(spec: AblationSpec, name: str, row: str = "sincos") -> str:
    wanted: Spec = spec.spec_of(next(one for one in spec.rows if one.name == row), 0)
    return f"{name}-{wanted.run_id('f')[-8:]}"


def test_a_cell_that_nobody_made_is_planned_in_the_ablations_own_folder(tmp_path: Path, spec: AblationSpec) -> None:
    planned = plan(spec, tmp_path)
    assert [cell.state for cell in planned.cells] == ["new", "new"]
    assert planned.folder.path == tmp_path / ablation_id(spec, data_of(spec))
    for one in planned.cells:
        assert one.folder.path == planned.folder.path / "trials" / one.spec.run_id("f")
        assert one.parent == planned.folder
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "place", ["demo", "demo_search-00000000/trials/demo_search", "demo_table4-11111111/trials/demo_table4"]
)
def test_a_cell_is_found_whatever_made_it_and_under_any_name(tmp_path: Path, spec: AblationSpec, place: str) -> None:
    path = tmp_path / run_id(spec, place)
    make_run(path, experiment="other")
    found = cell(spec, tmp_path)
    assert (found.folder.path, found.state, found.codes) == (path, "finished", {CODE})
    assert found.spec.run_id("f") == path.name
    assert found.spec.tracking.experiment == "other"
    assert (None if found.parent is None else found.parent.path) == (path.parent.parent if "/" in place else None)
    assert cell(spec, tmp_path, "none").state == "new"


@pytest.mark.parametrize(
    ("made", "state"),
    [("finished", "finished"), ("untested", "untested"), ("ended early", "started"), ("started", "started")],
)
def test_the_state_of_a_run_says_what_is_left_to_do(tmp_path: Path, spec: AblationSpec, made: str, state: str) -> None:
    folder = make_run(tmp_path / run_id(spec, "demo"), state=made)
    assert state_of(folder) == state
    assert cell(spec, tmp_path).state == state


def test_a_run_whose_driver_died_after_the_test_is_not_finished(tmp_path: Path, spec: AblationSpec) -> None:
    assert state_of(make_run(tmp_path / run_id(spec, "demo"), status="KILLED")) == "started"


def test_a_run_whose_predictions_are_lost_is_passed_over_and_named(tmp_path: Path, spec: AblationSpec) -> None:
    make_run(tmp_path / run_id(spec, "demo"), state="without predictions")
    said: list[str] = []
    assert {cell.state for cell in plan(spec, tmp_path, said).cells} == {"new"}
    assert "predictions.parquet is missing" in said[0]


def test_a_damaged_run_is_passed_over_and_named(tmp_path: Path, spec: AblationSpec) -> None:
    folder = make_run(tmp_path / run_id(spec, "demo"))
    (folder.path / "result.json").write_text("{")
    said: list[str] = []
    assert {cell.state for cell in plan(spec, tmp_path, said).cells} == {"new"}
    assert "result.json is damaged" in said[0]


def test_a_run_that_was_set_aside_is_not_a_cell(tmp_path: Path, spec: AblationSpec) -> None:
    make_run(tmp_path / run_id(spec, "demo")).set_aside()
    make_run(tmp_path / "demo_search-00000000.until-20260101-000000-000000" / "trials" / run_id(spec, "demo"))
    assert cell(spec, tmp_path).state == "new"


def test_other_data_is_another_cell(tmp_path: Path, spec: AblationSpec) -> None:
    wanted = spec.spec_of(spec.rows[1], 0)
    make_run(tmp_path / wanted.run_id("other data"))
    assert cell(spec, tmp_path).state == "new"


def test_of_several_runs_the_furthest_of_this_code_is_taken(tmp_path: Path, spec: AblationSpec) -> None:
    make_run(tmp_path / run_id(spec, "a"), codes=("older",))
    assert cell(spec, tmp_path).folder.path.name == run_id(spec, "a")
    make_run(tmp_path / run_id(spec, "b"), state="started")
    assert cell(spec, tmp_path).folder.path.name == run_id(spec, "b")
    make_run(tmp_path / run_id(spec, "c"), state="untested")
    assert cell(spec, tmp_path).folder.path.name == run_id(spec, "c")
    make_run(tmp_path / run_id(spec, "d"))
    assert cell(spec, tmp_path).folder.path.name == run_id(spec, "d")


def test_every_code_that_trained_a_run_counts(tmp_path: Path, spec: AblationSpec) -> None:
    folder = make_run(tmp_path / run_id(spec, "demo"), codes=("older", CODE))
    assert codes_of(folder) == {"older", CODE}
    planned = plan(spec, tmp_path)
    assert [one.row for one in planned.of_other_code] == ["sincos"]


def test_an_empty_folder_that_another_ablation_chose_is_chosen_too(tmp_path: Path, spec: AblationSpec) -> None:
    path = tmp_path / "demo_table4-22222222" / "trials" / run_id(spec, "demo_table4")
    path.mkdir(parents=True)
    assert cell(spec, tmp_path).folder.path == path
    make_run(tmp_path / run_id(spec, "demo"), codes=("older",))
    assert cell(spec, tmp_path).state == "finished"


def test_more_seeds_are_the_same_ablation_and_other_rows_or_another_base_are_not(spec: AblationSpec) -> None:
    def identity(*overrides: str) -> str:
        other = load_ablation("demo_temporal", overrides)
        return ablation_id(other, data_of(other))

    assert identity() == identity("seeds=7") == identity("resources.workers=2") == identity("claim=else")
    assert len({identity(), identity("train.epochs=2"), identity("rows=[{name: none}]", "reference=none")}) == 3
