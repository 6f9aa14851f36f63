"""The memory that a training step's activations take, without running the model.

Letters: L tokens per group of an attention.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from starlab.models.config import StarConfig
from starlab.models.star import StarTransformer


def activation_bytes(config: StarConfig, clips: int, size_px: int) -> int:
    """Bytes that autograd keeps of one forward pass in fp32, counted on the meta device, where nothing is computed.

    Args:
        config: The model.
        clips: Clips in the batch.
        size_px: Side of the square frames.

    Raises:
        ValueError: the frames are too small for `config.grid`.
    """
    with torch.device("meta"):
        model = StarTransformer(replace(config, weights="none")).train()
        frames = torch.empty(clips, config.frames, size_px, size_px, 3, dtype=torch.uint8)
        joints = torch.empty(clips, config.frames, config.max_bodies, config.num_joints, 3)
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own:
            kept.setdefault(storage, tensor)  # alive, so that no later storage gets the same address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), FusedAttention():
        model(frames, joints)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


class FusedAttention(TorchFunctionMode):
    """Make attention keep what a fused kernel keeps.

    The meta device would store the L × L weights, which the kernels of real devices do not.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the attention call; run every other function as it is."""
        if func is torch.nn.functional.scaled_dot_product_attention:
            return KeptByFusedKernel.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class KeptByFusedKernel(torch.autograd.Function):
    """Keeps queries, keys, values, the result and one sum per query, as a fused attention kernel does."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The result's shape, without values."""
        out = values.new_empty((*queries.shape[:-1], values.shape[-1]))
        ctx.save_for_backward(queries, keys, values, out, queries.new_empty(queries.shape[:-1]))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Raises NotImplementedError: only the forward pass is counted."""
        raise NotImplementedError("only the forward pass is counted")
