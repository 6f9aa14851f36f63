"""Serves the MLflow UI for a runs folder: `starlab ui`."""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from starlab.experiments.sections import TrackingConfig
from starlab.platform.errors import UserError

_HOST = "127.0.0.1"
SERVER_SETTINGS = {
    # The job runners would be eight more processes that are not needed here, and a larger attack surface.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    # A batch of points takes a connection to the database and then, inside, a second one. MLflow 3.17 answers 40 requests at
    # once and has 15 connections: with some dozens of runs all were held by requests that waited for their second one.
    "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "80",
}
"""Environment variables of an MLflow server."""
_POLL_SECONDS = 0.2
_END_SECONDS = 10.0
_STANDARD_ERROR = 2
_SET_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy does not reach this machine's own address


def serve(runs: Path, port: int, say: Callable[[str], None]) -> None:
    """Serve the MLflow UI for the runs folder on this machine until Ctrl-C. No process of the server outlives the call.

    Args:
        say: Called with the address, and with the page of each experiment, once the server answers.

    Raises:
        UserError: The folder holds no MLflow database, the port is taken, or the server ended.
        SystemExit: SIGTERM or SIGHUP ended the server.
    """
    if not (runs / "mlflow.db").is_file():
        raise UserError(f"no {runs / 'mlflow.db'}: nothing was recorded there yet; start with: starlab demo, or name --runs")
    _check_port(runs, port)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", TrackingConfig().address(runs)]
    command += ["--artifacts-destination", str(runs / "mlartifacts"), "--host", _HOST, "--port", str(port)]
    environment = {**os.environ, **SERVER_SETTINGS}
    with _exit_on_signal(), suppress(KeyboardInterrupt):
        # A session of its own: Ctrl-C reaches this process alone, which then ends all of the server's processes.
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=_STANDARD_ERROR,  # its log
            start_new_session=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509
        )
        try:
            _wait_until_it_answers(process, port)
            say(f"MLflow for {runs} on http://{_HOST}:{port}; press Ctrl-C to stop")
            for line in _experiment_lines(port):
                say(line)
            code = process.wait()
        finally:
            _end(process)
        raise UserError(f"MLflow's server ended by itself with code {code}; its last lines say why")


def _check_port(runs: Path, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            again = shlex.join(["starlab", "ui", "--runs", str(runs), "--port", str(port + 1)])
            raise UserError(f"port {port} cannot be used ({error.strerror}); give another: {again}") from None


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int) -> None:
    while process.poll() is None:
        with suppress(OSError), _OPENER.open(f"http://{_HOST}:{port}/health", timeout=5):
            return
        time.sleep(_POLL_SECONDS)
    raise UserError(f"MLflow's server ended with code {process.returncode} before it answered; its last lines say why")


def _experiment_lines(port: int) -> Iterator[str]:
    """Yield the address of each experiment's runs. Without the mode in the address, MLflow shows pages for language models."""
    address = f"http://{_HOST}:{port}"
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/experiments/search",
        data=json.dumps({"max_results": 20}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with suppress(OSError, ValueError), _OPENER.open(request, timeout=30) as answer:
        for found in json.load(answer).get("experiments", []):
            if found["name"] != "Default":
                yield f"  {found['name']}: {runs_page(address, found['experiment_id'])}"


def runs_page(server: str, experiment_id: str) -> str:
    """Return the address of an experiment's runs on an MLflow server, in the mode for model training."""
    return f"{server}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"


@contextmanager
def _exit_on_signal() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that the server is ended. Ctrl-C is an exception already."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before: dict[int, Any] = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_with_parent() -> None:
    """Have Linux send SIGTERM to this process when its parent dies, also by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and its workers, which are one process group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
