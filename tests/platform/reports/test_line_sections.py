"""Accuracy over one key: which runs share a line, and what is said about the depth at which over-fitting begins."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from starlab.platform.reports.line_sections import (
    JointNoise,
    layers_section,
    metrics_by_noise,
    overfitting_sentence,
    train_share_section,
    worse_joints_sections,
)
from starlab.platform.reports.report_runs import ReportRun
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.records import EvaluationRecord, Result


def run(row: str, top1: float, seed: int = 0, **settings: Any) -> ReportRun:
    base = {"model.encoder": "FZ", "model.decoder": "FB", "model.layers": 1, "data.train_fraction": 1.0, "train.seed": seed}
    keys = {key.replace("__", "."): value for key, value in settings.items()}
    result = Result(
        steps=1, total_steps=1, best_step=1, selected_by="last", classes=("a", "b"), val={}, test={"top1": top1}, test_clips=10
    )
    return ReportRun(RunFolder(Path("nowhere") / row), row, seed, base | keys, result)


def rows_of(chart_table: Any) -> list[list[str]]:
    return [[str(getattr(cell, "text", cell)) for cell in row] for row in chart_table.rows]


def test_a_line_over_the_share_of_train_joins_runs_that_differ_in_nothing_else() -> None:
    runs = [
        run(f"plain, {percent} %", accuracy, seed, data__train_fraction=percent / 100, train__epochs=400 / percent)
        for seed in range(2)
        for percent, accuracy in ((10, 0.4), (25, 0.6), (100, 0.9))
    ]
    runs.append(run("10 %, mixup", 0.5, data__train_fraction=0.1, train__mixup=0.4, train__epochs=40))
    section = train_share_section(runs, "top1")
    assert section.lead == "plain: top-1 40.0 % with 10 % of train and 90.0 % with 100 %."
    (chart,) = section.charts
    assert chart.table.heads == ("training clips used, %", "plain", "10 %, mixup")
    assert rows_of(chart.table) == [["10", "40.0 %", "50.0 %"], ["25", "60.0 %", ""], ["100", "90.0 %", ""]]


def test_runs_with_another_setting_are_not_averaged_into_the_line_over_layers() -> None:
    runs = [run(f"{depth} layers", 0.5 + depth / 10, model__layers=depth) for depth in (1, 2, 3)]
    runs.append(run("mixup", 0.1, model__layers=2, train__mixup=0.4))
    (chart,) = layers_section(runs, "top1").charts
    assert chart.table.heads == ("layers", "FZ / FB")
    assert [row[1] for row in rows_of(chart.table)] == ["60.0 %", "70.0 %", "80.0 %"]


def test_two_lines_of_one_pairing_are_named_after_their_rows() -> None:
    runs = [
        run(f"{depth} layers{extra}", 0.5, model__layers=depth, train__mixup=mixup)
        for depth in (1, 2)
        for extra, mixup in (("", 0.0), (" and mixup", 0.4))
    ]
    (chart,) = layers_section(runs, "top1").charts
    assert chart.table.heads == ("layers", "1 layers", "1 layers and mixup")


@pytest.mark.parametrize("section", [layers_section, train_share_section])
def test_without_two_values_of_the_key_there_is_no_chart_but_a_reason(section: Any) -> None:
    found = section([run("one", 0.5), run("two", 0.6, train__mixup=0.4)], "top1")
    assert found.is_empty
    assert found.absent.startswith("no two rows differ in the ")


def add_test(run: ReportRun, folder: Path, top1: float, noise: tuple[float, float] | None, step: int = 1) -> None:
    """Add a test of a run as `starlab evaluate` stores it."""
    look = 2 + len(list(folder.glob("artifacts/evaluations/*")))
    record = EvaluationRecord(
        part="test",
        step=step,
        look_at_test=look,
        time="",
        clips=10,
        unreadable={},
        metrics={"top1": top1},
        per_class={},
        confusion=[],
        classes=("a", "b"),
        joint_noise=noise,
    )
    RunFolder(folder / "artifacts" / "evaluations" / f"test-step{step:08d}-{look}").write(record)


def test_accuracy_is_drawn_over_the_noise_of_a_test_and_over_missing_joints_with_a_level_line_for_a_model_without_joints(
    tmp_path: Path,
) -> None:
    runs = []
    for seed, loss in ((0, 0.0), (1, 0.2)):
        folder = tmp_path / str(seed)
        annotated = dataclasses.replace(run("annotated", 1.0, seed), folder=RunFolder(folder))
        add_test(annotated, folder, 0.9 - loss, (2.0, 0.0))
        add_test(annotated, folder, 0.6 - loss, (4.0, 0.0))
        add_test(annotated, folder, 0.8, (0.0, 0.3))
        add_test(annotated, folder, 0.1, (4.0, 0.3))  # on neither curve
        add_test(annotated, folder, 0.1, (2.0, 0.0), step=9)  # another checkpoint
        add_test(annotated, folder, 0.1, None)  # from a version that did not store the noise
        runs += [annotated, run("learned", 0.95, seed, model__pose="learned")]
    (section,) = worse_joints_sections(runs, "top1")
    moved, missing = section.charts
    assert moved.table.heads == ("noise on the joints, px", "annotated", "learned")
    assert rows_of(moved.table) == [["0", "100.0 %", "95.0 %"], ["2", "80.0 %", "95.0 %"], ["4", "50.0 %", "95.0 %"]]
    assert rows_of(missing.table) == [["0", "100.0 %", "95.0 %"], ["30", "80.0 %", "95.0 %"]]


def test_a_model_that_was_trained_with_noise_has_its_own_test_at_that_noise_and_the_latest_test_of_each_counts(
    tmp_path: Path,
) -> None:
    noisy = run("noisy", 0.7, data__joint_jitter_px=2.0, data__joint_drop=0.15)
    noisy = dataclasses.replace(noisy, folder=RunFolder(tmp_path))
    add_test(noisy, tmp_path, 0.8, (0.0, 0.0))
    add_test(noisy, tmp_path, 0.9, (0.0, 0.0))
    assert metrics_by_noise(noisy) == {JointNoise(2.0, 0.15): {"top1": 0.7}, JointNoise(): {"top1": 0.9}}


def test_without_tests_with_worse_joints_there_is_no_section() -> None:
    assert worse_joints_sections([run("annotated", 1.0), run("learned", 0.9, model__pose="learned")], "top1") == []


ROWS = {1.0: "one", 2.0: "two", 3.0: "three", 5.0: "five"}
MEANS = {1.0: 0.7, 2.0: 0.8, 3.0: 0.79, 5.0: 0.6}


def test_over_fitting_begins_past_the_best_depth_where_a_deeper_model_is_shown_to_be_worse() -> None:
    asked = []

    def against(base: str) -> dict[str, tuple[float, float, float]]:
        asked.append(base)
        return {"three": (-1.0, -4.0, 2.0), "five": (-20.0, -25.0, -15.0)}

    assert overfitting_sentence(ROWS, MEANS, against) == (
        "Over-fitting by depth begins past 2 layers: 5 layers are worse by 20.0 points (95 % interval 15.0 to 25.0)."
    )
    assert asked == ["two"]


def test_a_deeper_model_that_may_be_as_good_is_not_called_over_fitted() -> None:
    sentence = overfitting_sentence(ROWS, MEANS, lambda _: {"three": (-1.0, -4.0, 2.0), "five": (-20.0, -41.0, 1.0)})
    assert sentence == "2 layers are best. No deeper model is shown to be worse, up to 5 layers."


def test_where_the_deepest_model_is_best_over_fitting_is_not_seen() -> None:
    assert "over-fitting by depth is not seen" in overfitting_sentence(
        {1.0: "one", 2.0: "two"}, {1.0: 0.5, 2.0: 0.6}, lambda _: {}
    )
