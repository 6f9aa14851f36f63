"""Chooses the arithmetic of a training step: its precision (fp32, fp16 or bf16), TF32, determinism, compilation."""

from __future__ import annotations

import os

import torch

from starlab.experiments.sections import TrainConfig

AUTOCAST = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Autocast dtype by `train.precision`; None means no autocast."""


def choose_precision(device: torch.device) -> str:
    """Resolve `train.precision: auto` on a device to "fp32", "fp16" or "bf16".

    A GPU with bf16 units uses bf16, and an older one with tensor cores (V100) uses fp16. A CPU uses fp32, also if it has bf16
    units: there the weight gradients of 3-D convolutions in bf16 differ between equal calls, and some are NaN (torch 2.14,
    AVX512-BF16).
    """
    if device.type != "cuda":
        return "fp32"
    major, _ = torch.cuda.get_device_capability(device)
    return "bf16" if major >= 8 else "fp16" if major >= 7 else "fp32"


def compiles(config: TrainConfig, device: torch.device) -> bool:
    """Return whether `train.compile` enables torch.compile on this device.

    "auto" compiles on a GPU of compute capability 8.0 or more, unless `train.deterministic` is set: which kernels a compiled
    region uses depends on the batches before and on timings. It does not compile on a V100 (7.0): Triton, which
    torch.compile generates kernels for, does not use Volta's matrix units, so measure before setting "on" there. It does not
    compile on a CPU, where compiling takes longer than a small run.
    """
    if config.compile == "auto":
        return device.type == "cuda" and not config.deterministic and torch.cuda.get_device_capability(device) >= (8, 0)
    return config.compile == "on"


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
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with fixed workspaces
