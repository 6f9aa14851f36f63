"""One STAR layer (Eq. 11-14), the MLP in it, and stochastic depth.

Letters: B clips, T frames, S tokens per frame, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from starlab.models.attention import SpatioTemporalAttention, xavier_linear
from starlab.models.config import GroupProjections, Norm


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerOptions:
    """How a layer is built; `StarConfig` explains each option."""

    mlp_ratio: float = 4.0
    norm: Norm = "post"
    group_projections: GroupProjections = "shared"
    dropout: float = 0.0
    """Probability."""
    drop_path: float = 0.0
    """Probability."""


class StarLayer(nn.Module):
    """One or two attentions and an MLP, each with a residual and a LayerNorm. Encoder and decoder have the same structure.

    `norm` "post" is the paper's: x ← LN(branch(x) + x); "pre" is x ← x + branch(LN(x)).
    """

    def __init__(self, dim: int, heads: int, patterns: str, options: LayerOptions = LayerOptions()) -> None:
        """`patterns`: letters of the attentions in order, such as "FZ"."""
        super().__init__()
        self.attentions = nn.ModuleList(
            SpatioTemporalAttention(dim, heads, letter, options.group_projections) for letter in patterns
        )
        self.attention_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in patterns)
        self.mlp = Mlp(dim, round(dim * options.mlp_ratio), options.dropout)
        self.mlp_norm = nn.LayerNorm(dim)
        self.pre = options.norm == "pre"
        self.dropout = options.dropout
        self.drop_path = options.drop_path

    def forward(self, tokens: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """(B, T, S, D) → the same shape; `key_mask`: bool (B, T, S), False for a token that no token may attend to."""
        x = tokens
        branches = list(zip(self.attentions, self.attention_norms, strict=True))
        if self.pre:
            for attention, norm in branches:
                x = x + self._regularise(attention(norm(x), key_mask))
            return x + self._regularise(self.mlp(self.mlp_norm(x)))
        for attention, norm in branches:
            x = norm(x + self._regularise(attention(x, key_mask)))  # Eq. 11, then Eq. 12-13
        return cast(Tensor, self.mlp_norm(x + self._regularise(self.mlp(x))))  # Eq. 14

    def _regularise(self, branch: Tensor) -> Tensor:
        branch = nn.functional.dropout(branch, self.dropout, self.training)
        return stochastic_depth(branch, self.drop_path) if self.training and self.drop_path else branch


class Mlp(nn.Module):
    """Linear, GELU, Linear; the output keeps the width."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.up = xavier_linear(dim, hidden)
        self.down = xavier_linear(hidden, dim)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) → (..., D)."""
        hidden = nn.functional.dropout(nn.functional.gelu(self.up(x)), self.dropout, self.training)
        return cast(Tensor, self.down(hidden))


def stochastic_depth(branch: Tensor, probability: float) -> Tensor:
    """Set the branch of a whole clip to 0 with this probability and scale the others up, which keeps the mean."""
    shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
    kept = torch.rand(shape, device=branch.device) >= probability
    return branch * (kept / (1 - probability)).to(branch.dtype)
