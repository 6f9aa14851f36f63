"""MLflow as a projection of the run's folder: whatever is not there yet is sent, in any number of tries.

Training never talks to MLflow. The driver's `Sender` thread (or `starlab sync`, later) reads the folder and sends what is
new; a dead or slow server delays the curves in MLflow and nothing else.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlab.platform.errors import UserError
from starlab.platform.journal import FILE, read_points_with_ends
from starlab.platform.run_folder import RunFolder

if TYPE_CHECKING:  # importing MLflow takes seconds: the sender's thread does it, while the workers start
    from mlflow import MlflowClient
    from mlflow.entities import Metric

_KEY_TAG = "starlab.key"
_MAX_METRICS, _MAX_PARAMS = 1000, 100


def tracking_uri(uri: str | None, runs: Path) -> str:
    """The address in the spec, or sqlite under the runs folder."""
    return uri or f"sqlite:///{runs / 'mlflow.db'}"


def sync(folder: RunFolder) -> int:
    """Send everything MLflow lacks of this run: params, tags, points, artifacts, status. Returns the number of points sent.

    Safe to repeat, and after a crash at any place: points keep the times of the journal, and MLflow drops exact repeats.

    Raises:
        MlflowException: the server refused or cannot be reached.
    """
    from mlflow import MlflowClient

    _fail_fast()

    run = folder.read_json("run.json")
    client = MlflowClient(run["tracking_uri"])
    state = folder.read_json("mlflow.json")
    if "run_id" not in state:
        mlflow_id = _find_or_create(client, run, folder)
        if mlflow_id is None:
            return 0
        state = {"run_id": mlflow_id, "offset": 0, "artifacts": {}, "status": "RUNNING"}
        folder.write_json("mlflow.json", state)
    sent = 0
    for metrics, end in _chunks(folder.path / FILE, state["offset"]):
        client.log_batch(state["run_id"], metrics=metrics)
        state["offset"] = end
        folder.write_json("mlflow.json", state)
        sent += len(metrics)
    if run["status"] != "RUNNING":
        _send_artifacts(client, folder, state)
        if state["status"] != run["status"]:
            for key, value in run["tags"].items():
                client.set_tag(state["run_id"], key, value)
            client.set_terminated(state["run_id"], run["status"])
            state["status"] = run["status"]
    elif state["status"] != "RUNNING":
        client.update_run(state["run_id"], status="RUNNING")
        state["status"] = "RUNNING"
    folder.write_json("mlflow.json", state)
    return sent


class Sender:
    """Keeps MLflow up to date with a run while it trains, from a thread of the driver."""

    def __init__(self, folder: RunFolder, every_seconds: float = 2.0) -> None:
        self._folder, self._every_seconds = folder, every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="starlab-sender", daemon=True)
        self.problem: str | None = None
        """Why the last try failed; None when all is sent."""

    def __enter__(self) -> Sender:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """One last try, half a minute at most."""
        self._stop.set()
        self._thread.join(timeout=30)
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
            sync(self._folder)
        except Exception as error:  # whatever tracking does, training goes on
            self.problem = f"{type(error).__name__}: {error}"
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
    code = subprocess.call(command)
    if code not in (0, -signal.SIGINT, -signal.SIGTERM):
        raise UserError(
            f"MLflow's server ended with code {code}; if port {port} is taken, give another: starlab ui --port 5001"
        )


def _find_or_create(client: MlflowClient, run: Mapping[str, Any], folder: RunFolder) -> str | None:
    """The MLflow run with this run's key; made if there is none. None while the parent has none yet."""
    experiment = _experiment(client, run["mlflow_experiment"], Path(run["runs"]), run["tracking_uri"])
    found = client.search_runs([experiment], f"tags.`{_KEY_TAG}` = '{run['key']}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = dict(run["tags"]) | {_KEY_TAG: run["key"], "starlab.run_id": run["run_id"]}
    if run.get("parent"):
        parent = RunFolder(Path(run["parent"])).read_json("mlflow.json").get("run_id")
        if parent is None:
            return None
        tags["mlflow.parentRunId"] = parent
    made = client.create_run(experiment, run_name=run["run_id"], tags=tags)
    from mlflow.entities import Param

    params = [Param(key, str(value)) for key, value in flatten(folder.read_json("spec.json")).items()]
    for first in range(0, len(params), _MAX_PARAMS):
        client.log_batch(made.info.run_id, params=params[first : first + _MAX_PARAMS])
    return str(made.info.run_id)


def _experiment(client: MlflowClient, name: str, runs: Path, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found:
        return str(found.experiment_id)
    try:
        local = uri.startswith("sqlite:")
        return str(client.create_experiment(name, artifact_location=(runs / "mlartifacts" / name).as_uri() if local else None))
    except MlflowException:  # another run made it in the meantime
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def _send_artifacts(client: MlflowClient, folder: RunFolder, state: dict[str, Any]) -> None:
    for path in sorted(folder.artifacts.glob("*")):
        stamp = path.stat().st_mtime_ns
        if state["artifacts"].get(path.name) != stamp:
            client.log_artifact(state["run_id"], str(path))
            state["artifacts"][path.name] = stamp


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


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _fail_fast() -> None:
    # MLflow's own retries hold a caller for four minutes; the Sender's loop is the retry here.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it tells that it makes its tables
