"""How weights move: optimizer, learning rate as a function of the step, and arithmetic precision."""

from __future__ import annotations

import copy
import math
import time

import torch
from torch import Tensor, nn

from starlab.experiments.sections import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable parameters; weight decay only on those of two dimensions or more."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if _is_matrix(p)], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if not _is_matrix(p)], "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def _is_matrix(parameter: Tensor) -> bool:
    """A weight, and no bias, norm or token: those have one dimension besides those of size 1."""
    return sum(size > 1 for size in parameter.shape) >= 2


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """The rate of step `step` (from 0): linear warm-up, then constant or a cosine to 0."""
    warmup = round(config.warmup_fraction * total_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat names, "index/key": what a checkpoint stores."""
    state = optimizer.state_dict()["state"]
    return {f"{index}/{key}": value for index, entry in state.items() for key, value in entry.items() if value is not None}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; rates and decay come from the spec."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


AUTOCAST = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Precision of a spec → dtype of autocast."""


def choose_precision(model: nn.Module, frames: Tensor, joints: Tensor) -> str:
    """What `train.precision: auto` comes to for this model and these shapes: "fp32", "fp16" or "bf16".

    A GPU with bf16 units takes bf16, an older one with tensor cores (V100) fp16. A CPU with bf16 units (AMX, AVX512-BF16)
    is measured both ways, on a copy of the model; without them bf16 is only emulated, so fp32.
    """
    if frames.device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(frames.device)
        return "bf16" if major >= 8 else "fp16" if major >= 7 else "fp32"
    if not (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        return "fp32"
    trial = copy.deepcopy(model)
    return "bf16" if _seconds(trial, frames, joints, torch.bfloat16) < _seconds(trial, frames, joints, None) else "fp32"


def _seconds(model: nn.Module, frames: Tensor, joints: Tensor, dtype: torch.dtype | None) -> float:
    times = []
    for _ in range(4):
        start = time.perf_counter()
        with torch.autocast(frames.device.type, dtype=dtype, enabled=dtype is not None):
            model(frames, joints).float().square().mean().backward()
        times.append(time.perf_counter() - start)
    return min(times[1:])
