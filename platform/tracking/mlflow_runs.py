"""Finds or creates the one MLflow run that belongs to a run's folder, by the run's key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from starlab.experiments.credentials import without_secrets
from starlab.experiments.spec import flatten
from starlab.platform.runs.folder import MODEL, SPEC, RunFolder
from starlab.platform.runs.records import MlflowState, Result, RunInfo
from starlab.platform.runs.search_records import ROW, SEED

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY_TAG = "starlab.key"
_MAX_PARAMS = 100


def find_or_create(client: MlflowClient, folder: RunFolder) -> str | None:
    """Return the id of the MLflow run with this run's key. It is created if it does not exist.

    Returns None for a trial whose search is not in MLflow yet.
    """
    run = folder.info
    experiment = _experiment(client, run)
    found = _with_key(client, experiment, run.key)
    if not found:
        tags = run.tags | {KEY_TAG: run.key, "starlab.run_id": run.run_id}
        if run.parent:
            parent = RunFolder(Path(run.parent)).read(MlflowState)
            if parent is None:
                return None
            tags["mlflow.parentRunId"] = parent.run_id
        name = f"{tags[ROW]}, seed {tags[SEED]}" if ROW in tags else run.run_id
        client.create_run(experiment, run_name=name, tags={key: without_secrets(text) for key, text in tags.items()})
        found = _with_key(client, experiment, run.key)
    return found[0]


def send_params(client: MlflowClient, run_id: str, folder: RunFolder) -> None:
    """Send the whole spec as params. MLflow accepts repeated params with the same values."""
    from mlflow.entities import Param

    params = [Param(key, without_secrets(str(value))) for key, value in flatten(folder.read_json(SPEC)).items()]
    for first in range(0, len(params), _MAX_PARAMS):
        client.log_batch(run_id, params=params[first : first + _MAX_PARAMS])


def delete_doubles(client: MlflowClient, run_id: str, folder: RunFolder) -> None:
    """Delete empty duplicates of this run. A server creates one when it handles a request after the client timed out."""
    run = folder.info
    for other in _with_key(client, _experiment(client, run), run.key):
        if other != run_id and not client.get_run(other).data.metrics:
            client.delete_run(other)


def register_model(client: MlflowClient, folder: RunFolder, run_id: str) -> str:
    """Register the uploaded model as a version of the model named after the experiment, once per run. Returns the version."""
    from mlflow.exceptions import MlflowException

    run, result = folder.info, folder.require(Result)
    name = run.experiment
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"run_id = '{run_id}'")
    if versions:  # created by an earlier request that got no answer
        return str(versions[0].version)
    tags = {"starlab.run_id": run.run_id, "starlab.step": str(result.best_step)}
    tags |= {
        f"starlab.{part}_top1": str(found["top1"]) for part, found in (("val", result.val), ("test", result.test)) if found
    }
    source = f"runs:/{run_id}/{MODEL}"
    return str(client.create_model_version(name, source, run_id, tags=tags, await_creation_for=0).version)


def _with_key(client: MlflowClient, experiment: str, key: str) -> list[str]:
    """Return the ids of the runs with this key, oldest first, so that every process picks the same one."""
    found = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=20)
    return [run.info.run_id for run in sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))]


def _experiment(client: MlflowClient, run: RunInfo) -> str:
    from mlflow.exceptions import MlflowException

    name = run.mlflow_experiment
    found = client.get_experiment_by_name(name)
    if found:
        return str(found.experiment_id)
    local = run.tracking_uri.startswith("sqlite:")
    place = (Path(run.runs) / "mlartifacts" / name).as_uri() if local else None
    try:
        return str(client.create_experiment(name, artifact_location=place))
    except MlflowException:  # another run created it in the meantime
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)
