"""Starts a model from the weights of another one, which the driver put into the run's folder."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from starlab.platform.errors import StopRunError
from starlab.platform.runs.records import InitialWeights
from starlab.platform.worker.tasks import TrainTask

FILE = "initial.safetensors"


def take_initial_weights(task: TrainTask, model: nn.Module) -> frozenset[str]:
    """Copy the weights that fit into the model, and freeze them if `train.init_lr_scale` is 0. Returns their names.

    A resumed run calls it, too, so that its optimizer has the same groups; its checkpoint then overwrites the weights.

    Raises:
        StopRunError: The spec names initial weights, and this node does not see them.
    """
    if task.spec.train.init_from is None:
        return frozenset()
    path, record = task.folder.path / FILE, task.folder.read(InitialWeights)
    if record is None or not path.is_file():
        raise StopRunError(f"{path} is missing: the runs folder must be on storage that all nodes share")
    return copy_weights(model, path, frozenset(record.taken), freeze=task.spec.train.init_lr_scale == 0)


def copy_weights(model: nn.Module, path: Path, taken: frozenset[str], *, freeze: bool) -> frozenset[str]:
    """Copy the entries `taken` of a file into the model's parameters and buffers. Returns `taken`."""
    model.load_state_dict({name: value for name, value in load_file(path).items() if name in taken}, strict=False)
    for name, parameter in model.named_parameters():
        if freeze and name in taken:
            parameter.requires_grad_(False)
    return taken
