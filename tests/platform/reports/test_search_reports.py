"""What is shown of a search: a table and a figure of its trials."""

import csv
from dataclasses import replace
from pathlib import Path

from starlab.experiments.space import Distribution
from starlab.platform.reports.figures import search_figure, write_search_artifacts
from starlab.platform.reports.search_charts import Judge, parallel_chart, slice_chart, trials_table
from starlab.platform.reports.search_trials import first_objective
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.search_records import Trial

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


LOSSES = [replace(trial, objectives={"val/loss": loss, "flops": 3e9}) for trial, loss in zip(TRIALS, (0.2, 1.7), strict=True)]


def test_trials_are_drawn_and_listed_by_the_searchs_own_objective(tmp_path: Path) -> None:
    judge = Judge("val/loss")
    charts = [parallel_chart(LOSSES, SPACE, judge), slice_chart(LOSSES, "train.lr", SPACE["train.lr"], judge)]
    for chart, says in zip(charts, ("a: 0.2", "a: 0.001, 0.2"), strict=True):
        assert "validation loss" in chart.body
        assert f"<title>{says}</title>" in chart.body
        assert "top-1" not in chart.body + chart.description
    table = trials_table(LOSSES, ["train.lr"], judge)
    assert table.heads == ("trial", "train.lr", "validation loss", "flops", "epochs", "reached")
    assert search_figure(LOSSES, SPACE, "val/loss").axes[0].get_ylabel() == "val/loss"
    write_search_artifacts(RunFolder(tmp_path), LOSSES, SPACE, "val/loss")
    with (tmp_path / "artifacts" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["val_top1"], row["val/loss"], row["flops"]) for row in rows] == [
        ("0.5", "0.2", "3000000000.0"),
        ("0.25", "1.7", "3000000000.0"),
    ]


def test_a_search_under_way_is_judged_by_its_spec_and_an_unmeasured_objective_gives_way_to_top1() -> None:
    assert first_objective({"search": {"objectives": ["val/loss", "flops"]}}) == "val/loss"
    assert first_objective({"search": {"objectives": None}, "train": {"select_by": "mean_class"}}) == "val/mean_class"
    assert first_objective({"search": {"objectives": ["flops"]}}) == "val/top1"
    assert Judge().words(TRIALS[0]) == "50.0 %"
