"""One run of ours, one run of MLflow's: found by its key, made if there is none, never two."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlab.experiments.credentials import without_secrets
from starlab.platform.runs.folder import RunFolder

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY_TAG = "starlab.key"
MODEL = "model"
"""Name of the model's folder among a run's artifacts (see registry.py)."""
_MAX_PARAMS = 100


def find_or_create(client: MlflowClient, folder: RunFolder) -> str | None:
    """The id of the MLflow run with this run's key; made if there is none. None while the parent has none yet."""
    run = folder.read_json("run.json")
    experiment = _experiment(client, run)
    found = _with_key(client, experiment, run["key"])
    if not found:
        tags = dict(run["tags"]) | {KEY_TAG: run["key"], "starlab.run_id": run["run_id"]}
        if run.get("parent"):
            parent = RunFolder(Path(run["parent"])).read_json("mlflow.json").get("run_id")
            if parent is None:
                return None
            tags["mlflow.parentRunId"] = parent
        client.create_run(experiment, run_name=run["run_id"], tags={key: without_secrets(text) for key, text in tags.items()})
        found = _with_key(client, experiment, run["key"])
    return found[0]


def send_params(client: MlflowClient, run_id: str, folder: RunFolder) -> None:
    """The whole spec as params; MLflow takes a repeat of the same values."""
    from mlflow.entities import Param

    params = [Param(key, without_secrets(str(value))) for key, value in flatten(folder.read_json("spec.json")).items()]
    for first in range(0, len(params), _MAX_PARAMS):
        client.log_batch(run_id, params=params[first : first + _MAX_PARAMS])


def delete_doubles(client: MlflowClient, run_id: str, folder: RunFolder) -> None:
    """Delete empty runs with our key that a server made late: it was asked, did not answer in time, and was asked again."""
    run = folder.read_json("run.json")
    for other in _with_key(client, _experiment(client, run), run["key"]):
        if other != run_id and not client.get_run(other).data.metrics:
            client.delete_run(other)


def register_model(client: MlflowClient, folder: RunFolder, run_id: str) -> str:
    """Make the uploaded model a version of the registered model that bears the experiment's name; once per run."""
    from mlflow.exceptions import MlflowException

    run, result = folder.read_json("run.json"), folder.read_json("result.json")
    name = run["experiment"]
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    found = client.search_model_versions(f"run_id = '{run_id}'")
    if found:  # made by a try that did not hear of it
        return str(found[0].version)
    tags = {"starlab.run_id": run["run_id"], "starlab.step": str(result["best_step"])}
    tags |= {f"starlab.{part}_top1": str(result[part]["top1"]) for part in ("val", "test") if part in result}
    source = f"runs:/{run_id}/{MODEL}"
    return str(client.create_model_version(name, source, run_id, tags=tags, await_creation_for=0).version)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _with_key(client: MlflowClient, experiment: str, key: str) -> list[str]:
    """Ids of the runs with this key, oldest first, so that everybody who asks agrees on the first."""
    found = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=20)
    return [run.info.run_id for run in sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))]


def _experiment(client: MlflowClient, run: Mapping[str, Any]) -> str:
    from mlflow.exceptions import MlflowException

    name = run["mlflow_experiment"]
    found = client.get_experiment_by_name(name)
    if found:
        return str(found.experiment_id)
    local = run["tracking_uri"].startswith("sqlite:")
    place = (Path(run["runs"]) / "mlartifacts" / name).as_uri() if local else None
    try:
        return str(client.create_experiment(name, artifact_location=place))
    except MlflowException:  # another run made it in the meantime
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)
