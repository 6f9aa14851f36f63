"""What is shown of a search: its trials in `compare`, a table and a figure."""

import csv
from pathlib import Path

from starlab.experiments.space import Distribution
from starlab.experiments.spec import load_spec
from starlab.platform.reports.figures import search_figure, write_search_artifacts
from starlab.platform.reports.tables import comparison
from starlab.platform.runs.folder import SPEC, RunFolder
from starlab.platform.runs.records import Result, RunInfo
from starlab.platform.runs.search_records import SearchSummary, Trial


def a_run(path: Path, overrides: list[str], top1: float, *, steps: int = 8, test: float | None = None) -> RunFolder:
    folder = RunFolder(path)
    folder.write_json(SPEC, load_spec("demo", overrides).to_dict())
    info = RunInfo(
        run_id=path.name,
        key=path.name,
        experiment="demo",
        mlflow_experiment="demo",
        tracking_uri="sqlite:///x",
        runs=str(path.parent),
        status="FINISHED",
        tags={},
    )
    folder.write(info)
    measured = None if test is None else {"top1": test, "mean_class": test}
    result = Result(
        steps=steps,
        total_steps=8,
        best_step=steps,
        selected_by="validation",
        classes=("a", "b"),
        val={"top1": top1},
        test=measured,
    )
    folder.write(result)
    return folder


def a_search(runs: Path, looks: int = 1) -> RunFolder:
    folder = a_run(runs / "s-1", [], 0.0)
    (folder.path / Result.FILE).unlink()
    a_run(folder.path / "trials" / "t-low", ["model.layers=2"], 0.25, steps=4)
    a_run(folder.path / "trials" / "t-high", ["train.lr=0.5"], 0.75, test=0.5)
    if looks > 1:
        a_run(folder.path / "trials" / "t-old", ["train.lr=0.25"], 0.5, test=0.5)
    trials = (Trial(run="t-high", values={"train.lr": 0.5}, val_top1=0.75, epochs=2, whole=True),)
    folder.write(SearchSummary(trials=trials, best="t-high", test_top1=0.5))
    return folder


def test_a_search_is_compared_as_itself_and_its_trials_best_first(tmp_path: Path) -> None:
    heads, rows = comparison([a_search(tmp_path)])
    table = [dict(zip(heads, row, strict=True)) for row in rows]
    assert [row["run"] for row in table] == ["s-1", "t-high", "t-low"]
    assert table[0] | {"val top1": "75.0 %", "test top1": "50.0 %"} == table[0]
    assert table[0]["selected by"] == "validation, best of 2 trials"
    assert [row["val top1"] for row in table[1:]] == ["75.0 %", "25.0 %"]
    assert [row["test top1"] for row in table[1:]] == ["50.0 %", ""]
    assert table[2]["selected by"] == "validation, ended early"
    assert [head for head in heads if "." in head] == ["model.layers", "train.lr"]
    assert table[1]["train.lr"] == "0.5"
    assert "" not in heads


def test_looks_at_the_test_part_are_counted_over_the_whole_search(tmp_path: Path) -> None:
    _, rows = comparison([a_search(tmp_path, looks=2)])
    assert rows[0][-1] == "validation, best of 3 trials, 2 looks at test"
    assert rows[1][-1] == "validation"


def test_a_search_that_has_not_ended_and_a_damaged_trial_are_shown_as_far_as_they_go(tmp_path: Path) -> None:
    folder = a_search(tmp_path)
    (folder.path / SearchSummary.FILE).unlink()
    (folder.path / "trials" / "t-low" / Result.FILE).write_text("{")
    said: list[str] = []
    _, rows = comparison([folder], said.append)
    assert [row[0] for row in rows] == ["s-1", "t-high"]
    assert [line for line in said if "t-low" in line]


SPACE = {
    "train.ema": Distribution("choice", (None, 0.9)),
    "data.crop_area": Distribution("choice", ([0.5, 1.0], [0.7, 1.0])),
    "train.clip_norm": Distribution("choice", (None, 1, 2.5)),
    "train.lr": Distribution("log", (1e-4, 1e-2)),
    "model.layers": Distribution("int", (1, 2)),
}
TRIALS = [
    Trial(
        run="a",
        values={"train.ema": None, "data.crop_area": [0.5, 1.0], "train.clip_norm": 2.5, "train.lr": 0.001, "model.layers": 1},
        val_top1=0.5,
        epochs=2,
        whole=True,
    ),
    Trial(
        run="b",
        values={"train.ema": 0.9, "data.crop_area": [0.7, 1.0], "train.clip_norm": None, "train.lr": 0.01, "model.layers": 2},
        val_top1=0.25,
        epochs=1,
        whole=False,
    ),
]


def test_null_list_and_mixed_choices_are_drawn(tmp_path: Path) -> None:
    write_search_artifacts(RunFolder(tmp_path), TRIALS, SPACE)
    assert (tmp_path / "artifacts" / "trials.png").stat().st_size > 1000
    with (tmp_path / "artifacts" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["data.crop_area"] for row in rows] == ["[0.5, 1.0]", "[0.7, 1.0]"]


def test_axes_follow_the_distribution_and_not_the_name_of_the_key() -> None:
    axes = {axes.get_xlabel(): axes for axes in search_figure(TRIALS, SPACE).axes}
    assert axes["train.lr"].get_xscale() == "log"
    assert axes["model.layers"].get_xscale() == "linear"
    assert [label.get_text() for label in axes["train.ema"].get_xticklabels()] == ["None", "0.9"]
