"""Writes and loads the best checkpoint of a run as an MLflow model: weights in safetensors, spec in JSON, no pickle.

    artifacts/model/
      MLmodel               MLflow's description: flavors and signature
      weights.safetensors   weights under the names of `model.state_dict()`
      spec.json             the run's spec, the classes, the temperature and the length of a clip
      input_example.json    one clip of the right shapes: black frames, and joints in the middle of them

`mlflow.pyfunc.load_model` loads it where starlab is installed. `load_model` below returns the torch module itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from starlab.experiments.spec import Spec, spec_from_dict
from starlab.models.star import StarTransformer, load_state
from starlab.platform.errors import UserError
from starlab.platform.recipe.training_state import weights_to_evaluate
from starlab.platform.runs.checkpoint import find_checkpoint
from starlab.platform.runs.events import record
from starlab.platform.runs.folder import MODEL, SPEC, RunFolder
from starlab.platform.runs.provenance import package_versions
from starlab.platform.runs.records import Result
from starlab.platform.tracking.mlflow_client import load_mlflow

WEIGHTS, ABOUT, _PAGE, _EXAMPLE = "weights.safetensors", "spec.json", "MLmodel", "input_example.json"


def write_best_model(folder: RunFolder) -> None:
    """Write the best checkpoint of a finished run to its artifacts, unless it is there already."""
    result = folder.require(Result)
    target = folder.artifacts / MODEL
    if (target / _PAGE).is_file():
        return
    try:
        best = find_checkpoint(folder.stored_checkpoints, result.best_step)
    except ValueError as error:  # the disk had no room for the checkpoint
        record(folder.path, "no_model", f"the best weights were never stored: {error}", step=result.best_step)
        return
    spec = spec_from_dict(folder.read_json(SPEC), str(folder.path / SPEC))
    write_model(target, spec, weights_to_evaluate(best.tensors), result)


def write_model(folder: Path, spec: Spec, tensors: Mapping[str, torch.Tensor], result: Result) -> None:
    """Write an MLflow model into `folder`.

    Args:
        spec: Spec of the run.
        tensors: State dict of the model.
        result: Result of the run: the classes in the order of the logits, the step of the weights, the temperature.
    """
    load_mlflow()
    from mlflow.models import Model

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    classes, step = result.classes, result.best_step
    about = {"spec": spec.to_dict(), "classes": classes, "step": step, "clip_frames": result.clip_frames}
    about["temperature"] = result.calibration.temperature if result.calibration else None
    (folder / ABOUT).write_text(json.dumps(about, indent=1, sort_keys=True))
    versions = package_versions()
    flavors = {
        "starlab": {"weights": WEIGHTS, "spec": ABOUT, "version": versions["starlab"]},
        "python_function": {"loader_module": "starlab.platform.registry", "env": {}},
    }
    example = {name: values.tolist() for name, values in input_example(spec).items()}
    (folder / _EXAMPLE).write_text(json.dumps(example, separators=(",", ":")))
    page = Model(
        signature=_signature(spec, len(classes)),
        flavors=flavors,
        metadata={"step": step, "torch": versions["torch"]},
        saved_input_example_info={"artifact_path": _EXAMPLE, "type": "ndarray", "format": "tf-serving"},
    )
    page.save(str(folder / _PAGE))


def input_example(spec: Spec) -> dict[str, NDArray[Any]]:
    """Make what `Predictor.predict` takes, of one clip: black frames, and bodies whose joints are all in the middle, unless
    the model finds the joints."""
    inputs = _signature(spec, 1).inputs.inputs
    example = {tensor.name: np.zeros((1, *tensor.shape[1:]), tensor.type) for tensor in inputs}
    if "joints" in example:
        example["joints"][...] = (0.5, 0.5, 1.0)
    return example


def load_model(uri: str) -> StarTransformer:
    """Load a model from "models:/demo/3", "runs:/<MLflow run>/model", a run's folder or a model's folder.

    MLflow addresses are resolved at the server that MLFLOW_TRACKING_URI names.

    Returns:
        The model in evaluation mode, on the CPU. Call it as `logits = model(frames, joints)`.

    Raises:
        UserError: The model does not exist.
    """
    return _read(_local(uri))[0]


class Predictor:
    """The model that `mlflow.pyfunc.load_model` wraps. MLflow checks inputs against the signature first."""

    def __init__(self, model: StarTransformer) -> None:
        self._model = model

    def predict(self, data: Mapping[str, NDArray[Any]], params: Mapping[str, Any] | None = None) -> NDArray[np.float32]:
        """Compute logits (n, C) from {"frames": uint8 (n, T, H, W, 3), "joints": float32 (n, T, M, N, 3)}.

        A model that finds the joints itself takes frames only.
        """
        inputs = [torch.from_numpy(data[name]) for name in ("frames", "joints") if name in data]
        with torch.no_grad():
            logits = self._model(*inputs)
        scores: NDArray[np.float32] = logits.float().numpy()
        return scores


def _load_pyfunc(path: str) -> Predictor:
    """Load a model for MLflow, which calls this function by name."""
    return Predictor(_read(Path(path))[0])


def _signature(spec: Spec, classes: int) -> Any:
    load_mlflow()
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    data, model = spec.data, spec.model
    frames = TensorSpec(np.dtype(np.uint8), (-1, data.frames, data.size, data.size, 3), "frames")
    joints = TensorSpec(np.dtype(np.float32), (-1, data.frames, model.max_bodies, model.num_joints, 3), "joints")
    inputs = [frames] if model.pose == "learned" else [frames, joints]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, classes))]))


def _local(uri: str) -> Path:
    for path in (Path(uri), Path(uri) / "artifacts" / MODEL):
        if (path / ABOUT).is_file() and (path / WEIGHTS).is_file():
            return path
    if not uri.startswith(("models:", "runs:")):
        raise UserError(f"no model at {uri}: give a finished run's folder, models:/NAME/VERSION or runs:/ID/{MODEL}")
    return download(uri)


def download(uri: str) -> Path:
    """Download a model from "models:/NAME/VERSION", "models:/NAME@ALIAS" or "runs:/ID/model". Returns its local folder.

    Raises:
        UserError: The tracking server has no such model.
    """
    load_mlflow()
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        return Path(download_artifacts(uri))
    except MlflowException as error:
        raise UserError(f"no model at {uri}: {error}; MLFLOW_TRACKING_URI names the server") from None


def _read(path: Path) -> tuple[StarTransformer, dict[str, Any]]:
    about: dict[str, Any] = json.loads((path / ABOUT).read_text())
    spec = spec_from_dict(about["spec"], str(path / ABOUT))
    model = StarTransformer(replace(spec.model, weights="none"))  # the file has the weights
    load_state(model, load_file(path / WEIGHTS))
    return model.eval(), about
