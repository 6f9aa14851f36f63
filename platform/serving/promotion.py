"""Gives a registered MLflow model an alias: after `starlab promote demo-1a2b3c4d`, models:/demo@best is that run's model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlab.experiments.spec import spec_from_dict
from starlab.platform.errors import UserError
from starlab.platform.recipe.metrics import is_better
from starlab.platform.runs.folder import SPEC, RunFolder, find_runs
from starlab.platform.runs.records import FINGERPRINT, MlflowState
from starlab.platform.serving.recogniser import refuse_without_actions
from starlab.platform.tracking.mlflow_client import fail_fast
from starlab.platform.tracking.sender import stored_uri


@dataclass(frozen=True, slots=True)
class Promotion:
    """An alias that was set."""

    model: str
    """Name of the registered model."""
    version: str
    alias: str
    run_id: str
    val: dict[str, float]
    """Validation metrics of the run."""
    before: str | None
    """Version that had the alias before; None if there was none."""
    uri: str
    """Address of the tracking server, without its password."""


def promote(name: str, alias: str, runs: Path, say: Callable[[str], None] = lambda _: None) -> Promotion:
    """Give the model of a run an alias. An alias belongs to one version at a time.

    Args:
        name: Name of a run, or of an experiment, whose best run on the validation part is then taken.
        alias: Name of the alias, e.g. "best" or "production".
        runs: Folder of runs.
        say: Called with a line about each run that cannot be read.

    Raises:
        UserError: The run does not exist, learned no actions, or has no model in MLflow; the runs of the experiment cannot be
            compared; or MLflow rejects the alias or does not answer.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    folder = _best(name, find_runs(runs, name, say))
    refuse_without_actions(folder.path.name, spec_from_dict(folder.read_json(SPEC), str(folder.path / SPEC)))
    state = folder.read(MlflowState)
    if state is None or state.model_version is None:
        raise UserError(f"the model of {folder.path.name} is not in MLflow yet; send it with: starlab sync {folder.path.name}")
    fail_fast()
    uri, model = stored_uri(folder), folder.info.experiment
    client = MlflowClient(uri, registry_uri=uri)
    try:
        found = client.get_registered_model(model).aliases.get(alias)
        client.set_registered_model_alias(model, alias, state.model_version)
    except MlflowException as error:
        raise UserError(f"MLflow did not set the alias {alias!r} of the model {model}: {error}") from None
    result = folder.result
    val = result.val if result is not None else {}
    before = None if found is None else str(found)  # MLflow's SQL store gives a number
    return Promotion(model, state.model_version, alias, folder.path.name, val, before, state.uri)


def _best(name: str, folders: Sequence[RunFolder]) -> RunFolder:
    """Return the only run, or the best of several by the metric that they select by, on the same validation clips."""
    if len(folders) == 1:
        return folders[0]
    best: tuple[RunFolder, dict[str, float]] | None = None
    conditions = set()
    for folder in folders:
        result = folder.result
        if result is None or result.test is None or not result.val or result.selected_by == "test":
            continue
        spec = spec_from_dict(folder.read_json(SPEC), str(folder.path / SPEC))
        data = spec.data
        split = (data.validation_fraction, data.split_seed, data.limit)
        conditions.add((folder.info.tags.get(FINGERPRINT), *split, spec.train.select_by))
        if best is None or is_better(result.val, best[1], spec.train.select_by):
            best = folder, result.val
    if best is None:
        raise UserError(f"none of the {len(folders)} runs of {name} is finished, tested and has a validation part")
    if len(conditions) > 1:
        raise UserError(
            f"the runs of {name} differ in their data, their validation part or the metric that they select by, so none is the "
            f"best; name one of them, e.g. {best[0].path.name}"
        )
    return best[0]
