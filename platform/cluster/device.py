"""Checks that this build of PyTorch can compute on a GPU."""

from __future__ import annotations

import torch


def mismatch(index: int) -> str | None:
    """The reason why this PyTorch cannot compute on GPU number `index`, and what to install; None if it can."""
    built = torch.cuda.get_arch_list()
    major, minor = torch.cuda.get_device_capability(index)
    # Code for 7.0 runs on 7.5. Code does not run on an older architecture or on another major version.
    if any(arch.startswith(f"sm_{major}") and int(arch[3:].rstrip("af")) <= 10 * major + minor for arch in built):
        return None
    return (
        f"{torch.cuda.get_device_name(index)} is sm_{major}{minor}, and torch {torch.__version__} was built for "
        f"{' '.join(built)}; a V100 needs PyTorch's CUDA 12.6 build, see docs/cluster.md"
    )


def check_device(device: torch.device) -> None:
    """Check in a worker that this PyTorch can compute on its device.

    Raises:
        RuntimeError: it was not built for this GPU; names the build that is needed.
    """
    if device.type == "cuda" and (problem := mismatch(device.index)):
        raise RuntimeError(problem)
