"""Which cells run at once, what happens to one that fails, and how all end on request; with a training that trains nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from starlab.experiments.spec import load_spec
from starlab.platform.cluster.connect import Cluster
from starlab.platform.cluster.placement import demand_of
from starlab.platform.errors import RunFailedError
from starlab.platform.preemption import RunPreemptedError
from starlab.platform.runs.end_request import read_request
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.lease import Lease
from starlab.platform.runs.records import Outcome, Result, RunInfo
from starlab.platform.search import cell_runs
from starlab.platform.search.cell_runs import ATTEMPTS, Ended, run_cells
from starlab.platform.search.cells import OpenData, PlannedCell
from starlab.platform.trainer import RunRequest

SPEC = load_spec("demo", ["resources.workers=1"])


def finish(folder: RunFolder) -> None:
    folder.write(
        RunInfo(
            run_id=folder.path.name,
            key="k",
            experiment="a",
            mlflow_experiment="a",
            tracking_uri="sqlite:///x",
            runs="r",
            status="FINISHED",
            tags={},
        )
    )
    folder.write(
        Result(
            steps=1, total_steps=1, best_step=1, selected_by="validation", classes=("a",), val={"top1": 1.0}, test={"top1": 0.5}
        )
    )
    folder.artifacts.mkdir(exist_ok=True)
    (folder.artifacts / "predictions.parquet").touch()


class Stage:
    """Cells whose training is a function of the test's own."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, fits: int = 2) -> None:
        self.path, self.ablation, self.fits = path, RunFolder(path / "ablation-00000000"), fits
        self.ablation.path.mkdir()
        self.said: list[str] = []
        self.started: list[str] = []
        self.train: Callable[[RunFolder, RunRequest], None] = lambda folder, _: finish(folder)
        self.now, self.most = 0, 0
        self._lock = threading.Lock()
        local = Cluster(local=True, nodes=1, cpus=2, gpus=0, accelerators=())
        monkeypatch.setattr(cell_runs, "describe_cluster", lambda: local)
        monkeypatch.setattr(cell_runs, "groups_that_fit", lambda _: self.fits)
        monkeypatch.setattr(cell_runs, "run_training", self._run)
        monkeypatch.setattr(cell_runs, "_LOOK_SECONDS", 0.02)
        monkeypatch.setattr(cell_runs, "_TAKEN_SECONDS", 0.05)

    def cells(self, count: int) -> list[PlannedCell]:
        data = OpenData(cast(Any, SimpleNamespace(fingerprint="f")), cast(Any, None))
        folders = [RunFolder(self.ablation.path / "trials" / f"a-{number:08d}") for number in range(count)]
        for folder in folders:
            folder.path.mkdir(parents=True, exist_ok=True)
        return [PlannedCell(f"row {n}", 0, SPEC, data, folder, "new") for n, folder in enumerate(folders)]

    def run(self, count: int = 4, look_again: Callable[[PlannedCell], PlannedCell] = lambda cell: cell) -> Ended:
        self.by_row = {cell.row: cell.folder for cell in self.cells(count)}
        return run_cells(self.cells(count), self.ablation, self.path, 20.0, self.said.append, look_again)

    def _run(self, request: RunRequest, say: Callable[[str], None]) -> None:
        row = request.tags["starlab.row"]
        folder = self.by_row[row]
        with Lease.claim(folder.path):
            with self._lock:
                self.started.append(row)
                self.now += 1
                self.most = max(self.most, self.now)
            try:
                self.train(folder, request)
            finally:
                with self._lock:
                    self.now -= 1


def test_as_many_cells_run_at_once_as_fit_and_each_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path, monkeypatch, fits=3)

    def train(folder: RunFolder, request: RunRequest) -> None:
        assert request.share == 1 / 3
        assert request.queues
        assert request.tags["starlab.seed"] == "0"
        time.sleep(0.3)
        finish(folder)

    stage.train = train
    ended = stage.run(7)
    assert (len(ended.trained), ended.failed) == (7, {})
    assert sorted(stage.started) == [f"row {n}" for n in range(7)]
    assert stage.most == 3


def test_more_cells_start_as_room_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path, monkeypatch, fits=0)  # a cell starts all the same, and waits for its room in a queue
    grown = threading.Event()

    def train(folder: RunFolder, _: RunRequest) -> None:
        if len(stage.started) == 1:
            stage.fits = 4
            assert grown.wait(20)
        elif len(stage.started) == 4:
            grown.set()
        finish(folder)

    stage.train = train
    assert len(stage.run(4).trained) == 4


def test_a_cell_that_fails_is_started_again_after_the_others_and_then_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path, monkeypatch, fits=1)

    def train(folder: RunFolder, _: RunRequest) -> None:
        if folder.path.name.endswith("1"):
            raise RunFailedError("run failed.\nworker 0: out of memory")
        finish(folder)

    stage.train = train
    ended = stage.run(3)
    assert stage.started == ["row 0", "row 1", "row 2"] + ["row 1"] * (ATTEMPTS - 1)
    assert [cell.row for cell in ended.trained] == ["row 0", "row 2"]
    assert ended.failed == {"a-00000001": "run failed. worker 0: out of memory"}


def test_a_run_that_stopped_itself_is_not_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path, monkeypatch)

    def train(folder: RunFolder, _: RunRequest) -> None:
        folder.write(Outcome(kind="stopped", step=3, reason="the loss was nan"))
        raise RunFailedError("run stopped at step 3: the loss was nan")

    stage.train = train
    assert list(stage.run(1).failed) == ["a-00000000"]
    assert stage.started == ["row 0"]


def test_any_error_of_one_cell_leaves_the_others_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path, monkeypatch)

    def train(folder: RunFolder, _: RunRequest) -> None:
        if folder.path.name.endswith("0"):
            raise KeyError
        finish(folder)

    stage.train = train
    ended = stage.run(3)
    assert ended.failed == {"a-00000000": "KeyError"}
    assert len(ended.trained) == 2


def test_a_cell_that_another_process_runs_is_waited_for_and_takes_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path, monkeypatch, fits=1)
    others = stage.cells(3)[0].folder
    lease = Lease.claim(others.path)

    def train(folder: RunFolder, _: RunRequest) -> None:
        finish(folder)
        if len(stage.started) == 2:  # the others are done
            finish(others)
            lease.release()

    stage.train = train
    ended = stage.run(3)
    assert stage.started == ["row 1", "row 2"]
    assert [cell.row for cell in ended.waited_for] == ["row 0"]
    assert len([line for line in stage.said if line.startswith("waiting")]) == 1


def test_a_cell_whose_other_process_dies_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path, monkeypatch)
    lease = Lease.claim(stage.cells(1)[0].folder.path)
    threading.Timer(0.5, lease.release).start()
    ended = stage.run(1)
    assert (stage.started, len(ended.trained), ended.waited_for) == (["row 0"], 1, [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_asks_every_running_cell_to_end_and_starts_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    stage = Stage(tmp_path, monkeypatch)

    def train(folder: RunFolder, _: RunRequest) -> None:
        if len(stage.started) == 2:
            os.kill(os.getpid(), number)
        deadline = time.monotonic() + 20
        while not (request := read_request(folder)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        raise RunPreemptedError(request.reason, by=request.signal)

    stage.train = train
    with pytest.raises(RunPreemptedError, match=r"0 of the 4 cells .* the same command goes on with the others") as caught:
        stage.run(4)
    assert caught.value.exit_code == 128 + number
    assert len(stage.started) == 2
    assert not [line for line in stage.said if "failed" in line]


def test_a_cell_on_gpus_needs_as_many_as_it_has_workers() -> None:
    demand = demand_of(load_spec("penn_action"))
    assert (demand.workers, demand.gpus_per_worker, demand.accelerator) == (4, 1, "V100")
    assert demand_of(SPEC).bundle == {"CPU": 1.0}


def test_a_cell_that_another_process_finished_elsewhere_after_the_plan_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path, monkeypatch, fits=1)
    elsewhere = RunFolder(tmp_path / "mine-00000002")

    def look_again(cell: PlannedCell) -> PlannedCell:
        return replace(cell, folder=elsewhere, state="finished") if cell.row == "row 2" else cell

    ended = stage.run(4, look_again)
    assert sorted(stage.started) == ["row 0", "row 1", "row 3"]
    assert [cell.folder for cell in ended.waited_for] == [elsewhere]
    assert f"cell     row 2, seed 0 was finished by another process: {elsewhere.path}" in stage.said
