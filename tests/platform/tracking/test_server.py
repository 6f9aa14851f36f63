"""`starlab ui`: it says its address once the server answers, and leaves no process behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from starlab.platform.errors import UserError
from starlab.platform.tracking.server import SERVER_SETTINGS, serve


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with a database that knows one experiment."""
    folder = tmp_path_factory.mktemp("o?d runs")
    from starlab.experiments.sections import TrackingConfig

    MlflowClient(TrackingConfig().address(folder)).create_experiment("demo")
    return folder


def _hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Ui:
    """`starlab ui` in a process of its own, under another process if `parent`."""

    def __init__(self, runs: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "starlab.platform.cli", "ui", "--runs", str(runs), "--port", str(self.port)]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            # A shell that starts the tests in the background makes them, and so this process, ignore Ctrl-C.
            preexec_fn=_hear_ctrl_c,  # noqa: PLW1509
        )
        assert self.process.stdout is not None
        self.lines = [self.process.stdout.readline().strip()]
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=60) as answer:
            self.answered_at_once = answer.status == 200
        self.lines.append(self.process.stdout.readline().strip())
        self.server = psutil.Process(self.process.pid).children(recursive=True)

    def wait_for_the_end(self) -> list[psutil.Process]:
        """Wait for the processes of the server; return those that are left after a minute."""
        _, alive = psutil.wait_procs(self.server, timeout=60)
        return list(alive)


@pytest.fixture
def ui(runs: Path) -> Iterator[Ui]:
    ui = Ui(runs)
    try:
        yield ui
    finally:
        for process in [*ui.server, ui.process]:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.kill()
        ui.process.wait()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 0),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.longer),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.longer),
    ],
)
def test_the_address_is_said_when_the_server_answers_and_no_process_is_left(
    ui: Ui, runs: Path, number: signal.Signals, code: int
) -> None:
    assert ui.lines[0] == f"MLflow for {runs} on http://127.0.0.1:{ui.port}; press Ctrl-C to stop"
    assert ui.answered_at_once
    assert ui.lines[1] == f"demo: http://127.0.0.1:{ui.port}/#/experiments/1/runs?workflowType=machine_learning"
    assert ui.server
    assert SERVER_SETTINGS.items() <= ui.server[0].environ().items()
    os.kill(ui.process.pid, number)  # to it alone
    assert ui.process.wait(60) == code
    assert ui.wait_for_the_end() == []


def test_a_taken_port_is_named_before_a_server_is_started_with_a_command_that_can_be_pasted(runs: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(UserError, match=f"port {port} cannot be used") as refused:
            serve(runs, port, lambda _: None)
        assert time.monotonic() - began < 5
    assert f"starlab ui --runs '{runs}' --port {port + 1}" in str(refused.value)


COUNT_CONNECTIONS = """
import sys, anyio, anyio.to_thread
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

pool = SqlAlchemyStore(sys.argv[1], sys.argv[2]).engine.pool
async def requests_at_once():
    return anyio.to_thread.current_default_thread_limiter().total_tokens
assert pool._max_overflow >= 0  # below, it would have no limit
print(pool.size() + pool._max_overflow, int(anyio.run(requests_at_once)))
"""
"""Prints what a server's process would have: its database connections, and the requests that it serves at once."""


def connections_and_requests(tmp_path: Path, settings: dict[str, str]) -> tuple[int, int]:
    command = [sys.executable, "-c", COUNT_CONNECTIONS, f"sqlite:///{tmp_path / 'mlflow.db'}", str(tmp_path)]
    bare = {name: value for name, value in os.environ.items() if name not in SERVER_SETTINGS}
    done = subprocess.run(command, env=bare | settings, capture_output=True, text=True, timeout=120, check=True)
    connections, requests = done.stdout.split()[-2:]
    return int(connections), int(requests)


def test_a_server_has_two_connections_for_each_request_that_it_serves_at_once(tmp_path: Path) -> None:
    """A batch of points takes two: with fewer, requests wait for a second one, which others hold that wait, too."""
    connections, requests = connections_and_requests(tmp_path, SERVER_SETTINGS)
    assert connections >= 2 * requests
    assert connections_and_requests(tmp_path, {})[0] < 2 * requests  # else MLflow needs no setting any more


@pytest.mark.longer
def test_hundreds_of_batches_of_points_at_once_are_all_answered(ui: Ui) -> None:
    client = MlflowClient(f"http://127.0.0.1:{ui.port}")
    runs = [client.create_run("1").info.run_id for _ in range(24)]
    pool = ThreadPoolExecutor(160)
    sends = [
        pool.submit(client.log_batch, run, [Metric(f"metric {at}", 1.0, 0, step) for step in range(50)])
        for at in range(20)
        for run in runs
    ]
    _, late = wait(sends, timeout=120)
    pool.shutdown(wait=False, cancel_futures=True)
    assert not late
    assert [send.exception() for send in sends] == [None] * len(sends)
