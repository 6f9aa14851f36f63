"""Records a run's best weights as an MLflow model with its metrics, and registers it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlab.platform.runs.folder import MODEL, SPEC, RunFolder
from starlab.platform.runs.journal import FILE, Point, read_points
from starlab.platform.runs.metric_names import TEST, VAL
from starlab.platform.runs.records import FINGERPRINT, MlflowState, Result
from starlab.platform.tracking.description import part_digest

if TYPE_CHECKING:
    from mlflow import MlflowClient


def log_model(client: MlflowClient, folder: RunFolder, state: MlflowState) -> None:
    """Upload the model in the run's artifacts, with its metrics, as the output of the MLflow run; record it in `state`.

    A repeated call continues where an earlier one stopped.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    result = folder.require(Result)
    if state.model_id is None:
        state.model_id = _find_or_create(client, folder, state.run_id, result)
        folder.write(state)
    if client.get_logged_model(state.model_id).status == LoggedModelStatus.READY:
        return
    client.log_model_artifacts(state.model_id, str(folder.artifacts / MODEL))
    client.log_outputs(state.run_id, [LoggedModelOutput(state.model_id, result.best_step)])
    _link_metrics(client, folder, state, result)
    client.finalize_logged_model(state.model_id, LoggedModelStatus.READY)


def register_model(client: MlflowClient, folder: RunFolder, state: MlflowState) -> str:
    """Register the model as a version of the model named after the experiment, once per run. Returns the version."""
    from mlflow.exceptions import MlflowException

    run, result = folder.info, folder.require(Result)
    name = run.experiment
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"run_id = '{state.run_id}'")
    if versions:  # created by an earlier request that got no answer
        return str(versions[0].version)
    tags = {"starlab.run_id": run.run_id, "starlab.step": str(result.best_step)}
    tags |= {
        f"starlab.{part}_top1": str(found["top1"]) for part, found in (("val", result.val), ("test", result.test)) if found
    }
    assert state.model_id is not None
    # Not models:/<id>, which a client without a server looks up at its default address.
    source = client.get_logged_model(state.model_id).artifact_location
    created = client.create_model_version(name, source, state.run_id, tags=tags, await_creation_for=0, model_id=state.model_id)
    return str(created.version)


def _find_or_create(client: MlflowClient, folder: RunFolder, run_id: str, result: Result) -> str:
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    if found:  # created by an earlier request that got no answer
        return str(found[0].model_id)
    model = folder.read_json(SPEC).get("model", {})
    created = client.create_logged_model(
        experiment,
        name=MODEL,  # so that runs:/<run>/model finds it
        source_run_id=run_id,
        tags={"starlab.run_id": folder.path.name, "starlab.step": str(result.best_step)},
        params={key: str(value) for key, value in model.items()},
        model_type="star-transformer",
    )
    return str(created.model_id)


def _link_metrics(client: MlflowClient, folder: RunFolder, state: MlflowState, result: Result) -> None:
    """Log the model's metrics with the dataset that gave them. For the run they repeat points that it has already."""
    from mlflow.entities import Metric

    info, data = folder.info, folder.read_json(SPEC).get("data", {})
    selection = "test" if result.selected_by == "test" else "validation"
    metrics = []
    for point in read_points(folder.path / FILE):
        part = _part_of(point, result, selection)
        if part is None:
            continue
        dataset, digest = data.get("dataset"), None
        if dataset and FINGERPRINT in info.tags:
            digest = part_digest(info, data, part)
        metrics.append(
            Metric(
                point.key,
                point.value,
                point.time_ms,
                point.step,
                model_id=state.model_id,
                dataset_name=dataset if digest else None,
                dataset_digest=digest,
                run_id=state.run_id,
            )
        )
    client.log_batch(state.run_id, metrics=metrics)


def _part_of(point: Point, result: Result, selection: str) -> str | None:
    """Return the part of the data on which the model reached the point, or None for a point of other weights."""
    if point.key.startswith(VAL) and point.step == result.best_step:
        return selection
    return "test" if point.key.startswith(TEST) else None
