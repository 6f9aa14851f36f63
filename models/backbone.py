"""The CNN that both modalities share (§3.1): 3-D convolutions in the first stages, 2-D ones in the later stages.

Letters: B clips, T frames (kept by every stage), H W pixels or cells, C channels.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from starlab.models.config import BackboneName, BatchNorm, LocalLayer, PixelNorm
from starlab.models.trunks import STAGES, Mc3Trunk, TinyTrunk

LOCAL_STRIDE_PX: dict[LocalLayer, int] = {"layer2": 4, "layer3": 8}
"""Pixels between neighbouring cells of a local map, in both trunks. Every convolution on the way has an odd kernel k and
padding (k - 1) / 2, so cell i is centred on pixel stride · i exactly, whatever the size of the frame."""
KINETICS_FILE = "mc3_18-a90a0ba3.pth"
KINETICS_URL = f"https://download.pytorch.org/models/{KINETICS_FILE}"
KINETICS_MEAN = (0.43216, 0.394666, 0.37645)  # RGB in [0, 1], as torchvision's Kinetics-400 weights expect
KINETICS_STD = (0.22803, 0.22145, 0.216989)


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneOptions:
    """How a trunk is used; `StarConfig` explains each option."""

    local_layer: LocalLayer = "layer2"
    grid: int | None = None
    pixel_norm: PixelNorm = "kinetics"
    frozen_stages: int = 0
    batch_norm: BatchNorm = "train"
    channels_last: bool = True
    activation_checkpointing: bool = False


class Backbone(nn.Module):
    """Turns uint8 frames into a local and a global feature map.

    Stem and layer1 work at half the frame's size, layer2 at a quarter, layer3 at an eighth, layer4 at a sixteenth.
    """

    def __init__(self, name: BackboneName, options: BackboneOptions = BackboneOptions()) -> None:
        """Build the trunk with random weights."""
        super().__init__()
        trunk = Mc3Trunk() if name == "mc3_18" else TinyTrunk()
        for stage in STAGES:
            self.add_module(stage, trunk.get_submodule(stage))
        self.local_layer = options.local_layer
        self.grid = options.grid
        self.pixel_norm = options.pixel_norm
        self.frozen_stages = options.frozen_stages
        self.batch_norm = options.batch_norm
        self.channels_last = options.channels_last
        self.activation_checkpointing = options.activation_checkpointing
        self.register_buffer("mean", torch.tensor(KINETICS_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(KINETICS_STD), persistent=False)
        if self.batch_norm == "sync":
            for stage in STAGES:
                module = self.get_submodule(stage)
                self.add_module(stage, nn.SyncBatchNorm.convert_sync_batchnorm(module))
        for stage in STAGES[: self.frozen_stages]:
            self.get_submodule(stage).requires_grad_(False)
        self.train()  # puts frozen parts into evaluation mode before the first pass

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 RGB (B, T, H, W, 3) → local (B, C', T, H', W') and global map (B, C, T, h, w).

        Raises:
            ValueError: `grid` is finer than the last stage's map, or synchronised batch-norm cannot run here.
        """
        if self.training and self.batch_norm == "sync":
            check_can_synchronise(frames)
        x = self.normalise(frames)
        if not self.channels_last:
            x = x.contiguous()
        local = x
        for stage in STAGES:
            x = self._run(self.get_submodule(stage), x)
            if stage == self.local_layer:
                local = x
        return local, x if self.grid is None else pool_grid(x, self.grid)

    def normalise(self, frames: Tensor) -> Tensor:
        """uint8 (B, T, H, W, 3) → float (B, 3, T, H, W), a view whose memory order is channels_last_3d."""
        mean, std = cast(Tensor, self.mean), cast(Tensor, self.std)
        if self.pixel_norm == "kinetics":
            # one multiply-add: (x / 255 - mean) / std
            pixels = torch.addcmul(-mean / std, frames.to(mean.dtype), 1 / (255 * std))
        else:
            pixels = frames.to(mean.dtype)
            pixels = pixels - pixels.mean((1, 2, 3, 4), keepdim=True)
            variance = pixels.square().mean((1, 2, 3, 4), keepdim=True)
            pixels = pixels * (variance + 1.0).rsqrt()  # + 1 grey level²: a blank clip stays finite
        return rearrange(pixels, "b t h w c -> b c t h w")

    def _run(self, stage: nn.Module, x: Tensor) -> Tensor:
        if not (self.activation_checkpointing and self.training and torch.is_grad_enabled()):
            return cast(Tensor, stage(x))
        if torch.compiler.is_compiling():  # a compiled graph updates the running statistics once by itself
            return cast(Tensor, checkpoint(stage, x, use_reentrant=False))
        return cast(Tensor, checkpoint(stage, x, use_reentrant=False, context_fn=lambda: once(stage)))

    def train(self, mode: bool = True) -> Backbone:
        """Set the training mode; frozen stages and frozen batch-norms stay in evaluation mode."""
        super().train(mode)
        for stage in STAGES[: self.frozen_stages]:
            self.get_submodule(stage).eval()
        if self.batch_norm == "frozen":
            for norm in batch_norms(self):
                norm.eval()
        return self


def pool_grid(global_map: Tensor, grid: int) -> Tensor:
    """Average the cells of each frame into grid × grid.

    Raises:
        ValueError: a side of the map has fewer than `grid` cells.
    """
    frames, height, width = global_map.shape[2:]
    if grid > min(height, width):
        raise ValueError(
            f"grid is {grid}, but the global map of such frames has only {height} × {width} cells; "
            f"use grid ≤ {min(height, width)} or None, or larger frames"
        )
    return nn.functional.adaptive_avg_pool3d(global_map, (frames, grid, grid))


def batch_norms(module: nn.Module) -> Iterator[nn.BatchNorm3d | nn.SyncBatchNorm]:
    """Every batch-norm in a module."""
    for child in module.modules():
        if isinstance(child, nn.BatchNorm3d | nn.SyncBatchNorm):
            yield child


def check_can_synchronise(frames: Tensor) -> None:
    """Check that synchronised batch-norm can train here.

    Raises:
        ValueError: the batch is not on CUDA, or torch.distributed is not initialised.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not frames.is_cuda or not distributed:
        raise ValueError(
            f"batch_norm is 'sync', which trains only on CUDA under torch.distributed; the frames are on "
            f"{frames.device} and torch.distributed is {'' if distributed else 'not '}initialised. "
            "Use batch_norm 'train' or 'frozen' here"
        )


def once(stage: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts of the first pass of a checkpointed stage and of its repetition, which must not count the batch again."""
    return nullcontext(), statistics_untouched(stage)


@contextmanager
def statistics_untouched(stage: nn.Module) -> Iterator[None]:
    """Normalise by the batch without updating the running statistics."""
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in batch_norms(stage) if norm.training]
    for norm, _, count in before:
        # A temporary counter rather than None: synchronised batch-norm requires one.
        norm.momentum, norm.num_batches_tracked = 0.0, None if count is None else torch.zeros_like(count)
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count


def load_kinetics400(backbone: Backbone, weights_path: str | None) -> None:
    """Load torchvision's Kinetics-400 weights from a file into an mc3_18 backbone; nothing is downloaded.

    Raises:
        FileNotFoundError, ValueError: see `kinetics400_file`.
    """
    path = kinetics400_file(weights_path)
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    backbone.load_state_dict({key: value for key, value in state.items() if not key.startswith("fc.")})


def kinetics400_file(weights_path: str | None) -> Path:
    """Find torchvision's file of Kinetics-400 weights for mc3_18 and check its content against its name.

    Args:
        weights_path: The file, named as by torchvision; None means the one in the torch hub cache.

    Raises:
        FileNotFoundError: there is no such file; the message says what to download and where to put it.
        ValueError: the file's SHA-256 does not start with the digits in its name.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / KINETICS_FILE if weights_path is None else Path(weights_path)
    if not path.is_file():
        raise FileNotFoundError(
            f"weights 'kinetics400' need the file {path}, which is not there; download {KINETICS_URL} to that place "
            "(or anywhere, and set weights_path), or set weights to 'none'"
        )
    expected = re.fullmatch(r"mc3_18-([0-9a-f]{8,64})\.pth", path.name)
    if expected is None:
        raise ValueError(
            f"weights_path is {path}; the name must be mc3_18-<first digits of its SHA-256>.pth, "
            f"as torchvision's {KINETICS_FILE}, so that the content can be checked"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(expected[1]):
        raise ValueError(
            f"{path} has SHA-256 {digest[:16]}…, but its name says {expected[1]}: the file is damaged or another one; "
            f"download {KINETICS_URL} again"
        )
    return path
