"""The driver, Ray itself or a search is killed, and the same command goes on. Rows 2, 3 and 4 of docs/reliability.md."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from starlab.platform.runs.events import read_events
from starlab.platform.runs.journal import read_points
from starlab.platform.trainer import RunResult

pytestmark = pytest.mark.timeout(900)  # a hang guard for a busy machine; a quiet one needs a tenth of it


@pytest.mark.slow_fault
def test_a_driver_killed_in_mid_run_goes_on_as_the_same_mlflow_run(
    training, undisturbed: RunResult, kill_family, same_as, until, tmp_path: Path
) -> None:
    process = training.start(tmp_path)
    folder = tmp_path / undisturbed.run_id
    until(lambda: _steps(folder) >= 4, process)
    injected = time.time()
    kill_family(process)
    resumed = training.run(tmp_path)
    same_as(resumed, undisturbed)
    client = MlflowClient(resumed.tracking_uri)
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert [(run.info.run_id, run.info.status) for run in runs] == [(resumed.mlflow_run_id, "FINISHED")]
    training.measure("02", "SIGKILL of the driver in mid-run, the same command at once", folder, injected)


@pytest.mark.slow_fault
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("daemon", ["raylet", "gcs_server"])
def test_a_ray_daemon_killed_under_the_run_ends_it_and_the_same_command_goes_on(
    training, same_as, until, tmp_path: Path, daemon: str
) -> None:
    long = "train.epochs=8"  # workers live on for a while, on the clips that they have
    whole = training.run(tmp_path / "whole", long)
    runs = tmp_path / "runs"
    process, folder = training.start(runs, long), runs / whole.run_id
    until(lambda: folder.exists() and _steps(folder) >= 4, process)
    [victim] = [child for child in psutil.Process(process.pid).children(recursive=True) if child.name() == daemon]
    injected = time.time()
    victim.kill()
    process.communicate(timeout=300)  # Ray's client looks for its head for a minute
    assert process.returncode != 0
    assert _steps(folder) < _steps(whole.folder)
    same_as(training.run(runs, long), whole)
    training.measure(
        f"03 {daemon}", f"SIGKILL of the {daemon} in mid-run, the same command once it has ended", folder, injected
    )


@pytest.mark.slow_fault
@pytest.mark.timeout(1800)
def test_a_run_killed_at_ten_random_points_and_resumed_ends_bit_identical_each_time(
    training, undisturbed: RunResult, kill_family, same_as, until, tmp_path: Path
) -> None:
    dice = random.Random(20_221_011)
    for number in range(10):
        runs = tmp_path / str(number)
        folder, target, delay = runs / undisturbed.run_id, dice.randrange(13), dice.random() * 0.2
        process = training.start(runs)
        until(lambda: folder.exists() and _steps(folder) >= target, process)  # noqa: B023
        time.sleep(delay)
        kill_family(process)
        same_as(training.run(runs), undisturbed)


@pytest.mark.slow_fault
def test_a_killed_search_goes_on_and_finishes_every_trial_once(training, kill_family, until, tmp_path: Path) -> None:
    def under_way() -> list[Path]:
        return [trial for trial in tmp_path.glob("demo_search-*/trials/*") if 4 <= _steps(trial) <= 20]  # of 52

    words, long = ("search", "demo_search"), ["search.trials=3", "train.epochs=8", "search.grace_epochs=8"]
    process = training.start(tmp_path, *long, words=words)
    until(lambda: under_way() and list(tmp_path.glob("demo_search-*/trials/*/result.json")), process)
    caught, injected = under_way(), time.time()
    kill_family(process)
    again = training.start(tmp_path, *long, words=words)
    said, _ = again.communicate(timeout=800)
    assert again.returncode == 0, said
    [found] = tmp_path.glob("demo_search-*/search.json")
    trials = json.loads(found.read_text())["trials"]
    assert len(trials) == 3
    distinct = {trial["run"] for trial in trials}
    assert len(distinct) == 3  # no point is tried twice
    assert {trial.name for trial in caught} <= distinct
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    children = [run.data.tags["starlab.run_id"] for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert sorted(children) == sorted(distinct)
    for run in distinct:
        keys = [(p.key, p.step) for p in read_points(found.parent / "trials" / run / "journal.jsonl")]
        assert len(keys) == len(set(keys))
    training.measure("04", "SIGKILL of a search's driver in mid-trial, the same command at once", caught[0], injected)


@pytest.mark.slow_fault
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_search_that_is_asked_to_end_checkpoints_its_trials_tests_nothing_and_goes_on(
    training, kill_family, until, tmp_path: Path, number: signal.Signals
) -> None:
    def under_way() -> list[Path]:
        return [trial for trial in tmp_path.glob("demo_search-*/trials/*") if 4 <= _steps(trial) <= 20]  # of 52

    words = ("search", "demo_search")
    long = ["search.trials=3", "train.epochs=8", "search.grace_epochs=8", "resources.grace_seconds=120"]
    process = training.start(tmp_path, *long, words=words)
    until(under_way, process)
    process.send_signal(number)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + number, said
    assert "the same command goes on" in said
    assert "evaluated on the test part" not in said
    [folder] = tmp_path.glob("demo_search-*")
    assert json.loads((folder / "run.json").read_text())["status"] == "KILLED"
    assert not (folder / "search.json").exists()
    results = [json.loads(path.read_text()) for path in folder.glob("trials/*/result.json")]
    assert not [result for result in results if "test" in result]
    caught = {trial.name for trial in folder.glob("trials/*") if not (trial / "result.json").exists() and _steps(trial)}
    assert caught
    assert all(list((folder / "trials" / name / "checkpoints").glob("step_*")) for name in caught)

    again = training.start(tmp_path, *long, words=words)
    said, _ = again.communicate(timeout=800)
    assert again.returncode == 0, said
    trials = json.loads((folder / "search.json").read_text())["trials"]
    assert len({trial["run"] for trial in trials}) == 3
    assert caught <= {trial["run"] for trial in trials}
    for name in caught:
        assert any(event.kind == "resumed" for event in read_events(folder / "trials" / name))


def _steps(folder: Path) -> int:
    return max((point.step for point in read_points(folder / "journal.jsonl")), default=0)
