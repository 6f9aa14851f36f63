"""The optimizer, its state in checkpoints, and the learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from starlab.experiments.sections import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Create SGD or AdamW over the trainable parameters. Only weight matrices decay, see `_is_matrix`."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if _is_matrix(p)], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if not _is_matrix(p)], "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def _is_matrix(parameter: Tensor) -> bool:
    """Return whether a parameter has two dimensions or more of size above 1. Biases, norms and tokens have only one."""
    return sum(size > 1 for size in parameter.shape) >= 2


def peak_rate(config: TrainConfig) -> float:
    """Return `train.lr`, multiplied by global_batch / reference_batch if `lr_scaling` is "linear" (arXiv:1706.02677)."""
    return config.lr * config.global_batch / config.reference_batch if config.lr_scaling == "linear" else config.lr


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """Compute the learning rate of step `step` (from 0): linear warm-up to the peak, then constant or a cosine to 0."""
    warmup, peak = round(config.warmup_fraction * total_steps), peak_rate(config)
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.schedule == "constant":
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state under flat names, "index/key", as a checkpoint stores it."""
    state = optimizer.state_dict()["state"]
    return {f"{index}/{key}": value for index, entry in state.items() for key, value in entry.items() if value is not None}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Load the state that `optimizer_tensors` returned. Learning rates and weight decay stay those of the spec."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
