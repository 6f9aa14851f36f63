"""Parameters and floating-point operations of a model, part by part, without running it.

The model is built and called on PyTorch's meta device, where tensors have shapes but no values; every convolution,
linear layer, attention and joint pooling that runs is counted (a multiply-add is 2 FLOP); the last layer runs for the class
tokens alone. Norms, activations and heat maps are left out, as is usual.

Letters: D width, L queries and K keys per group of an attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from starlab.models.attention import SpatioTemporalAttention
from starlab.models.star import StarConfig, StarTransformer
from starlab.models.tokens import JointTokens

PARTS = ("backbone", "tokens", "encoder", "decoder", "head")


@dataclass(frozen=True, slots=True)
class PartCost:
    """One part of the model."""

    parameters: int
    """Trainable and frozen, without buffers."""
    flops: int
    """FLOP of one clip's forward pass."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one clip."""

    parts: dict[str, PartCost]
    """By name: backbone, tokens, encoder, decoder, head; a part that the model does not have costs nothing."""

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        return sum(part.parameters for part in self.parts.values())

    @property
    def forward_flops(self) -> int:
        """FLOP of one clip's forward pass."""
        return sum(part.flops for part in self.parts.values())

    @property
    def training_flops(self) -> int:
        """FLOP of one clip's training step: the backward pass of a product is two products of the same size.

        Recomputing (activation checkpointing, and the scores in fused attention) is not counted as work done.
        """
        return 3 * self.forward_flops


def cost(config: StarConfig, *, height: int = 224, width: int = 224) -> Cost:
    """The cost of one clip of `config.frames` frames of height × width pixels.

    Raises:
        ValueError: the frames are too small for `config.grid`.
    """
    with torch.device("meta"):
        model = StarTransformer(replace(config, weights="none")).eval()
        frames = torch.empty(1, config.frames, height, width, 3, dtype=torch.uint8)
        joints = torch.empty(1, config.frames, config.max_bodies, config.num_joints, 3)
    flops = dict.fromkeys(PARTS, 0)
    for part in PARTS:
        for module in children_of(model, part):
            if count := counter(module):
                module.register_forward_hook(adding(flops, part, count))
    with torch.no_grad():
        model(frames, joints)
    parameters = {part: sum(p.numel() for m in roots(model, part) for p in m.parameters()) for part in PARTS}
    return Cost({part: PartCost(parameters[part], flops[part]) for part in PARTS})


def roots(model: StarTransformer, part: str) -> list[nn.Module]:
    """The model's children that make up a part; the final norm belongs to the head, the pose head to the tokens."""
    names = {"head": ("norm", "head"), "tokens": ("pose", "tokens")}.get(part, (part,))
    return [child for name, child in model.named_children() if name in names]


def children_of(model: StarTransformer, part: str) -> list[nn.Module]:
    """Every module inside a part."""
    return [module for root in roots(model, part) for module in root.modules()]


Counter = Callable[[nn.Module, tuple[Any, ...], Any], int]


def counter(module: nn.Module) -> Counter | None:
    """The function that counts a module's own products, without those of the modules in it; None if it has none."""
    if isinstance(module, nn.Conv3d | nn.Linear):
        products = module.weight[0].numel()  # per element of the output
        return lambda _, __, output: 2 * products * int(output.numel())
    if isinstance(module, SpatioTemporalAttention):
        return attention_flops
    if isinstance(module, JointTokens):
        return pooling_flops
    return None


def attention_flops(module: nn.Module, inputs: tuple[Any, ...], _: Tensor) -> int:
    """Scores and weighted values: 2 · 2 · L · K · D for each group of L queries, which meet the K keys of the others."""
    assert isinstance(module, SpatioTemporalAttention)
    x, _, rows = inputs
    clips, frames, tokens, dim = x.shape
    queries = frames * (tokens if rows is None else len(rows)) // module.groups
    keys = frames * tokens // module.groups * max(1, module.groups - 1)
    return int(4 * clips * module.groups * queries * keys * dim)


def pooling_flops(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> int:
    """Eq. 1: every joint's map times the local map; nothing without pixels."""
    local = inputs[0]
    return 0 if local is None else int(2 * local.numel() * output.shape[2])


def adding(flops: dict[str, int], part: str, count: Counter) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    """A forward hook that adds a module's count to its part."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        flops[part] += count(module, inputs, output)

    return hook
