"""The arithmetic of a training step: fp32, fp16 or bf16, by the spec or measured once, and whether it is compiled."""

from __future__ import annotations

import copy
import time

import torch
from torch import Tensor, nn

AUTOCAST = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Precision of a spec → dtype of autocast."""


def choose_precision(model: nn.Module, frames: Tensor, joints: Tensor) -> str:
    """What `train.precision: auto` means for this model and these shapes: "fp32", "fp16" or "bf16".

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


def compiles(choice: str, device: torch.device) -> bool:
    """Whether `train.compile` means torch.compile on this device.

    "auto" compiles on a GPU of compute capability 8.0 or more. Not on a V100 (7.0): Triton, which torch.compile writes its
    kernels in, does not use Volta's matrix units, so say "on" there only after measuring. Not on a CPU: compiling takes
    longer than the small runs that CPUs are for.
    """
    if choice == "auto":
        return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return choice == "on"
