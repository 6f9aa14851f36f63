"""The search's own curve: its best value while it runs, and the winner at its end; and how its lines count failed trials."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

from mlflow import MlflowClient
from ray.tune.experiment import Trial as TuneTrial

from starlab.experiments.sections import TrackingConfig
from starlab.experiments.spec import load_search
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import FILE, read_points
from starlab.platform.runs.records import RunInfo
from starlab.platform.runs.search_records import Trial
from starlab.platform.search.best_so_far import BestSoFar, record_winner
from starlab.platform.search.objectives import Objective, objectives_of
from starlab.platform.search.search import SearchResult
from starlab.platform.search.trial_folders import TrialFolders
from starlab.platform.search.trial_lines import TrialLines
from starlab.platform.summary import search_lines
from starlab.platform.tracking.sender import sync
from starlab.platform.trainer import RunResult

SPEC = load_search("demo_search")
[OBJECTIVE] = objectives_of(SPEC)


def make_search(runs: Path) -> RunFolder:
    search = RunFolder(runs / "demo_search-1")
    search.write_json("spec.json", SPEC.to_dict())
    search.write(
        RunInfo(
            run_id="demo_search-1",
            key="k",
            experiment="demo_search",
            mlflow_experiment="demo_search",
            tracking_uri=TrackingConfig().address(runs),
            runs=str(runs),
            status="RUNNING",
            tags={},
        )
    )
    return search


def points(search: RunFolder) -> list[tuple[str, int, float]]:
    return [(point.key, point.step, point.value) for point in read_points(search.path / FILE)]


def test_mlflow_has_the_best_value_and_trial_of_a_search_that_still_runs(tmp_path: Path) -> None:
    search = make_search(tmp_path)
    best = BestSoFar(search, OBJECTIVE)
    best.update(("t-1", 0), {"train.lr": 0.001}, 0.4)
    best.update(("t-2", 0), {"train.lr": 0.002}, 0.3)
    best.update(("t-2", 0), {"train.lr": 0.002}, math.nan)
    best.update(("t-2", 0), {"train.lr": 0.002}, 0.6)
    sync(search)
    run = MlflowClient(search.info.tracking_uri).get_run(search.read_json("mlflow.json")["run_id"])
    assert run.info.status == "RUNNING"
    assert run.data.metrics == {"best/val_top1": 0.6}
    assert run.data.tags["starlab.best_trial"] == "t-2: train.lr=0.002"


def test_a_search_that_goes_on_continues_its_curve_and_repeats_nothing(tmp_path: Path) -> None:
    search = make_search(tmp_path)
    BestSoFar(search, OBJECTIVE).update(("t-1", 0), {}, 0.4)
    again = BestSoFar(search, OBJECTIVE)
    again.update(("t-1", 0), {}, 0.4)
    again.update(("t-3", 0), {}, 0.5)
    assert points(search) == [("best/val_top1", 1, 0.4), ("best/val_top1", 2, 0.5)]


def test_the_best_value_of_an_objective_that_is_to_be_small_is_the_smallest_under_its_own_name(tmp_path: Path) -> None:
    search = make_search(tmp_path)
    best = BestSoFar(search, Objective("val/loss", higher_is_better=False, metric="loss"))
    for value in (0.9, math.nan, 1.2, 0.7):
        best.update(("t-1", 0), {}, value)
    assert points(search) == [("best/val_loss", 1, 0.9), ("best/val_loss", 2, 0.7)]


def test_a_point_with_several_seeds_is_the_best_by_its_mean_and_not_by_its_luckiest_run(tmp_path: Path) -> None:
    search = make_search(tmp_path)
    best = BestSoFar(search, OBJECTIVE, num_seeds=2)
    best.update(("lucky", 0), {"train.lr": 0.1}, 0.9)
    assert (points(search), math.isnan(best.value)) == ([], True)
    best.update(("lucky", 1), {"train.lr": 0.1}, 0.3)
    best.update(("steady", 0), {"train.lr": 0.2}, 0.7)
    best.update(("steady", 1), {"train.lr": 0.2}, 0.7)
    best.update(("steady", 1), {"train.lr": 0.2}, 0.5)  # a run counts by its best value, as at its end
    assert points(search) == [("best/val_top1", 1, 0.6), ("best/val_top1", 2, 0.7)]
    assert search.info.tags["starlab.best_trial"] == "steady: train.lr=0.2"


def test_a_search_that_goes_on_knows_the_seeds_that_an_earlier_call_finished(tmp_path: Path) -> None:
    search = make_search(tmp_path)
    best = BestSoFar(search, OBJECTIVE, num_seeds=2)
    best.remember({("t-1", 0): {1: 0.2, 2: 0.4}})
    best.update(("t-1", 1), {}, 0.6)
    assert points(search) == [("best/val_top1", 1, 0.5)]


def test_the_winner_and_its_look_at_test_are_recorded_once_and_another_winner_is_a_second_point(tmp_path: Path) -> None:
    search = make_search(tmp_path)
    winner = Trial(run="t-2", values={"train.lr": 0.002}, val_top1=0.6, epochs=4, whole=True)
    for _ in range(2):
        record_winner(search, winner, {"val/top1": 0.6, "test/top1": 0.5})
    assert points(search) == [("test/top1", 1, 0.5)]
    assert search.info.tags["starlab.best_trial"] == "t-2: train.lr=0.002"
    record_winner(search, winner, {"val/top1": 0.6, "test/top1": 0.55})
    assert points(search)[1:] == [("test/top1", 2, 0.55)]


def test_a_trial_whose_process_was_killed_for_good_is_one_line_that_names_its_folder(tmp_path: Path) -> None:
    class Killed:
        trial_id = "1a2b"
        config: dict[str, Any] = {"model.layers": 1, "model.encoder": "FZ", "model.decoder": "FZ", "train.lr": 0.001}  # noqa: RUF012
        last_result: dict[str, Any] = {}  # noqa: RUF012

    said: list[str] = []
    folders = TrialFolders(make_search(tmp_path), SPEC, "f")
    TrialLines(4, OBJECTIVE, said.append, folders).on_trial_error(1, [], cast(TuneTrial, Killed()))
    [line] = said
    assert "1a2b failed: its process was killed or crashed again and again" in line
    assert str(folders.at(Killed.config).path) in line
    assert line.endswith("(1/4)")


def test_the_end_line_counts_the_failed_trials(tmp_path: Path) -> None:
    best = RunResult(
        run_id="t-1",
        folder=tmp_path,
        metrics={"test/top1": 0.5},
        per_class={},
        seconds=1.0,
        was_complete=True,
        selected_by="validation",
        tracking_uri="sqlite:///x/mlflow.db",
        mlflow_run_id=None,
        tracking_problem=None,
        replayed_differently=0,
        learned_actions=True,
    )
    trials = [Trial(run=f"t-{n}", values={}, val_top1=0.5, epochs=4, whole=True) for n in range(3)]

    def first(failed: dict[str, str]) -> str:
        return search_lines(
            SearchResult(tmp_path, trials, (OBJECTIVE,), [], failed, best, 1, "optuna-dashboard …", 9.0, None, None)
        )[0]

    assert first({"t-9": "killed"}) == "validation top-1 of 3 of 4 trials, 1 failed (9 s):"
    assert first({}) == "validation top-1 of 3 trials (9 s):"
