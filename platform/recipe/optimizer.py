"""The optimizer, its state in checkpoints, and the learning rate as a function of the step."""

from __future__ import annotations

import inspect
import math

import torch
from torch import Tensor, nn

from starlab.experiments.sections import TrainConfig
from starlab.models.parameters import backbone_names, decayed_names


class _LightOptimizer(torch.optim.Optimizer):
    """An optimizer whose methods do not import torch._dynamo.

    PyTorch wraps these methods so that torch.compile leaves them alone, and the wrappers import torch._dynamo. That takes a
    second of processor time in every worker, before the first step. Nothing compiles the optimizer here.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


class _AdamW(_LightOptimizer, torch.optim.AdamW):
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class _SGD(_LightOptimizer, torch.optim.SGD):
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


def make_optimizer(model: nn.Module, config: TrainConfig, taken: frozenset[str] = frozenset()) -> torch.optim.Optimizer:
    """Create SGD or AdamW over the trainable parameters.

    Only the weights of linear layers and convolutions decay. The backbone learns at `train.backbone_lr_scale` times the rate,
    and weights that were `taken` from another model at `train.init_lr_scale` times that.
    """
    decayed, backbone = decayed_names(model), backbone_names(model) if config.backbone_lr_scale != 1 else frozenset()
    taken = taken if config.init_lr_scale != 1 else frozenset()
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    kinds = [
        (is_taken, in_backbone, decays)
        for is_taken in ((False, True) if taken else (False,))
        for in_backbone in ((False, True) if backbone else (False,))
        for decays in (True, False)
    ]
    groups = [
        {
            "params": [p for name, p in trainable if (name in taken, name in backbone, name in decayed) == kind],
            "weight_decay": config.weight_decay if kind[2] else 0.0,
            "lr_scale": (config.backbone_lr_scale if kind[1] else 1.0) * (config.init_lr_scale if kind[0] else 1.0),
        }
        for kind in kinds
    ]
    # Fused optimizers can leave a step out without the host: see `update_unless`.
    if config.optimizer == "adamw":
        return _AdamW(groups, lr=config.lr, fused=True)
    optimizer = _SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    if config.momentum:
        for _, parameter in trainable:  # SGD would create them at the first step, and not fill them if that is left out
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def update_unless(bad: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Do a step of an optimizer of `make_optimizer`, unless the bool scalar `bad` is True. Does not wait for the device."""
    optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # as GradScaler does; torch's fused kernels look at it
    optimizer.step()


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step; each group takes its own multiple of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def peak_rate(config: TrainConfig) -> float:
    """Return `train.lr`, multiplied by global_batch / reference_batch if `lr_scaling` is "linear" (arXiv:1706.02677)."""
    return config.lr * config.global_batch / config.reference_batch if config.lr_scaling == "linear" else config.lr


def learning_rate(config: TrainConfig, step: int, schedule_steps: int) -> float:
    """Compute the learning rate of step `step` (from 0): linear warm-up to the peak, then constant or a cosine to 0."""
    warmup, peak = round(config.warmup_fraction * schedule_steps), peak_rate(config)
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.schedule == "constant":
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, schedule_steps - warmup)))


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
