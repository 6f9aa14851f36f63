"""Downloads finished runs from a tracking server as run folders, so that they can be compared like local runs."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from starlab.experiments.credentials import without_password
from starlab.experiments.overrides import set_key
from starlab.experiments.sections import TrackingConfig
from starlab.platform.errors import UserError
from starlab.platform.runs.folder import SPEC, RunFolder
from starlab.platform.runs.records import DamagedRecordError, Result, RunInfo
from starlab.platform.tracking.mlflow_client import fail_fast

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_PREDICTIONS, _RESULT, _SPEC = "predictions.parquet", "result.json", "spec.yaml"
_STATUS = {"RUNNING": "RUNNING", "SCHEDULED": "RUNNING", "FINISHED": "FINISHED", "FAILED": "FAILED", "KILLED": "KILLED"}
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Names of runs that can name a folder."""
_PAGE = 200
_MOST = 2000
"""Largest number of runs that one filter may find."""


def download_runs(
    filter_string: str,
    runs: Path,
    target: Path,
    *,
    uri: str | None = None,
    complain: Callable[[str], None] = lambda _: None,
) -> list[RunFolder]:
    """Download the spec, result and predictions of the MLflow runs that a filter finds, in all experiments of the server.

    Args:
        filter_string: A filter of MLflow, such as "tags.team = 'a' and params.`model.layers` = '3'".
        runs: Folder of runs, whose own database is searched unless `uri` or MLFLOW_TRACKING_URI names another server.
        target: Folder that receives a folder per run.
        uri: Address of the tracking server.
        complain: Called with a line for each run that is left out because it has no predictions.

    Raises:
        UserError: The server does not answer, the filter is not valid, or it finds no run with predictions.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    fail_fast()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # it prints three lines per run
    address = uri or os.environ.get("MLFLOW_TRACKING_URI") or TrackingConfig().address(runs)
    if address == TrackingConfig().address(runs) and not (runs / "mlflow.db").is_file():
        raise UserError(f"no {runs / 'mlflow.db'}: name the tracking server with --uri or MLFLOW_TRACKING_URI")
    named = without_password(address)
    try:
        client = MlflowClient(address, registry_uri=address)
        found = _search(client, filter_string)
        folders = [folder for run in found if (folder := _download(client, run, target, complain))]
    except MlflowException as error:
        raise UserError(f"--mlflow {filter_string!r} on {named}: {str(error).splitlines()[0]}") from None
    if not folders:
        raise UserError(f"--mlflow {filter_string!r} on {named} finds {len(found)} runs, none of them with {_PREDICTIONS}")
    return folders


def _search(client: MlflowClient, filter_string: str) -> list[Run]:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs(
            experiments, filter_string, max_results=_PAGE, order_by=["attributes.start_time ASC"], page_token=token
        )
        found += page
        token = page.token
        if len(found) > _MOST:
            raise UserError(f"--mlflow {filter_string!r} finds more than {_MOST:,} runs; narrow the filter")
        if not token:
            return found


def _download(client: MlflowClient, run: Run, target: Path, complain: Callable[[str], None]) -> RunFolder | None:
    """Download one run; None where it holds no predictions or its files cannot be read."""
    run_id, name = run.info.run_id, run.data.tags.get("starlab.run_id") or run.info.run_name or run.info.run_id
    listed = {file.path for file in client.list_artifacts(run_id)}
    if _PREDICTIONS not in listed:
        complain(f"skipped  {name} ({run_id}): it has no {_PREDICTIONS}")
        return None
    folder = RunFolder(target / run_id / (name if _SAFE.fullmatch(name) else run_id))
    folder.artifacts.mkdir(parents=True)
    for file in (_PREDICTIONS, _RESULT, _SPEC):
        if file in listed:
            client.download_artifacts(run_id, file, str(folder.artifacts))
    try:
        folder.write_json(SPEC, _spec(folder, run))
        if (folder.artifacts / _RESULT).is_file():
            folder.write_json(Result.FILE, folder.read_json(f"{folder.artifacts.name}/{_RESULT}"))
    except (DamagedRecordError, OSError, ValueError, KeyError, yaml.YAMLError) as error:
        complain(f"skipped  {name} ({run_id}): {error}")
        return None
    experiment = client.get_experiment(run.info.experiment_id).name
    info = RunInfo(
        run_id=name,
        key=run_id,
        experiment=experiment,
        mlflow_experiment=experiment,
        tracking_uri="",
        runs=str(target),
        status=_STATUS[run.info.status],  # type: ignore[arg-type]
        tags={key: value for key, value in run.data.tags.items() if key.startswith("starlab.")},
        created=str(run.info.start_time),
    )
    folder.write(info)
    return folder


def _spec(folder: RunFolder, run: Run) -> dict[str, Any]:
    """Return the spec as the run's artifact has it, else as its params have it: as texts of Python values.

    Raises:
        ValueError: The artifact is not a spec.
    """
    if (folder.artifacts / _SPEC).is_file():
        stored = yaml.safe_load((folder.artifacts / _SPEC).read_text())
        if not isinstance(stored, dict):
            raise ValueError(f"its {_SPEC} is not a mapping of sections")
        return stored
    nested: dict[str, Any] = {}
    for key, text in run.data.params.items():
        set_key(nested, key, _value(text))
    return nested


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)  # params are texts of Python values: None, True, 1e-05, [1, 2]
    except (ValueError, SyntaxError):
        return text
