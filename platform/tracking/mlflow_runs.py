"""Finds or creates the one MLflow run that belongs to a run's folder, by the run's key."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from starlab.experiments.credentials import without_secrets
from starlab.experiments.spec import flatten
from starlab.platform.errors import StarlabError
from starlab.platform.runs.folder import SPEC, RunFolder
from starlab.platform.runs.metric_names import BEST_VAL_TOP1
from starlab.platform.runs.records import MlflowState, RunInfo
from starlab.platform.tracking.description import dataset_inputs, description_tags, run_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY_TAG = "starlab.key"
_MAX_PARAMS = 100
_EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # servers before 3.17 open it in the mode for model training
    "mlflow.experiment.primaryMetric.name": BEST_VAL_TOP1,
    "mlflow.experiment.primaryMetric.greaterIsBetter": "True",
}


class DeletedExperimentError(StarlabError):
    """The experiment of the run was deleted in MLflow."""


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
        client.create_run(
            experiment, run_name=run_name(folder), tags={key: without_secrets(text) for key, text in tags.items()}
        )
        found = _with_key(client, experiment, run.key)
    return found[0]


def send_description(client: MlflowClient, run_id: str, folder: RunFolder) -> None:
    """Send the run's name, description, source and datasets. A repeated call changes nothing."""
    from mlflow.entities import RunTag

    tags = [RunTag(key, without_secrets(text)) for key, text in description_tags(folder).items()]
    client.log_batch(run_id, tags=tags)
    if inputs := dataset_inputs(folder):
        client.log_inputs(run_id, inputs)


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


def _with_key(client: MlflowClient, experiment: str, key: str) -> list[str]:
    """Return the ids of the runs with this key, oldest first, so that every process picks the same one."""
    found = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=20)
    return [run.info.run_id for run in sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))]


def _experiment(client: MlflowClient, run: RunInfo) -> str:
    from mlflow.exceptions import MlflowException

    name = run.mlflow_experiment
    found = client.get_experiment_by_name(name)
    if found is None:
        local = run.tracking_uri.startswith("sqlite:")
        place = (Path(run.runs) / "mlartifacts" / name).as_uri() if local else None
        try:
            return str(client.create_experiment(name, artifact_location=place, tags=_EXPERIMENT_TAGS))
        except MlflowException:  # another run created it in the meantime
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    refuse_deleted(client, run)
    for key, value in _EXPERIMENT_TAGS.items():
        if key not in found.tags:
            client.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id)


def refuse_deleted(client: MlflowClient, run: RunInfo) -> None:
    """Raise `DeletedExperimentError` if the run's experiment was deleted. The message has the commands that help."""
    found = client.get_experiment_by_name(run.mlflow_experiment)
    if found is None or found.lifecycle_stage != "deleted":
        return
    server, number = shlex.quote(run.tracking_uri), found.experiment_id
    raise DeletedExperimentError(
        f"the experiment '{found.name}' was deleted in MLflow; restore it with: MLFLOW_TRACKING_URI={server} mlflow "
        f"experiments restore --experiment-id {number}; or delete it for good with: mlflow gc --backend-store-uri {server} "
        f"--experiment-ids {number}; or choose another name with tracking.experiment=NAME"
    )
