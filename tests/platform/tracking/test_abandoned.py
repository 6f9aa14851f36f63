import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from mlflow import MlflowClient

from starlab.experiments.sections import TrackingConfig
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.lifecycle import close_abandoned
from starlab.platform.runs.process import is_dead, this_process
from starlab.platform.runs.records import LeaseState, ProcessId
from starlab.platform.tracking.abandoned import close_abandoned_everywhere
from starlab.platform.tracking.sender import sync

CODE = """
import dataclasses, json, time
from starlab.platform.runs.process import this_process
print(json.dumps(dataclasses.asdict(this_process())), flush=True)
time.sleep(300)
"""


def run(path: Path, root: Path, driver: ProcessId, status: str = "RUNNING") -> RunFolder:
    folder = RunFolder(path)
    folder.write_json("spec.json", {"name": "demo"})
    about = {"key": path.name, "run_id": path.name, "experiment": "demo", "mlflow_experiment": "demo", "runs": str(root)}
    about |= {"tracking_uri": TrackingConfig().address(root), "parent": None}
    folder.write_json("run.json", {**about, "tags": {"a": "b"}, "status": status, "driver": asdict(driver)})
    return folder


def test_a_killed_process_is_dead_and_a_live_one_or_one_on_another_machine_is_not() -> None:
    process = subprocess.Popen([sys.executable, "-c", CODE], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    driver = ProcessId(**json.loads(process.stdout.readline()))
    assert not is_dead(driver)
    assert is_dead(replace(driver, started=(driver.started or 0) - 1))  # a later process with the same number
    process.kill()
    deadline = time.monotonic() + 60
    while not is_dead(driver) and time.monotonic() < deadline:  # a zombie counts as dead before its parent waits for it
        time.sleep(0.01)
    assert is_dead(driver)
    process.wait()
    assert is_dead(driver)
    assert not is_dead(replace(driver, machine="another"))
    assert not is_dead(this_process())


def test_only_runs_and_trials_whose_driver_died_are_closed(tmp_path: Path) -> None:
    gone = replace(this_process(), started=1)
    dead = run(tmp_path / "dead", tmp_path, gone)
    trial = run(tmp_path / "search" / "trials" / "trial", tmp_path, gone)
    alive = run(tmp_path / "search", tmp_path, this_process())
    elsewhere = run(tmp_path / "elsewhere", tmp_path, replace(gone, machine="another", host="far"))
    elsewhere.write(
        LeaseState(fence=1, owner=gone, renewed=time.time() - 600, seconds=60)
    )  # within the possible difference of clocks
    lost = run(tmp_path / "lost", tmp_path, replace(gone, machine="another", host="far"))
    lost.write(LeaseState(fence=1, owner=gone, renewed=time.time() - 700, seconds=60))
    done = run(tmp_path / "done", tmp_path, gone, "FINISHED")
    assert {folder.path.name for folder in close_abandoned(tmp_path)} == {"dead", "trial", "lost"}
    for folder, status in ((dead, "KILLED"), (trial, "KILLED"), (alive, "RUNNING"), (elsewhere, "RUNNING"), (done, "FINISHED")):
        assert folder.read_json("run.json")["status"] == status
    tag = dead.read_json("run.json")["tags"]["starlab.interrupted"]
    assert f"process {os.getpid()} on " in tag
    assert close_abandoned(tmp_path) == []


def test_mlflow_is_updated_when_a_run_is_closed_and_when_it_is_resumed(tmp_path: Path) -> None:
    folder = run(tmp_path / "dead", tmp_path, this_process())
    sync(folder)
    client, run_id = MlflowClient(TrackingConfig().address(tmp_path)), folder.read_json("mlflow.json")["run_id"]
    assert client.get_run(run_id).info.status == "RUNNING"
    folder.write_json("run.json", folder.read_json("run.json") | {"driver": asdict(replace(this_process(), started=1))})
    close_abandoned_everywhere(tmp_path)
    deadline = time.monotonic() + 120
    while client.get_run(run_id).info.status != "KILLED" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert client.get_run(run_id).info.status == "KILLED"
    assert "starlab.interrupted" in client.get_run(run_id).data.tags
    while folder.read_json("mlflow.json")["status"] != "KILLED" and time.monotonic() < deadline:
        time.sleep(0.05)  # the thread is still recording what it sent
    folder.write_json("run.json", folder.read_json("run.json") | {"status": "RUNNING", "driver": asdict(this_process())})
    sync(folder)
    assert client.get_run(run_id).info.status == "RUNNING"
