"""An ablation in small: nested in MLflow, cells of others used, other code refused, more seeds only the rest."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from starlab.experiments.ablation import AblationSpec, load_ablation
from starlab.experiments.spec import SpecError
from starlab.platform import cli
from starlab.platform.ablation_summary import ablation_lines, forecast_lines
from starlab.platform.cluster.connect import Cluster
from starlab.platform.errors import UserError
from starlab.platform.evaluation import one_run
from starlab.platform.preflight import open_data
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import FILE, read_points
from starlab.platform.runs.records import InitialWeights, Result
from starlab.platform.runs.search_records import AblationRecord
from starlab.platform.search import ablate as ablating
from starlab.platform.search.ablate import AblationResult, ablate
from starlab.platform.search.cell_runs import Ended
from starlab.platform.trainer import RunRequest, run_training, train

SMALL = [
    "data.train_fraction=1.0",
    "data.synthetic.train_clips_per_class=4",
    "data.synthetic.test_clips_per_class=2",
    "data.synthetic.size_px=48",
    "data.frames=4",
    "data.size=24",
    "model.dim=16",
    "model.heads=2",
    "train.epochs=2",
    "train.evaluate_every_epochs=1",
]
pytestmark = pytest.mark.timeout(600)


def spec_of(seeds: int, *overrides: str) -> AblationSpec:
    return load_ablation("demo_temporal", [*SMALL, f"seeds={seeds}", *overrides])


def rows_of(lines: list[str]) -> list[list[str]]:
    """The words of each line of a table that starts with a row and the number of its footnote."""
    return [line.split() for line in lines if re.match(r"\s*(none|sincos) \[\d\]", line)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def trained(local_ray: Cluster, runs: Path) -> Path:
    """A run by `train` that is the same experiment as the row "sincos" at seed 0, under another name."""
    spec = spec_of(1)
    return train(replace(spec.spec_of(spec.rows[1], 0), name="mine"), runs=runs).folder


@pytest.fixture(scope="module")
def trial(trained: Path, local_ray: Cluster, runs: Path) -> Path:
    """A whole trial of a search that is the row "none" at seed 0; it has not looked at the test part."""
    spec = spec_of(1)
    cell = replace(spec.spec_of(spec.rows[0], 0), name="my_search")
    source, parts = open_data(cell, runs, lambda _: None)
    parent = RunFolder(runs / "my_search-00000000")
    request = RunRequest(
        spec=cell, source=source, parts=parts, runs=runs, cluster=local_ray, share=0.5, parent=parent, is_trial=True
    )
    return run_training(request).folder


@pytest.fixture(scope="module")
def ablated(trained: Path, trial: Path, runs: Path) -> tuple[AblationResult, list[str]]:
    said: list[str] = []
    return ablate(spec_of(2), runs=runs, say=said.append), said


def test_a_run_by_train_and_a_trial_of_a_search_are_cells_and_are_not_trained_again(
    ablated: tuple[AblationResult, list[str]], trained: Path, trial: Path, runs: Path
) -> None:
    result, said = ablated
    assert (result.failed, result.trained, result.looks_at_test) == ({}, 3, 1)
    places = {(cell.row, cell.seed): runs / cell.folder for cell in result.record.cells}
    assert places["sincos", 0] == trained
    assert places["none", 0] == trial
    assert {places["none", 1].parent, places["sincos", 1].parent} == {result.folder / "trials"}
    steps = [point.step for point in read_points(trial / FILE) if point.key == "train/loss"]
    assert len(steps) == len(set(steps))
    assert RunFolder(trial).looks_at_test() == RunFolder(trained).looks_at_test() == 1
    assert any(
        "1 cells are trials of a search; this is their first look at the test part: none, seed 0" in line for line in said
    )
    for folder in places.values():
        assert (folder / "artifacts" / "predictions.parquet").is_file()


def test_its_own_cells_are_nested_in_mlflow_under_their_row_and_seed(ablated: tuple[AblationResult, list[str]]) -> None:
    result, _ = ablated
    client = MlflowClient(result.tracking_uri)
    experiment = client.get_experiment_by_name("demo_temporal")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    children = {run.info.run_name: run.data.tags for run in found if "mlflow.parentRunId" in run.data.tags}
    assert set(children) == {"none, seed 1", "sincos, seed 1"}
    assert {tags["mlflow.parentRunId"] for tags in children.values()} == {result.mlflow_run_id}
    assert (children["none, seed 1"]["starlab.row"], children["none, seed 1"]["starlab.seed"]) == ("none", "1")
    assert {run.info.status for run in found} == {"FINISHED"}


def test_the_record_names_every_cell_and_the_table_has_a_line_per_row(ablated: tuple[AblationResult, list[str]]) -> None:
    result, _ = ablated
    assert RunFolder(result.folder).require(AblationRecord) == result.record
    assert [(cell.row, cell.seed) for cell in result.record.cells] == [("none", 0), ("sincos", 0), ("none", 1), ("sincos", 1)]
    lines = ablation_lines(result)
    assert lines[0] == f"claim: {result.record.claim}"
    values, costs = rows_of(lines)[:2], rows_of(lines)[2:]
    assert sorted(line[0] for line in values) == sorted(line[0] for line in costs) == ["none", "sincos"]
    assert [line[3] for line in values] == ["2", "2"]  # seeds, behind the key that the rows vary
    assert [line for line in lines if line.startswith("sincos")]  # its verdict in a sentence
    assert f"compare    starlab compare {result.folder.name}" in lines
    tests = [RunFolder(result.runs / cell.folder).require(Result).test for cell in result.record.cells if cell.row == "none"]
    mean = 50 * sum(test["top1"] for test in tests if test)
    assert f"{mean:.2f}" in next(line for line in values if line[0] == "none")
    assert not [line for line in lines if "no result yet" in line]


def test_the_same_ablation_again_trains_nothing_and_more_seeds_only_the_rest(ablated: tuple[AblationResult, list[str]]) -> None:
    result, _ = ablated
    again = ablate(spec_of(2), runs=result.runs)
    assert (again.folder, again.trained, again.looks_at_test) == (result.folder, 0, 0)
    assert again.record == result.record
    more = ablate(spec_of(3), rows=["sincos"], runs=result.runs)
    assert (more.folder, more.trained) == (result.folder, 1)
    assert len(more.record.cells) == 6
    lines = ablation_lines(more)
    assert "1 of 6 cells have no result yet" in lines
    assert {line[0]: line[3] for line in rows_of(lines)[:2]} == {"none": "2", "sincos": "3"}


def test_cells_of_another_code_are_refused_used_or_trained_again(
    ablated: tuple[AblationResult, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = ablated
    monkeypatch.setattr(ablating, "code_hash", lambda _: "another")
    ran: list[list[str]] = []
    monkeypatch.setattr(
        ablating, "run_cells", lambda cells, *_: ran.append([cell.folder.path.name for cell in cells]) or Ended()
    )
    with pytest.raises(
        UserError, match=r"4 of 4 cells were trained by another version(.|\n)*--accept-code(.|\n)*--fresh"
    ) as refused:
        ablate(spec_of(2), runs=result.runs)
    assert str(result.runs / result.record.cells[0].folder) in str(refused.value)
    assert ran == []
    assert ablate(spec_of(2), runs=result.runs, accept_code=True).record == result.record
    assert ran == []
    with pytest.raises(UserError, match="give one"):
        ablate(spec_of(2), runs=result.runs, accept_code=True, fresh=True)
    said: list[str] = []
    [cell] = [cell for cell in result.record.cells if (cell.row, cell.seed) == ("none", 1)]
    fresh = ablate(spec_of(2), rows=["none"], runs=result.runs, fresh=True, say=said.append)
    assert len(ran[0]) == 2
    kept = list((result.folder / "trials").glob(f"{cell.run}.until-*"))
    assert len(kept) == 1
    kept[0].joinpath("run.json")
    assert len([line for line in said if line.startswith("fresh")]) == 2
    assert [one.folder for one in fresh.record.cells if one.row == "sincos"] == [
        one.folder for one in result.record.cells if one.row == "sincos"
    ]


def test_a_run_that_train_makes_elsewhere_after_the_plan_becomes_the_cell(
    ablated: tuple[AblationResult, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, spec = ablated[0].runs, spec_of(4)
    run_cells = ablating.run_cells
    mine: list[Path] = []

    def train_first(*planned: Any) -> Ended:
        cell = replace(spec.spec_of(spec.rows[1], 3), name="meanwhile")
        mine.append(train(cell, runs=runs).folder)
        return run_cells(*planned)

    monkeypatch.setattr(ablating, "run_cells", train_first)
    result = ablate(spec, rows=["sincos"], runs=runs)
    [cell] = [cell for cell in result.record.cells if (cell.row, cell.seed) == ("sincos", 3)]
    assert runs / cell.folder == mine[0]
    assert not list((result.folder / "trials" / cell.run).glob("journal*"))
    assert RunFolder(mine[0]).looks_at_test() == 1


def test_an_ablation_is_not_evaluated_as_a_run(ablated: tuple[AblationResult, list[str]]) -> None:
    result, _ = ablated
    with pytest.raises(UserError, match=f"{result.folder.name} is an ablation of .* cells; name one of them, e.g. "):
        one_run(result.runs, result.folder.name, lambda _: None)


def test_a_metric_that_no_run_has_and_a_row_that_is_none_are_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="metric is 'top2', which no run has; there are: top1"):
        ablate(spec_of(1, "metric=top2"), runs=tmp_path)
    with pytest.raises(SpecError, match="no row 'learned'"):
        ablate(spec_of(1), rows=["learned"], runs=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_names_the_cells_and_their_cost_and_makes_nothing(tmp_path: Path) -> None:
    lines = forecast_lines(spec_of(2), runs=tmp_path)
    assert any("4, none of which exists" in line for line in lines)
    assert any(line.startswith("cost ") for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_tells_the_cells_that_exist(ablated: tuple[AblationResult, list[str]]) -> None:
    lines = forecast_lines(spec_of(5), ["sincos"], ablated[0].runs)
    assert any(line.startswith("cells ") and "exists" in line and "would be trained" in line for line in lines)


def test_the_command_ends_with_1_where_a_cell_failed_and_says_which(
    ablated: tuple[AblationResult, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = replace(ablated[0], failed={"demo_temporal-12345678": "worker 0: out of memory"})
    monkeypatch.setattr(ablating, "ablate", lambda *_, **__: failed)
    done = CliRunner().invoke(cli.app, ["ablate", "demo_temporal", "--rows", "none, sincos"])
    assert done.exit_code == 1
    assert "demo_temporal-12345678: worker 0: out of memory" in done.output
    assert "the same command tries the failed ones again" in done.output


def test_what_is_stored_of_an_ablation_is_its_file(ablated: tuple[AblationResult, list[str]]) -> None:
    stored = json.loads((ablated[0].folder / "spec.json").read_text())
    assert [row["name"] for row in stored["rows"]] == ["none", "sincos"]


def test_a_row_may_start_from_a_run_whose_weights_are_then_part_of_the_cell(trained: Path, runs: Path) -> None:
    spec = spec_of(1)
    started = replace(spec.rows[1], name="started", set={**spec.rows[1].set, "train.init_from": trained.name})
    spec = replace(spec, rows=(spec.rows[1], started), reference="sincos")
    first = ablate(spec, rows=["started"], runs=runs)
    assert (first.failed, first.trained) == ({}, 1)
    [cell] = [runs / cell.folder for cell in first.record.cells if cell.row == "started"]
    weights = RunFolder(cell).require(InitialWeights)
    assert weights.origin == trained.name
    stored = {row["name"]: row["set"] for row in json.loads((first.folder / "spec.json").read_text())["rows"]}
    assert stored["started"]["train.init_digest"] == weights.digest
    assert ablate(spec, rows=["started"], runs=runs).trained == 0
