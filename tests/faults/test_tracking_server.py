"""Tests a real MLflow server that is killed, stopped, slow, locked or unavailable while a sender sends a run's journal.

In each case training is not delayed, and once the server works again MLflow holds every point exactly once, in one run.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import FILE, Journal, read_points
from starlab.platform.tracking.sender import Sender, sync

STEPS = 60
KEYS = ("train/loss", "train/top1", "val/top1")


@pytest.fixture(autouse=True)
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let requests time out after two seconds instead of the ten of a real run, so that the tests are faster."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


def new_run(root: Path, uri: str, key: str) -> RunFolder:
    folder = RunFolder(root / f"demo-{key}")
    folder.write_json("spec.json", {"name": "demo", "train": {"lr": 0.1}})
    folder.write_json(
        "run.json",
        {
            "key": key,
            "run_id": folder.path.name,
            "experiment": "demo",
            "mlflow_experiment": "demo",
            "tracking_uri": uri,
            "runs": str(root),
            "tags": {"starlab.git_commit": "c0ffee"},
            "parent": None,
            "status": "RUNNING",
        },
    )
    return folder


def train(folder: RunFolder, first: int = 0, last: int = STEPS) -> None:
    """Write the journal of a training, a step every few milliseconds."""
    journal = Journal(folder.path / FILE)
    for step in range(first, last):
        journal.log(step, {key: step / 7 + index for index, key in enumerate(KEYS)})
        time.sleep(0.01)
    journal.close()


def finish(folder: RunFolder) -> None:
    folder.write_json("run.json", folder.read_json("run.json") | {"status": "FINISHED"})


def sync_until_it_works(folder: RunFolder, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            sync(folder)
            return
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def assert_each_point_once(folder: RunFolder, uri: str) -> None:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("demo")
    runs = client.search_runs([experiment.experiment_id], f"tags.`starlab.key` = '{folder.read_json('run.json')['key']}'")
    assert [run.info.run_id for run in runs] == [folder.read_json("mlflow.json")["run_id"]]
    assert runs[0].data.params == {"name": "demo", "train.lr": "0.1"}
    written = sorted((p.key, p.step, p.value, p.time_ms) for p in read_points(folder.path / FILE))
    held = []
    for key in KEYS:
        held += [(key, m.step, m.value, m.timestamp) for m in client.get_metric_history(runs[0].info.run_id, key)]
    assert sorted(held) == written
    assert len(written) == STEPS * len(KEYS)


Fault = Callable[[Any], None]


@pytest.fixture(scope="module")
def measures(add_to_table: Callable[..., None]) -> Iterator[dict[str, dict[str, object]]]:
    """Seconds from when the server works again until MLflow holds everything. Reported, never asserted."""
    rows: dict[str, dict[str, object]] = {}
    yield rows
    add_to_table(rows)


ROWS = {"killed": "11", "stopped": "12", "locked": "13"}


def killed(server: Any) -> None:
    server.kill()
    time.sleep(1)
    server.start()


def stopped(server: Any) -> None:
    server.signal(signal.SIGSTOP)
    time.sleep(6)
    server.signal(signal.SIGCONT)


def locked(server: Any) -> None:
    with sqlite3.connect(server.database, timeout=30) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        time.sleep(6)
        connection.rollback()


@pytest.mark.parametrize("fault", [killed, *(pytest.param(fault, marks=pytest.mark.slow_fault) for fault in (stopped, locked))])
def test_mlflow_holds_every_point_once_after_its_server_was(
    fault: Fault, tracking_server: Any, tmp_path: Path, measures: dict[str, dict[str, object]]
) -> None:
    folder = new_run(tmp_path, tracking_server.uri, fault.__name__)
    trouble = threading.Thread(target=fault, args=(tracking_server,))
    with Sender(folder, every_seconds=0.1):
        train(folder, last=STEPS // 3)
        trouble.start()
        train(folder, first=STEPS // 3)  # the journal does not depend on the server
        trouble.join()
        recovered = time.monotonic()
        finish(folder)
    sync_until_it_works(folder)
    seconds, row = round(time.monotonic() - recovered, 1), ROWS[fault.__name__]
    measures[row] = {"fault": f"MLflow server {fault.__name__}", "recovery_seconds": seconds, "steps_done_again": 0}
    assert_each_point_once(folder, tracking_server.uri)
    assert MlflowClient(tracking_server.uri).get_run(folder.read_json("mlflow.json")["run_id"]).info.status == "FINISHED"


@pytest.mark.slow_fault
@pytest.mark.parametrize("fault", [killed, stopped])
def test_a_run_that_begins_while_the_server_is_unavailable_is_created_once(
    fault: Fault, tracking_server: Any, tmp_path: Path
) -> None:
    folder = new_run(tmp_path, tracking_server.uri, f"begins-{fault.__name__}")
    trouble = threading.Thread(target=fault, args=(tracking_server,))
    trouble.start()
    time.sleep(0.3)
    with Sender(folder, every_seconds=0.1):
        train(folder)
        trouble.join()
        finish(folder)
    sync_until_it_works(folder)
    assert_each_point_once(folder, tracking_server.uri)


@contextmanager
def slow_connection(port: int, delay_seconds: float) -> Iterator[str]:
    """Open a proxy to `port` that delays every packet, in both directions. Yields its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def carry(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                time.sleep(delay_seconds)
                target.sendall(data)
        except OSError:
            pass
        finally:
            source.close()
            target.close()

    def accept() -> None:
        while not ended.is_set():
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", port))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=carry, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        ended.set()
        listener.close()


@pytest.mark.slow_fault
@pytest.mark.parametrize("delay_seconds", [0.3, 1.5])  # slow, and so slow that every request times out before its answer
def test_a_slow_connection_delays_the_curves_and_duplicates_no_point(
    delay_seconds: float, tracking_server: Any, tmp_path: Path
) -> None:
    with slow_connection(tracking_server.port, delay_seconds) as uri:
        folder = new_run(tmp_path, uri, f"slow-{delay_seconds}")
        sender = Sender(folder, every_seconds=0.1)
        with sender:
            train(folder)
        assert (sender.problem is None) == (delay_seconds < 1)
    folder.write_json("run.json", folder.read_json("run.json") | {"tracking_uri": tracking_server.uri, "status": "FINISHED"})
    sync_until_it_works(folder)
    assert_each_point_once(folder, tracking_server.uri)


def test_starlab_sync_sends_the_rest_once_after_the_driver_was_killed(tracking_server: Any, tmp_path: Path) -> None:
    folder = new_run(tmp_path, tracking_server.uri, "driver")
    code = (
        "import sys, time; from pathlib import Path; from starlab.platform.runs.folder import RunFolder\n"
        "from starlab.platform.tracking.sender import Sender\n"
        "Sender(RunFolder(Path(sys.argv[1])), every_seconds=0.05).__enter__()\n"
        "time.sleep(300)"
    )
    driver = subprocess.Popen([sys.executable, "-c", code, str(folder.path)])
    try:
        train(folder, last=STEPS // 2)
        deadline = time.monotonic() + 120
        while FILE not in folder.read_json("mlflow.json").get("offsets", {}) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert FILE in folder.read_json("mlflow.json")["offsets"], "nothing was sent before the driver was killed"
    finally:
        driver.kill()
        driver.wait()
    train(folder, first=STEPS // 2)
    command = [sys.executable, "-m", "starlab.platform.cli", "sync", folder.path.name, "--runs", str(tmp_path)]
    tracking_server.signal(signal.SIGSTOP)
    while_stopped = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    tracking_server.signal(signal.SIGCONT)
    assert while_stopped.returncode == 1
    assert "Traceback" not in while_stopped.stderr
    assert folder.path.name in while_stopped.stderr
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    num_sent = int(ended.stdout.split(": ")[1].split()[0])
    assert 0 < num_sent <= STEPS * len(KEYS)
    assert_each_point_once(folder, tracking_server.uri)
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ": 0 points sent" in again.stdout


def test_points_keep_their_order_by_step_if_the_clock_jumps_back(
    tracking_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = new_run(tmp_path, tracking_server.uri, "clock")
    real, journal = time.time_ns, Journal(folder.path / FILE)
    for step in range(STEPS):
        hours_back = 5 if step >= STEPS // 2 else 0
        monkeypatch.setattr(time, "time_ns", lambda back=hours_back: real() - back * 3600 * 10**9)
        journal.log(step, {key: step / 7 + index for index, key in enumerate(KEYS)})
        if step == STEPS // 2:
            sync(folder)
    monkeypatch.undo()
    journal.close()
    finish(folder)
    sync(folder)
    assert_each_point_once(folder, tracking_server.uri)
    client, run_id = MlflowClient(tracking_server.uri), folder.read_json("mlflow.json")["run_id"]
    assert client.get_run(run_id).data.metrics["train/loss"] == (STEPS - 1) / 7  # the newest by step, not by clock
    curve = sorted(client.get_metric_history(run_id, "train/loss"), key=lambda metric: metric.step)
    assert [metric.value for metric in curve] == [step / 7 for step in range(STEPS)]


@pytest.mark.slow_fault
def test_a_server_that_lost_its_database_receives_the_whole_run_again(tmp_path: Path) -> None:
    folder = new_run(tmp_path, f"sqlite:///{tmp_path}/mlflow.db", "lost")
    train(folder)
    assert sync(folder) == STEPS * len(KEYS)
    folder.write_json("run.json", folder.read_json("run.json") | {"tracking_uri": f"sqlite:///{tmp_path}/other.db"})
    assert sync(folder) == STEPS * len(KEYS)
    assert_each_point_once(folder, f"sqlite:///{tmp_path}/other.db")


def test_a_run_that_its_server_no_longer_knows_is_sent_again(tracking_server: Any, tmp_path: Path) -> None:
    folder = new_run(tmp_path, tracking_server.uri, "forgotten")
    train(folder, last=STEPS - 1)
    sync(folder)
    folder.write_json("mlflow.json", folder.read_json("mlflow.json") | {"run_id": "0" * 32})
    train(folder, first=STEPS - 1)
    assert sync(folder) == STEPS * len(KEYS)
    assert_each_point_once(folder, tracking_server.uri)


@pytest.mark.slow_fault
def test_mlflow_over_postgresql_holds_every_point_once_after_a_kill(postgres_server: Any, tmp_path: Path) -> None:
    server = postgres_server
    folder = new_run(tmp_path, server.uri, "postgres")
    with Sender(folder, every_seconds=0.1):
        train(folder, last=STEPS // 2)
        time.sleep(1)
        server.kill()
        train(folder, first=STEPS // 2)
        server.start()
    folder.write_json("mlflow.json", folder.read_json("mlflow.json") | {"offsets": {}})  # as if it were unknown what arrived
    finish(folder)
    sync_until_it_works(folder)
    assert_each_point_once(folder, server.uri)
    not_numbers = Journal(folder.path / FILE)
    not_numbers.log(STEPS, {"strange": float("nan")})
    not_numbers.log(STEPS + 1, {"strange": float("inf")})
    not_numbers.close()
    for _ in range(2):
        sync(folder)
        folder.write_json("mlflow.json", folder.read_json("mlflow.json") | {"offsets": {}})
    strange = MlflowClient(server.uri).get_metric_history(folder.read_json("mlflow.json")["run_id"], "strange")
    assert [metric.step for metric in strange] == [STEPS, STEPS + 1]


def test_a_second_sender_of_the_same_run_is_refused(tracking_server: Any, tmp_path: Path) -> None:
    folder = new_run(tmp_path, tracking_server.uri, "two")
    train(folder)
    command = [sys.executable, "-m", "starlab.platform.cli", "sync", folder.path.name, "--runs", str(tmp_path)]
    with (folder.path / ".mlflow.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=os.environ)
    assert ended.returncode == 1
    assert "another process sends the points" in ended.stderr
