"""MLflow as a projection of the run's folder: whatever is not there yet is sent, in any number of tries.

Training never talks to MLflow. The driver's `Sender` thread (or `starlab sync`, later) reads the folder and sends what is
new. A dead or slow server delays the curves in MLflow and nothing else.

    mlflow.json   {"uri": …, "run_id": …, "offsets": {"journal.jsonl": 4711, …}, "artifacts": {…}, "status": "RUNNING"}
"""

from __future__ import annotations

import copy
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from starlab.experiments.credentials import HIDDEN, without_password, without_secrets
from starlab.platform.errors import StarlabError, UserError
from starlab.platform.runs.background import Background
from starlab.platform.runs.folder import MODEL, RunFolder
from starlab.platform.runs.journal import FILE, count_differences, count_points, journals, read_points_with_ends
from starlab.platform.runs.locking import file_lock
from starlab.platform.runs.records import MlflowState
from starlab.platform.tracking.mlflow_runs import delete_doubles, find_or_create, register_model, send_params

if TYPE_CHECKING:  # importing MLflow takes seconds: the sender's thread does it, while the workers start
    from mlflow import MlflowClient
    from mlflow.entities import Metric

_MAX_METRICS = 1000
_LAST_TRY_SECONDS = 30.0


class SendingElsewhereError(StarlabError):
    """Another process sends this run's points just now."""


class ParentUnknownError(StarlabError):
    """A trial's search is not in MLflow yet, so the trial cannot be put under it."""


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
        state = folder.read(MlflowState)
        if state and state.uri != without_password(address):
            state = None  # another server than before: it has nothing yet
        try:
            return _send(client, folder, state, address)
        except MlflowException as error:
            # Gone, database and all. (A run that was deleted by hand is refused with another code, and stays deleted.)
            if error.error_code != "RESOURCE_DOES_NOT_EXIST" or state is None:
                raise
            return _send(client, folder, None, address)


def _send(client: MlflowClient, folder: RunFolder, state: MlflowState | None, address: str) -> int:
    state = state or _begin(client, folder, address)
    before, run = copy.deepcopy(state), folder.info
    sent = 0
    for path in journals(folder.path):
        for metrics, end in _chunks(path, state.offsets.get(path.name, 0)):
            client.log_batch(state.run_id, metrics=metrics)
            state.offsets[path.name] = end
            folder.write(state)
            sent += len(metrics)
    if run.status != "RUNNING":
        _send_artifacts(client, folder, state)
        tags = {**run.tags, "starlab.replayed_differently": str(count_differences(folder.path / FILE))}
        for key, value in tags.items():
            if state.tags.get(key) != value:
                client.set_tag(state.run_id, key, without_secrets(value))
        state.tags = tags
        if state.status != run.status:
            delete_doubles(client, state.run_id, folder)
            client.set_terminated(state.run_id, run.status)
            state.status = run.status
    elif state.status != "RUNNING":
        client.update_run(state.run_id, status="RUNNING")
        state.status = "RUNNING"
    if state != before:
        folder.write(state)
    return sent


def _begin(client: MlflowClient, folder: RunFolder, address: str) -> MlflowState:
    """Create the MLflow run, or find it, and send the params."""
    run_id = find_or_create(client, folder)
    if run_id is None:
        raise ParentUnknownError(f"{folder.path.name} is a trial of a search that {without_password(address)} has not got yet")
    send_params(client, run_id, folder)
    state = MlflowState(uri=without_password(address), run_id=run_id)
    folder.write(state)
    return state


def is_sent(folder: RunFolder) -> bool:
    """Whether MLflow has how the run ended, which is sent last."""
    state = folder.read(MlflowState)
    return state is not None and state.status == folder.info.status


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
        where = folder.info.tracking_uri
        if sender.problem:
            failed.append(f"{folder.path.name}: {sender.problem}")
        else:
            say(f"{folder.path.name}: {sender.sent} points sent to {where}, which now has all {total}")
    if failed:
        raise StarlabError("not everything was sent; the same command goes on from there.\n" + "\n".join(failed))


def stored_uri(folder: RunFolder) -> str:
    """The tracking address of a run. Its password, if it has one, was never stored: MLFLOW_TRACKING_URI gives it again.

    An http address may leave it to MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.

    Raises:
        UserError: the password is missing.
    """
    stored = folder.info.tracking_uri
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
        self._wait = every_seconds
        self._sending = Background("starlab-sender", self._send_in_turn, every_seconds, last_call=True)
        self.problem: str | None = None
        """Why the last try failed; None when all is sent."""
        self.sent = 0
        """Points sent so far."""

    def __enter__(self) -> Self:
        self._sending.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Try a last time, for half a minute at most, and longer the more there is to upload."""
        if not self._sending.stop(_LAST_TRY_SECONDS + _artifact_seconds(self._folder)):
            self.problem = "the tracking server does not answer"

    def _send_in_turn(self) -> float:
        self.send_now()
        self._wait = self._every_seconds if self.problem is None else min(30.0, 2 * self._wait)
        return self._wait

    def send_now(self) -> None:
        """Send what is new. A failure is kept in `problem`."""
        try:
            self.sent += sync(self._folder, self._uri)
        except Exception as error:  # whatever tracking does, training goes on
            self.problem = without_secrets(f"{type(error).__name__}: {error}")
        else:
            self.problem = None


@contextmanager
def _alone(folder: RunFolder) -> Iterator[None]:
    """One sender at a time."""
    with ExitStack() as stack:
        try:
            stack.enter_context(file_lock(folder.path / ".mlflow.lock", wait=False))
        except BlockingIOError:
            raise SendingElsewhereError(f"another process sends the points of {folder.path.name} just now") from None
        yield


def _send_artifacts(client: MlflowClient, folder: RunFolder, state: MlflowState) -> None:
    before = os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(int(float(before) + _artifact_seconds(folder)))
    try:
        for path in _artifact_files(folder):
            name, stamp = path.relative_to(folder.artifacts), path.stat().st_mtime_ns
            if state.artifacts.get(str(name)) != stamp:
                client.log_artifact(state.run_id, str(path), None if str(name.parent) == "." else str(name.parent))
                state.artifacts[str(name)] = stamp
                folder.write(state)
    finally:
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = before
    if (folder.artifacts / MODEL).is_dir() and state.model_version is None:
        state.model_version = register_model(client, folder, state.run_id)


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
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it reports every table that it creates
