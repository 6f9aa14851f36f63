"""One STAR layer (Eq. 11-14), the MLP in it, and stochastic depth.

Letters: B clips, T frames, S tokens per frame, R selected ones, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from starlab.models.attention import SpatioTemporalAttention, select_rows, xavier_linear
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

    def forward(self, tokens: Tensor, key_mask: Tensor | None = None, rows: tuple[int, ...] | None = None) -> Tensor:
        """(B, T, S, D) → the same shape, or (B, T, R, D) for R `rows`.

        Args:
            tokens: The tokens of all frames.
            key_mask: bool (B, T, S), False for a token that no token may attend to.
            rows: Indices of the tokens of every frame whose output is computed; None means all.
        """
        x, last = tokens, len(self.attentions) - 1
        for index, (attention, norm) in enumerate(zip(self.attentions, self.attention_norms, strict=True)):
            wanted = rows if index == last else None  # the attentions before need all tokens
            own = x if wanted is None else select_rows(x, wanted)
            if self.pre:
                x = own + self._regularise(attention(norm(x), key_mask, wanted))
            else:
                x = self._join(norm, own, self._regularise(attention(x, key_mask, wanted)))  # Eq. 11, then Eq. 12-13
        if self.pre:
            return x + self._regularise(self.mlp(self.mlp_norm(x)))
        return self._join(self.mlp_norm, x, self._regularise(self.mlp(x)))  # Eq. 14

    def _join(self, norm: nn.Module, x: Tensor, branch: Tensor) -> Tensor:
        """LN(x + branch), normalised in full precision under autocast and rounded, as the next product would do anyway."""
        return cast(Tensor, norm((x + branch).to(cast(Tensor, norm.weight).dtype)).to(branch.dtype))

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
