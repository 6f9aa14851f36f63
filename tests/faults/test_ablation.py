"""An ablation whose driver is killed or asked to end goes on with the same command: every cell exactly once."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from starlab.platform.runs.events import read_events
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import read_points
from starlab.platform.runs.records import EndRequest
from starlab.platform.runs.search_records import AblationRecord

WORDS = ("ablate", "demo_temporal")
LONG = ["seeds=2", "data.train_fraction=1.0", "train.evaluate_every_epochs=1", "train.epochs=6", "resources.grace_seconds=120"]


@pytest.mark.slow_fault
@pytest.mark.timeout(1800)
def test_an_ablation_whose_driver_is_killed_at_random_moments_runs_every_cell_once(
    training, kill_family, until, tmp_path: Path
) -> None:
    dice = random.Random(20_231_013)
    for target in (0, 1, 2):  # cells that are finished before the kill
        process = training.start(tmp_path, *LONG, words=WORDS)
        until(lambda: len(_finished(tmp_path)) >= target and _under_way(tmp_path), process)  # noqa: B023
        time.sleep(4 * dice.random())
        kill_family(process)
    caught, injected = _under_way(tmp_path), time.time()
    again = training.start(tmp_path, *LONG, words=WORDS)
    said, _ = again.communicate(timeout=900)
    assert again.returncode == 0, said
    _check_every_cell_once(tmp_path)
    # A cell that had no checkpoint yet starts again instead of resuming, which is not what is measured.
    if caught and any(event.kind == "resumed" and event.time >= injected for event in read_events(caught[0])):
        training.measure("4b", "SIGKILL of an ablation's driver, the same command at once", caught[0], injected)


@pytest.mark.slow_fault
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_an_ablation_that_is_asked_to_end_checkpoints_its_cells_and_goes_on(
    training, until, tmp_path: Path, number: signal.Signals
) -> None:
    process = training.start(tmp_path, *LONG, words=WORDS)
    until(lambda: _under_way(tmp_path), process)
    process.send_signal(number)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + number, said
    assert "the same command goes on" in said
    [folder] = tmp_path.glob("demo_temporal-*")
    assert json.loads((folder / "run.json").read_text())["status"] == "KILLED"
    caught = [cell for cell in folder.glob("trials/*") if not (cell / "result.json").exists() and _steps(cell)]
    assert caught
    for cell in caught:
        request = RunFolder(cell).require(EndRequest)
        assert (request.signal, request.reason.startswith("its ablation was asked to end")) == (number, True)
        assert list((cell / "checkpoints").glob("step_*"))
    again = training.start(tmp_path, *LONG, words=WORDS)
    said, _ = again.communicate(timeout=900)
    assert again.returncode == 0, said
    _check_every_cell_once(tmp_path)
    for cell in caught:
        assert any(event.kind == "resumed" for event in read_events(cell))


def _check_every_cell_once(runs: Path) -> None:
    [folder] = runs.glob("demo_temporal-*")
    record = RunFolder(folder).require(AblationRecord)
    cells = {cell.run: RunFolder(runs / cell.folder) for cell in record.cells}
    assert len(cells) == len(record.rows) * len(record.seeds) == 4
    assert {path.name for path in folder.glob("trials/*")} == set(cells)
    for cell in cells.values():
        assert cell.looks_at_test() == 1
        keys = [(point.key, point.step) for point in read_points(cell.path / "journal.jsonl")]
        assert len(keys) == len(set(keys))
        assert (cell.artifacts / "predictions.parquet").is_file()
    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    children = [run.data.tags["starlab.run_id"] for run in found if "mlflow.parentRunId" in run.data.tags]
    assert sorted(children) == sorted(cells)
    assert {run.info.status for run in found} == {"FINISHED"}


def _finished(runs: Path) -> list[Path]:
    return list(runs.glob("demo_temporal-*/trials/*/result.json"))


def _under_way(runs: Path) -> list[Path]:
    cells = [path for path in runs.glob("demo_temporal-*/trials/*") if not (path / "result.json").exists()]
    return [cell for cell in cells if 4 <= _steps(cell) <= 30]  # of about 38


def _steps(folder: Path) -> int:
    return max((point.step for point in read_points(folder / "journal.jsonl")), default=0)
