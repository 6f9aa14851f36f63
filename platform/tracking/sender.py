"""MLflow as a projection of the run's folder: whatever is not there yet is sent, in any number of tries.

Training never talks to MLflow. The driver's `Sender` thread (or `starlab sync`, later) reads the folder and sends what is
new; a dead or slow server delays the curves in MLflow and nothing else.

    mlflow.json   {"uri": …, "run_id": …, "offsets": {"journal.jsonl": 4711, …}, "artifacts": {…}, "status": "RUNNING"}
"""

from __future__ import annotations

import copy
import fcntl
import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlab.experiments.credentials import HIDDEN, without_password, without_secrets
from starlab.platform.errors import StarlabError, UserError
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import FILE, count_differences, count_points, journals, read_points_with_ends
from starlab.platform.tracking.mlflow_run import MODEL, delete_doubles, find_or_create, register_model, send_params

if TYPE_CHECKING:  # importing MLflow takes seconds: the sender's thread does it, while the workers start
    from mlflow import MlflowClient
    from mlflow.entities import Metric

_MAX_METRICS = 1000
_LAST_TRY_SECONDS = 30.0


class SendingElsewhereError(StarlabError):
    """Another process sends this run's points just now."""


class ParentUnknownError(StarlabError):
    """A trial's search is not in MLflow yet, so the trial cannot be put under it."""


def tracking_uri(uri: str | None, runs: Path) -> str:
    """The address in the spec, or sqlite under the runs folder."""
    return uri or f"sqlite:///{runs / 'mlflow.db'}"


def sync(folder: RunFolder, uri: str | None = None) -> int:
    """Send everything MLflow lacks of this run: params, tags, points, artifacts, model, status.

    Safe to repeat, and after a crash at any place: points keep the times of the journal, and MLflow drops exact repeats.

    Args:
        uri: the address with its password; None takes the stored one, which has none (see `stored_uri`).

    Returns:
        The number of points sent.

    Raises:
        MlflowException: the server refused or cannot be reached.
        ParentUnknownError: it is a trial, and its search was not sent yet.
        SendingElsewhereError: another process is at it.
        UserError: the address needs a password.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    _fail_fast()
    address = uri or stored_uri(folder)
    with _alone(folder):
        client = MlflowClient(address, registry_uri=address)
        state = folder.read_json("mlflow.json")
        if state.get("uri", without_password(address)) != without_password(address):
            state = {}  # another server than before: it has nothing yet
        try:
            return _send(client, folder, state, address)
        except MlflowException as error:
            # Gone, database and all. (A run that somebody deleted by hand is refused otherwise, and stays deleted.)
            if error.error_code != "RESOURCE_DOES_NOT_EXIST" or "run_id" not in state:
                raise
            return _send(client, folder, {}, address)


def _send(client: MlflowClient, folder: RunFolder, state: dict[str, Any], address: str) -> int:
    before = copy.deepcopy(state)
    run = folder.read_json("run.json")
    if "run_id" not in state:
        found = find_or_create(client, folder)
        if found is None:
            raise ParentUnknownError(
                f"{folder.path.name} is a trial of a search that {without_password(address)} has not got yet"
            )
        send_params(client, found, folder)
        state = {
            "uri": without_password(address),
            "run_id": found,
            "status": "RUNNING",
            "offsets": {},
            "artifacts": {},
            "tags": {},
        }
        folder.write_json("mlflow.json", state)
    run_id, sent = state["run_id"], 0
    for path in journals(folder.path):
        for metrics, end in _chunks(path, state["offsets"].get(path.name, 0)):
            client.log_batch(run_id, metrics=metrics)
            state["offsets"][path.name] = end
            folder.write_json("mlflow.json", state)
            sent += len(metrics)
    if run["status"] != "RUNNING":
        _send_artifacts(client, folder, state)
        tags = {**run["tags"], "starlab.replayed_differently": str(count_differences(folder.path / FILE))}
        for key, value in tags.items():
            if state["tags"].get(key) != value:
                client.set_tag(run_id, key, without_secrets(value))
        state["tags"] = tags
        if state["status"] != run["status"]:
            delete_doubles(client, run_id, folder)
            client.set_terminated(run_id, run["status"])
            state["status"] = run["status"]
    elif state["status"] != "RUNNING":
        client.update_run(run_id, status="RUNNING")
        state["status"] = "RUNNING"
    if state != before:
        folder.write_json("mlflow.json", state)
    return sent


def is_sent(folder: RunFolder) -> bool:
    """Whether MLflow was told how the run ended, which is the last thing that it is told."""
    return bool(folder.read_json("mlflow.json").get("status") == folder.read_json("run.json")["status"])


def sync_all(folders: Sequence[RunFolder], say: Callable[[str], None]) -> None:
    """`sync` each run, a search before its trials, and say what was sent; one that fails does not keep the others.

    Raises:
        StarlabError: something is left; names the runs and why.
    """
    failed = []
    for folder in dict.fromkeys(itertools.chain.from_iterable((run, *run.trials()) for run in folders)):
        sender = Sender(folder)
        sender.send_now()
        total = sum(count_points(path) for path in journals(folder.path))
        where = folder.read_json("run.json")["tracking_uri"]
        if sender.problem:
            failed.append(f"{folder.path.name}: {sender.problem}")
        else:
            say(f"{folder.path.name}: {sender.sent} points sent to {where}, which now has all {total}")
    if failed:
        raise StarlabError("not everything was sent; the same command goes on from there.\n" + "\n".join(failed))


def stored_uri(folder: RunFolder) -> str:
    """The tracking address of a run, whose password, if it has one, was never stored: MLFLOW_TRACKING_URI gives it again.

    An http address may leave it to MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.

    Raises:
        UserError: nobody gives the password.
    """
    stored = str(folder.read_json("run.json")["tracking_uri"])
    if f":{HIDDEN}@" not in stored:
        return stored
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    if without_password(given) == stored:
        return given
    scheme, _, rest = stored.partition("://")
    if scheme in ("http", "https") and os.environ.get("MLFLOW_TRACKING_PASSWORD"):
        return f"{scheme}://{rest.partition('@')[2]}"
    raise UserError(
        f"{folder.path.name} was tracked at {stored}, and passwords are not stored: set MLFLOW_TRACKING_URI to the whole "
        "address, or, for a server, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    )


class Sender:
    """Keeps MLflow up to date with a run while it trains, from a thread of the driver."""

    def __init__(self, folder: RunFolder, uri: str | None = None, every_seconds: float = 2.0) -> None:
        self._folder, self._uri, self._every_seconds = folder, uri, every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="starlab-sender", daemon=True)
        self.problem: str | None = None
        """Why the last try failed; None when all is sent."""
        self.sent = 0
        """Points sent so far."""

    def __enter__(self) -> Sender:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """One last try, half a minute at most, and longer the more there is to upload."""
        self._stop.set()
        self._thread.join(timeout=_LAST_TRY_SECONDS + _artifact_seconds(self._folder))
        if self._thread.is_alive():
            self.problem = "the tracking server does not answer"

    def _run(self) -> None:
        wait = self._every_seconds
        while not self._stop.wait(wait):
            self.send_now()
            wait = self._every_seconds if self.problem is None else min(30.0, 2 * wait)
        self.send_now()

    def send_now(self) -> None:
        """Send what is new; a failure is kept in `problem`."""
        try:
            self.sent += sync(self._folder, self._uri)
        except Exception as error:  # whatever tracking does, training goes on
            self.problem = without_secrets(f"{type(error).__name__}: {error}")
        else:
            self.problem = None


def serve(runs: Path, port: int, say: Callable[[str], None]) -> None:
    """Serve MLflow's page over the runs folder on this machine until it is ended.

    Raises:
        UserError: nothing was recorded there.
    """
    if not (runs / "mlflow.db").is_file():
        raise UserError(f"no {runs / 'mlflow.db'}: nothing was recorded there yet; start with: starlab demo, or name --runs")
    say(f"MLflow on http://127.0.0.1:{port} over {runs}; Ctrl-C ends it")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", tracking_uri(None, runs)]
    command += ["--artifacts-destination", str(runs / "mlartifacts"), "--host", "127.0.0.1", "--port", str(port)]
    # Its job runners are eight more processes that nobody here needs, and one more way in.
    code = subprocess.call(command, env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
    if code not in (0, -signal.SIGINT, -signal.SIGTERM):
        raise UserError(
            f"MLflow's server ended with code {code}; if port {port} is taken, give another: starlab ui --port 5001"
        )


@contextmanager
def _alone(folder: RunFolder) -> Iterator[None]:
    """One sender at a time; the lock ends with the process that holds it."""
    with (folder.path / ".mlflow.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SendingElsewhereError(f"another process sends the points of {folder.path.name} just now") from None
        yield


def _send_artifacts(client: MlflowClient, folder: RunFolder, state: dict[str, Any]) -> None:
    before = os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(int(float(before) + _artifact_seconds(folder)))
    try:
        for path in _artifact_files(folder):
            name, stamp = path.relative_to(folder.artifacts), path.stat().st_mtime_ns
            if state["artifacts"].get(str(name)) != stamp:
                client.log_artifact(state["run_id"], str(path), None if str(name.parent) == "." else str(name.parent))
                state["artifacts"][str(name)] = stamp
                folder.write_json("mlflow.json", state)
    finally:
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = before
    if (folder.artifacts / MODEL).is_dir() and "model_version" not in state:
        state["model_version"] = register_model(client, folder, state["run_id"])


def _artifact_files(folder: RunFolder) -> list[Path]:
    return sorted(path for path in folder.artifacts.rglob("*") if path.is_file())


def _artifact_seconds(folder: RunFolder) -> float:
    """What an upload may take: a second per megabyte."""
    return sum(path.stat().st_size for path in _artifact_files(folder)) / 1e6


def _chunks(path: Path, offset: int) -> Iterator[tuple[list[Metric], int]]:
    from mlflow.entities import Metric

    metrics: list[Metric] = []
    end = offset
    for point, end in read_points_with_ends(path, offset):
        metrics.append(Metric(point.key, point.value, point.time_ms, point.step))
        if len(metrics) == _MAX_METRICS:
            yield metrics, end
            metrics = []
    if metrics:
        yield metrics, end


def _fail_fast() -> None:
    # MLflow's own retries hold a caller for four minutes; the Sender's loop is the retry here.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it tells that it makes its tables
