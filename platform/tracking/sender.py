"""Sends the contents of a run's folder to MLflow, in any number of attempts.

Training never talks to MLflow. The driver's `Sender` thread, or `starlab sync` later, reads the folder and sends what is new. A
dead or slow server delays the curves in MLflow and nothing else.

    mlflow.json   {"uri": …, "run_id": …, "offsets": {"journal.jsonl": 4711, …}, "artifacts": {…}, "status": "RUNNING"}
"""

from __future__ import annotations

import copy
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from starlab.experiments.credentials import HIDDEN, without_password, without_secrets
from starlab.platform.errors import StarlabError, UserError
from starlab.platform.runs.background import Background
from starlab.platform.runs.folder import MODEL, RunFolder
from starlab.platform.runs.journal import FILE, count_differences, count_points, journals, read_points
from starlab.platform.runs.locking import file_lock
from starlab.platform.runs.records import MlflowState
from starlab.platform.tracking.logged_model import log_model, register_model
from starlab.platform.tracking.metric_chunks import importance, metric_chunks
from starlab.platform.tracking.mlflow_client import fail_fast, host_refused
from starlab.platform.tracking.mlflow_runs import delete_doubles, find_or_create, refuse_deleted, send_description, send_params

if TYPE_CHECKING:  # importing MLflow takes seconds, so the sender's thread does it
    from mlflow import MlflowClient

_LAST_TRY_SECONDS = 30.0
_WAITS_PER_SEND = 10
"""The wait after a send, in times of its duration: hundreds of runs that send to one server slow down together with it. With a
fixed wait their requests would queue there until they time out and are sent again."""
_MOST_SECONDS = 60.0


class SendingElsewhereError(StarlabError):
    """Another process is sending the points of this run."""


class ParentUnknownError(StarlabError):
    """The search that a trial belongs to is not in MLflow yet, so the trial cannot be nested under it."""


class HostRefusedError(StarlabError):
    """The MLflow server does not accept requests for the name by which it is addressed."""


def sync(folder: RunFolder, uri: str | None = None) -> int:
    """Send everything of this run that MLflow does not have yet: params, tags, points, artifacts, model, status.

    The call can be repeated, also after a crash at any point: points keep the times of the journal, and MLflow drops exact
    repeats.

    Args:
        uri: Address of the tracking server with its password; None uses `stored_uri`.

    Returns:
        The number of points sent.

    Raises:
        DeletedExperimentError: The run's experiment was deleted in MLflow.
        HostRefusedError: The server does not accept its own address; the message names the option to start it with.
        MlflowException: The server refused the request or cannot be reached.
        ParentUnknownError: The run is a trial, and its search was not sent yet.
        SendingElsewhereError: Another process is sending this run.
        UserError: The address needs a password that is not known.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    fail_fast()
    address = uri or stored_uri(folder)
    with _alone(folder):
        client = MlflowClient(address, registry_uri=address)
        state = folder.read(MlflowState)
        if state and state.uri != without_password(address):
            state = None  # a different server than before, which has nothing yet
        try:
            return _send(client, folder, state, address)
        except MlflowException as error:
            if "Invalid Host header" in str(error):
                raise HostRefusedError(host_refused(folder.info.tracking_uri)) from None
            # The server lost the run, e.g. with its database. (A run deleted by hand gives another code and stays deleted.)
            if error.error_code != "RESOURCE_DOES_NOT_EXIST" or state is None:
                if error.error_code in ("INVALID_PARAMETER_VALUE", "INVALID_STATE"):
                    refuse_deleted(client, folder.info)
                raise
            return _send(client, folder, None, address)


def _send(client: MlflowClient, folder: RunFolder, state: MlflowState | None, address: str) -> int:
    state = state or _begin(client, folder, address)
    before, run = copy.deepcopy(state), folder.info
    sent = 0
    for path in journals(folder.path):
        if path.name != FILE and run.status == "RUNNING" and not state.offsets.get(FILE):
            continue  # the machine's metrics come after the model's: see `importance`
        for metrics, end in metric_chunks(path, state.offsets.get(path.name, 0)):
            client.log_batch(state.run_id, metrics=sorted(metrics, key=lambda metric: importance(metric.key)))
            state.offsets[path.name] = end
            folder.write(state)
            sent += len(metrics)
    tags = dict(run.tags)
    if run.status != "RUNNING":
        _send_artifacts(client, folder, state)
        tags["starlab.replayed_differently"] = str(count_differences(folder.path / FILE))
    for key, value in tags.items():
        if state.tags.get(key) != value:
            client.set_tag(state.run_id, key, without_secrets(value))
            state.tags[key] = value
    if run.status != "RUNNING":
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
    """Find or create the MLflow run and send the params."""
    run_id = find_or_create(client, folder)
    if run_id is None:
        raise ParentUnknownError(
            f"{folder.path.name} is a trial of a search that {without_password(address)} does not have yet"
        )
    send_params(client, run_id, folder)
    send_description(client, run_id, folder)
    state = MlflowState(uri=without_password(address), run_id=run_id)
    folder.write(state)
    return state


def is_sent(folder: RunFolder) -> bool:
    """Return whether MLflow has the current status of the run, which is sent last."""
    state = folder.read(MlflowState)
    return state is not None and state.status == folder.info.status


def sync_all(folders: Sequence[RunFolder], say: Callable[[str], None], skipped: Sequence[str] = ()) -> None:
    """Call `sync` for each run, and for a search also for its trials. A run that fails does not stop the others.

    Args:
        say: Called with a line per run.
        skipped: Why further runs could not even be read; they count as not sent.

    Raises:
        StarlabError: Some runs could not be sent completely. The message lists them and the reasons.
    """
    failed = list(skipped)
    for folder in dict.fromkeys(itertools.chain.from_iterable((run, *run.trials()) for run in folders)):
        sender = Sender(folder)
        sender.send_now()
        if sender.problem:
            failed.append(f"{folder.path.name}: {sender.problem}")
        else:
            total = sum(count_points(path) for path in journals(folder.path))
            where = folder.info.tracking_uri
            say(f"{folder.path.name}: {sender.sent} points sent to {where}, which now has all {total}")
    if failed:
        raise StarlabError("not everything was sent; run the same command again to send the rest.\n" + "\n".join(failed))


def stored_uri(folder: RunFolder) -> str:
    """Return the tracking address of a run, with its password if it has one.

    Passwords are not stored, so MLFLOW_TRACKING_URI must contain it. For an http address, MLFLOW_TRACKING_USERNAME and
    MLFLOW_TRACKING_PASSWORD can be set instead.

    Raises:
        UserError: The address has a password, and no variable gives it.
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
        f"{folder.path.name} was tracked at {stored}, and passwords are not stored: set MLFLOW_TRACKING_URI to the full "
        "address, or, for a server, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    )


class Sender:
    """Sends a run to MLflow while it trains, from a thread of the driver."""

    def __init__(
        self, folder: RunFolder, uri: str | None = None, every_seconds: float = 2.0, *, patience_seconds: float = 0.0
    ) -> None:
        """Prepare the thread.

        Args:
            folder: Folder of the run.
            uri: Address of the tracking server with its password; None uses `stored_uri`.
            every_seconds: The shortest wait between two sends.
            patience_seconds: How long the first send waits for the first point. Importing MLflow and making its database take
                two seconds of processor time, which the start of the workers needs.
        """
        self._folder, self._uri, self._every_seconds = folder, uri, every_seconds
        self._wait = every_seconds
        self._deadline = time.monotonic() + patience_seconds
        self._sending = Background("starlab-sender", self._send_in_turn, every_seconds, last_call=True)
        self.problem: str | None = None
        """Why the last attempt failed; None if everything was sent."""
        self.sent = 0
        """Number of points sent so far."""

    def __enter__(self) -> Self:
        self._sending.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Send what is left. Waits at most 30 seconds, 90 if nothing was sent yet, and one second per megabyte of artifacts."""
        first = not (self._folder.path / MlflowState.FILE).exists()  # MLflow may have to be imported and its database made
        if not self._sending.stop((3 if first else 1) * _LAST_TRY_SECONDS + _artifact_seconds(self._folder)):
            self.problem = "the tracking server does not answer"

    def _send_in_turn(self) -> float:
        began = time.monotonic()
        if began < self._deadline and not self._sending.stopped and next(read_points(self._folder.path / FILE), None) is None:
            return self._every_seconds
        self.send_now()
        if self.problem is None:
            self._wait = min(_MOST_SECONDS, max(self._every_seconds, _WAITS_PER_SEND * (time.monotonic() - began)))
        else:
            self._wait = min(30.0, 2 * self._wait)
        return self._wait

    def send_now(self) -> None:
        """Send what is new. If that fails, `problem` says why."""
        try:
            self.sent += sync(self._folder, self._uri)
        except StarlabError as error:
            self.problem = without_secrets(str(error))
        except Exception as error:  # no failure of tracking may end the training
            self.problem = without_secrets(f"{type(error).__name__}: {error}")
        else:
            self.problem = None


@contextmanager
def _alone(folder: RunFolder) -> Iterator[None]:
    """Hold the lock that lets only one process send this run."""
    with ExitStack() as stack:
        try:
            stack.enter_context(file_lock(folder.path / ".mlflow.lock", wait=False))
        except BlockingIOError:
            raise SendingElsewhereError(f"another process sends the points of {folder.path.name} at the moment") from None
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
        if (folder.artifacts / MODEL).is_dir() and state.model_version is None:
            log_model(client, folder, state)
            state.model_version = register_model(client, folder, state)
            folder.write(state)
    finally:
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = before


def _artifact_files(folder: RunFolder) -> list[Path]:
    """Return the files of the artifacts but those of the model, which MLflow keeps with the logged model."""
    model = folder.artifacts / MODEL
    return sorted(path for path in folder.artifacts.rglob("*") if path.is_file() and model not in path.parents)


def _artifact_seconds(folder: RunFolder) -> float:
    """Return the seconds that uploading the artifacts and the model may take, one per megabyte."""
    return sum(path.stat().st_size for path in folder.artifacts.rglob("*") if path.is_file()) / 1e6
