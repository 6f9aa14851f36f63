"""What a GPU and this build of PyTorch can do together."""

from __future__ import annotations

import torch


def mismatch(index: int) -> str | None:
    """Why this PyTorch cannot compute on GPU number `index`, and how to mend it; None where it can."""
    built = torch.cuda.get_arch_list()
    major, minor = torch.cuda.get_device_capability(index)
    # Code for 7.0 runs on 7.5; no code runs on an older or another major architecture.
    if any(arch.startswith(f"sm_{major}") and int(arch[3:].rstrip("af")) <= 10 * major + minor for arch in built):
        return None
    return (
        f"{torch.cuda.get_device_name(index)} is sm_{major}{minor}, and torch {torch.__version__} was built for "
        f"{' '.join(built)}; a V100 needs PyTorch's CUDA 12.6 build, see docs/cluster.md"
    )


def compiles(choice: str, device: torch.device) -> bool:
    """Whether `train.compile` comes to torch.compile on this device.

    "auto" compiles on a GPU of compute capability 8.0 or more. Not on a V100 (7.0): Triton, which torch.compile writes its
    kernels in, has left Volta without matrix units, so say "on" there only after measuring. Not on a CPU: compiling takes
    longer than the small runs that CPUs are for.
    """
    if choice == "auto":
        return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return choice == "on"
