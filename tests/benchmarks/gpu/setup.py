"""What is measured: the sizes of a run, the clips of a data set, and every option of a training step in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from starlab.models.cost import cost
from starlab.models.star import StarConfig
from starlab.pipelines.batch import Batch

Data = Literal["penn", "ntu", "ntu mixed"]


@dataclass(frozen=True, slots=True)
class Clips:
    """What the clips of a data set look like to the model."""

    classes: int
    joints: int
    bodies: int = 1
    alone: float = 1.0
    """Share of the clips in which only the first body is present."""


CLIPS: dict[Data, Clips] = {
    "penn": Clips(classes=15, joints=13),
    "ntu": Clips(classes=120, joints=25, bodies=2),
    "ntu mixed": Clips(classes=120, joints=25, bodies=2, alone=0.75),
}


@dataclass(frozen=True, slots=True)
class Scale:
    """The size of everything."""

    frames: int
    size_px: int
    clips: tuple[int, ...]
    """Batch sizes; the first is the one that the improvements are tried at."""
    model: Mapping[str, Any]
    """Fields of StarConfig that differ from the paper's."""
    matrix_sizes: tuple[int, ...]
    copy_bytes: int
    rounds: tuple[int, int]
    """Fewest and most blocks of repetitions of a step."""
    seconds_per_row: float
    """Time for the repetitions of a step, within those limits."""
    warm_up_steps: int
    fp16_steps: int
    """Steps of the short training in fp16."""
    check_clips: int = 2
    """Clips of the comparisons of precisions."""


PAPER = Scale(
    frames=16,
    size_px=224,
    clips=(16, 4, 32),
    model={},
    matrix_sizes=(4096, 8192, 12288),
    copy_bytes=2**31,
    rounds=(3, 12),
    seconds_per_row=3.0,
    warm_up_steps=3,
    fp16_steps=20,
)
QUICK = Scale(
    frames=4,
    size_px=24,
    clips=(2, 3),
    model={"backbone": "mc3_tiny", "layers": 1, "dim": 32, "heads": 4},
    matrix_sizes=(32, 64),
    copy_bytes=2**16,
    rounds=(1, 1),
    seconds_per_row=0.1,
    warm_up_steps=1,
    fp16_steps=6,
)


@dataclass(slots=True)
class Bench:
    """What all parts share."""

    device: torch.device
    scale: Scale
    improvements: tuple[str, ...] = ()
    """Only improvements with one of these words in their names are tried; all if empty."""
    matrix_rates: dict[str, float] = field(default_factory=dict)
    """The card's own FLOP/s by precision, once measured."""

    @property
    def on_gpu(self) -> bool:
        """Whether this measures a GPU; on a CPU only that the script works is of interest."""
        return self.device.type == "cuda"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """One training step with all its options. The defaults are the plain step: bf16 autocast and nothing else."""

    clips: int
    data: Data = "penn"
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    lr: float = 2e-4
    layers: int | None = None
    """Encoder and decoder layers; None takes the paper's."""
    cudnn_benchmark: bool = False
    layout: Literal["first", "maps"] = "first"
    """What of the backbone is in channels_last_3d."""
    stem_cells: bool = False
    """Whether the first convolution reads cells of 2 × 2 pixels (with `layout` "maps")."""
    tf32: bool = False
    deterministic: bool = False
    optimizer: Literal["sgd", "adamw"] = "sgd"
    inputs: Literal["device", "pageable", "library"] = "device"
    """Where a step's clips are: on the device already, or in the host's memory and copied from there."""
    loop: Literal["waiting", "library", "lean"] = "waiting"
    """When the host learns whether a step was bad: at once, one step later, or never."""
    attention: Literal["auto", "flash", "efficient", "cudnn"] = "auto"
    mask: Literal["dense", "none", "varlen", "left out"] = "dense"
    """What happens to absent bodies: masked; attended to like any other (wrong, a bound); packed; left out of the tokens."""
    class_rows_last: bool = False
    compile: Literal["off", "forward", "regions"] = "off"
    cuda_graphs: bool = False
    residuals: Literal["fp32", "half"] = "fp32"
    """Precision of the tokens between layers under autocast."""
    checkpointing: bool = False
    grid: int | None = None
    frozen_stages: int = 0
    """Above 0 the batch-norms are frozen too."""


SHIPPED: Mapping[str, Any] = {
    "cudnn_benchmark": True,
    "layout": "maps",
    "stem_cells": True,
    "inputs": "library",
    "loop": "library",
    "mask": "left out",
    "class_rows_last": True,
    "compile": "regions",
    "residuals": "half",
}
"""The options of the step that starlab runs on a GPU of compute capability 8.0 or more."""


def model_config(setup: Setup, scale: Scale) -> StarConfig:
    """The model of a setup."""
    clips = CLIPS[setup.data]
    fields: dict[str, Any] = {
        "num_classes": clips.classes,
        "num_joints": clips.joints,
        "max_bodies": clips.bodies,
        "frames": scale.frames,
        "grid": setup.grid,
        "frozen_stages": setup.frozen_stages,
        "batch_norm": "frozen" if setup.frozen_stages else "train",
        "channels_last": setup.layout != "first",
        "activation_checkpointing": setup.checkpointing,
        **scale.model,
    }
    if setup.layers is not None:
        fields["layers"] = setup.layers
    return StarConfig(**fields)


def training_flops(setup: Setup, scale: Scale) -> float:
    """FLOP of one clip's training step, as `models.cost` counts them: three times those of the forward pass.

    The tokens of absent bodies count only if they are computed.
    """
    config = model_config(setup, scale)
    whole = cost(config, height=scale.size_px, width=scale.size_px).training_flops
    if setup.mask != "left out" or config.max_bodies == 1:
        return whole
    alone = cost(replace(config, max_bodies=1), height=scale.size_px, width=scale.size_px).training_flops
    share = CLIPS[setup.data].alone
    return share * alone + (1 - share) * whole


def tokens_per_clip(setup: Setup, scale: Scale, *, present: bool = False) -> int:
    """Tokens of a clip over all its frames; with `present`, those of absent bodies are not counted."""
    clips = CLIPS[setup.data]
    side = -(-scale.size_px // 16)  # of the last stage's map
    bodies = clips.bodies - (clips.bodies - 1) * clips.alone * present
    return round(scale.frames * (side**2 + bodies * clips.joints + 3))


def random_clips(setup: Setup, scale: Scale, device: torch.device, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Frames uint8 (B, T, H, W, 3), joints float32 (B, T, M, N, 3) and labels int64 (B,) on a device; the same for a seed."""
    clips, dice = CLIPS[setup.data], np.random.default_rng(seed)
    frames = dice.integers(0, 256, (setup.clips, scale.frames, scale.size_px, scale.size_px, 3), dtype=np.uint8)
    joints = dice.random((setup.clips, scale.frames, clips.bodies, clips.joints, 3), dtype=np.float32)
    joints[: round(clips.alone * setup.clips), :, 1:] = 0
    labels = dice.integers(0, clips.classes, setup.clips)
    return torch.from_numpy(frames).to(device), torch.from_numpy(joints).to(device), torch.from_numpy(labels).to(device)


def host_batch(setup: Setup, scale: Scale) -> Batch:
    """The same clips as a batch of NumPy arrays, as the stream returns it."""
    frames, joints, labels = (tensor.numpy() for tensor in random_clips(setup, scale, torch.device("cpu")))
    numbers = np.arange(setup.clips)
    return Batch(frames=frames, joints=joints, labels=labels, clips=numbers, positions=numbers, unreadable=())
