"""How the weights of the transformer's layers start.

Letters: D width, n branches (attentions and MLPs) of all layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from starlab.models.attention import SpatioTemporalAttention
from starlab.models.config import Init
from starlab.models.layers import StarLayer


@torch.no_grad()
def initialise(layers: Sequence[StarLayer], init: Init) -> None:
    """Set the weights of every layer of a model; they were built Xavier-uniform, with zero biases.

    Args:
        layers: Encoder and decoder layers together, because "depth_scaled" depends on their number. A shared layer comes once
            for each depth.
        init: "xavier" leaves them. "depth_scaled" multiplies both matrices of every branch (value and output projection, or
            the two of an MLP) by n^(-1/4), so that the n branches together add about as much variance as the tokens have.
            "torch" is the start of PyTorch's TransformerEncoderLayer. "trunc_normal" is ViT's, deviation 0.02.
    """
    gain = sum(len(layer.attentions) + 1 for layer in layers) ** -0.25
    for layer in dict.fromkeys(layers):
        for attention in layer.attentions:
            assert isinstance(attention, SpatioTemporalAttention)
            initialise_attention(attention, init, gain)
        for linear in (layer.mlp.up, layer.mlp.down):
            if init == "depth_scaled":
                linear.weight.mul_(gain)
            elif init == "torch":
                linear.reset_parameters()
            elif init == "trunc_normal":
                nn.init.trunc_normal_(linear.weight, std=0.02)


def initialise_attention(attention: SpatioTemporalAttention, init: Init, gain: float) -> None:
    """Set the projections of one attention: shared, or those of every group."""
    for module, is_output in ((attention.qkv, False), (attention.out, True)):
        for linear in [child for child in module.modules() if isinstance(child, nn.Linear)]:
            if init == "depth_scaled":
                scaled = linear.weight if is_output else linear.weight.chunk(3)[2]  # the values; queries and keys stay
                scaled.mul_(gain)
            elif init == "torch" and is_output:
                nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
            elif init == "torch":
                nn.init.xavier_uniform_(linear.weight)  # as one 3D × D matrix
            elif init == "trunc_normal":
                nn.init.trunc_normal_(linear.weight, std=0.02)
