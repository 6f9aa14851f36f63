"""Chooses the arithmetic of a training step: its precision (fp32, fp16 or bf16), TF32, determinism, compilation."""

from __future__ import annotations

import copy
import os
import time

import torch
from torch import Tensor, nn

AUTOCAST = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Autocast dtype by `train.precision`; None means no autocast."""


def choose_precision(model: nn.Module, frames: Tensor, joints: Tensor) -> str:
    """Resolve `train.precision: auto` for this model and these shapes to "fp32", "fp16" or "bf16".

    A GPU with bf16 units uses bf16, and an older one with tensor cores (V100) uses fp16. On a CPU with bf16 units (AMX,
    AVX512-BF16), a copy of the model is timed in fp32 and bf16. Other CPUs only emulate bf16, so they use fp32.
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
    """Return whether `train.compile: choice` enables torch.compile on this device.

    "auto" compiles on a GPU of compute capability 8.0 or more. It does not compile on a V100 (7.0): Triton, which
    torch.compile generates kernels for, does not use Volta's matrix units, so measure before setting "on" there. It does not
    compile on a CPU, where compiling takes longer than a small run.
    """
    if choice == "auto":
        return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return choice == "on"


def set_gpu_arithmetic(precision: str, *, tf32: bool, deterministic: bool) -> None:
    """Set PyTorch's process-wide switches for a training on a GPU. Call it before the first kernel runs.

    Args:
        precision: "fp32", "fp16" or "bf16".
        tf32: Whether products in fp32 may use TF32.
        deterministic: Whether every kernel gives the same bits every time. An operation that has no such kernel then raises
            RuntimeError. Otherwise cuDNN times its convolutions for the shapes it meets and keeps the fastest ones.
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32
    # In half precision there is no fp32 convolution, but some releases of PyTorch take "no TF32" to forbid tensor cores.
    torch.backends.cudnn.allow_tf32 = tf32 or precision != "fp32"
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS is deterministic only with workspaces of a fixed size
