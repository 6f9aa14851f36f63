"""`data.select: last` and the refit on train and validation."""

import dataclasses
from pathlib import Path

import pytest
from typer.testing import CliRunner

from starlab.experiments.spec import Spec, SpecError, load_search, load_spec
from starlab.platform.cli import app
from starlab.platform.cluster.connect import Cluster
from starlab.platform.errors import UserError
from starlab.platform.preflight import open_data, split_parts
from starlab.platform.refit import chosen_epoch, refit, refit_spec
from starlab.platform.runs.checkpoint import checkpoint_steps
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import read_points
from starlab.platform.runs.records import Result
from starlab.platform.summary import result_lines
from starlab.platform.trainer import train

TINY = [
    "data.frames=4",
    "data.size=24",
    "data.synthetic.train_clips_per_class=6",
    "data.synthetic.test_clips_per_class=3",
    "data.synthetic.size_px=48",
    "model.dim=16",
    "model.heads=2",
    "train.epochs=3",
    "train.evaluate_every_epochs=1",
    "resources.workers=1",
]


def tiny(*overrides: str) -> Spec:
    return load_spec("demo", [*TINY, *overrides])


def result_of(folder: Path) -> Result:
    return RunFolder(folder).require(Result)


def test_with_everything_trained_on_the_last_weights_are_tested_and_nothing_is_selected(
    local_ray: Cluster, tmp_path: Path
) -> None:
    lines: list[str] = []
    spec = tiny("data.select=last", "data.validation_fraction=0", "train.epochs=2")
    done = train(spec, runs=tmp_path, say=lines.append)
    result = result_of(done.folder)
    assert "data     synthetic_penn_action: 60 train, 0 validation, 30 test" in " ".join(lines)
    assert (result.selected_by, result.val, result.best_step) == ("last", {}, result.total_steps)
    assert result.test_clips == 30
    assert not any(point.key.startswith("val/") for point in read_points(done.folder / "journal.jsonl"))
    assert sum(line.startswith("train    epoch") and " val " not in line for line in lines) == 2
    assert "last weights, nothing held out" in "\n".join(result_lines(done))
    assert (done.folder / "artifacts" / "model").is_dir()
    assert train(spec, runs=tmp_path).was_complete


@pytest.mark.longer
def test_with_a_validation_part_the_last_weights_count_also_where_others_were_better(
    local_ray: Cluster, tmp_path: Path
) -> None:
    done = train(tiny("data.select=last", "data.validation_fraction=0.2", "train.select_by=loss"), runs=tmp_path)
    result = result_of(done.folder)
    losses = [point.value for point in read_points(done.folder / "journal.jsonl") if point.key == "val/loss"]
    assert len(losses) == 3
    assert result.best_step == result.total_steps
    assert result.val["loss"] == losses[-1]


def test_a_refit_trains_on_everything_for_the_epochs_that_were_best_and_tests_once(local_ray: Cluster, tmp_path: Path) -> None:
    lines: list[str] = []
    # The rate is so high that later epochs are not better: the choice is then not the last epoch.
    spec = tiny("train.lr=0.5", "train.warmup_fraction=0", "train.schedule=constant", "train.clip_norm=null")
    done = refit(spec, runs=tmp_path, say=lines.append)
    first = next(RunFolder(path) for path in tmp_path.glob("demo-*") if path.name != done.run_id)
    chosen = first.require(Result)
    assert chosen.test is None
    assert first.looks_at_test() == 0
    _, parts = open_data(spec, tmp_path, lambda _: None)
    epoch = chosen_epoch(spec, first, len(parts.train))
    whole = refit_spec(spec, epoch)
    assert done.run_id == whole.run_id(first.info.tags["starlab.data_fingerprint"])
    result = result_of(done.folder)
    assert result.steps == result.total_steps == -(-60 * int(epoch) // 8)
    assert result.test_clips == 30
    assert RunFolder(done.folder).info.tags["starlab.refit_of"] == first.path.name
    assert any(f"is best after epoch {epoch:g} of 3" in line for line in lines)
    assert checkpoint_steps(RunFolder(done.folder).stored_checkpoints)
    assert refit(spec, runs=tmp_path).was_complete


@pytest.mark.longer
def test_the_refit_of_a_run_that_was_tested_is_called_another_look(local_ray: Cluster, tmp_path: Path) -> None:
    spec, lines = tiny("train.epochs=1"), list[str]()
    train(spec, runs=tmp_path)
    refit(spec, runs=tmp_path, say=lines.append)
    assert any("another look at the test part" in line for line in lines)


def test_the_parts_of_a_refit_are_all_of_train_and_the_same_test(tmp_path: Path) -> None:
    spec = tiny()
    source, parts = open_data(spec, tmp_path, lambda _: None)
    whole = split_parts(refit_spec(spec, 2.0), source)
    assert set(whole.train) == {*parts.train, *parts.validation}
    assert parts.validation
    assert (whole.validation, whole.test) == ((), parts.test)


def test_a_refit_keeps_the_schedule_and_stops_at_the_chosen_epoch() -> None:
    spec = tiny("train.epochs=8")
    assert refit_spec(spec, 6.0).train == dataclasses.replace(spec.train, stop_after_epochs=6.0)
    assert refit_spec(spec, 8.0).train == spec.train


def test_a_refit_without_selection_on_validation_is_refused(tmp_path: Path) -> None:
    for select in ("last", "test"):
        with pytest.raises(UserError, match=r"a refit needs data\.select=validation"):
            refit(tiny(f"data.select={select}"), runs=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_refit_of_a_run_that_learns_no_actions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no action is learned by which a refit could choose"):
        refit(tiny("model.pose=learned", "train.action_loss_weight=0", "data.select=last"), runs=tmp_path)


def test_nothing_held_out_needs_select_last() -> None:
    with pytest.raises(SpecError, match=r"use data\.select=last"):
        tiny("data.validation_fraction=0")
    with pytest.raises(SpecError, match="no validation part to compare the trials on"):
        load_search("demo_search", ["data.validation_fraction=0", "data.select=last"])


def test_the_epoch_to_stop_after_is_checked() -> None:
    for value in ("0", "4", "-1"):
        with pytest.raises(SpecError, match=r"train\.stop_after_epochs is .*at most train\.epochs, 3"):
            tiny(f"train.stop_after_epochs={value}")


def test_a_dry_run_says_that_the_last_weights_count(tmp_path: Path) -> None:
    arguments = ["train", "demo", *TINY, "data.select=last", "data.validation_fraction=0", "--dry-run", "--runs", str(tmp_path)]
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 0, said.output
    assert "no validation part, the last weights count" in said.output
