"""The arithmetic of a training step: fp32, fp16 or bf16, said by the spec or measured once."""

from __future__ import annotations

import copy
import time

import torch
from torch import Tensor, nn

from starlab.platform.recipe.ranks import Ranks
from starlab.platform.worker.job import TrainJob

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


def agree_on_precision(job: TrainJob, ranks: Ranks, model: nn.Module, clips: int, device: torch.device) -> str:
    """The spec's precision, or for "auto" the choice made once for this run, for steps of `clips` clips, and kept on resume."""
    wanted = job.spec.train.precision
    if wanted != "auto":
        return wanted
    chosen = ranks.first(job.folder.read_json("choices.json").get("precision"))
    if chosen is None:
        data, config = job.spec.data, job.spec.model
        frames = torch.zeros(clips, data.frames, data.size, data.size, 3, dtype=torch.uint8, device=device)
        joints = torch.full((clips, data.frames, config.max_bodies, config.num_joints, 3), 0.5, device=device)
        chosen = ranks.first(choose_precision(model, frames, joints))
        if ranks.rank == 0:
            job.folder.write_json("choices.json", {"precision": chosen})
    return str(chosen)
