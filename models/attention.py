"""FAttn, ZAttn and BAttn (Eq. 5-10): one operation with three groupings of the frame axis.

Letters: B clips, T frames, S tokens per frame, D width; G groups, L tokens per group, H heads.
"""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

Pattern = Literal["F", "Z", "B"]
GroupProjections = Literal["shared", "separate"]

# The frame axis of each pattern: which frames form a group. Frame 1 is odd (the paper counts from 1).
FRAME_AXIS: dict[Pattern, str] = {
    "F": "(g t)",  # g = 1: every frame
    "Z": "(t g)",  # odd frames, even frames
    "B": "(g t)",  # first half, second half
}
NUM_GROUPS: dict[Pattern, int] = {"F": 1, "Z": 2, "B": 2}


class SpatioTemporalAttention(nn.Module):
    """Multi-head attention over the tokens of several frames, with its projections; no residual, no norm.

    "F": every token attends to all T·S tokens (Eq. 5-6). "Z": tokens of odd frames attend to those of even frames and
    the reverse (Eq. 7-9). "B": the same with the two halves of the clip (Eq. 10). The output is in temporal order.
    """

    def __init__(self, dim: int, heads: int, pattern: Pattern, group_projections: GroupProjections = "shared") -> None:
        """`group_projections`: "separate" gives each group of frames its own projections ("F" has one group)."""
        super().__init__()
        if pattern not in NUM_GROUPS:
            raise ValueError(f"pattern is {pattern!r}; it must be 'F', 'Z' or 'B'")
        if dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads; choose a multiple of {heads}")
        self.heads = heads
        self.pattern: Pattern = pattern
        self.groups = NUM_GROUPS[pattern]
        if group_projections == "separate" and self.groups == 2:
            self.qkv: nn.Module = GroupLinears([qkv_linear(dim) for _ in range(2)])
            self.out: nn.Module = GroupLinears([xavier_linear(dim, dim) for _ in range(2)])
        else:
            self.qkv = qkv_linear(dim)
            self.out = xavier_linear(dim, dim)

    def forward(self, tokens: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """(B, T, S, D) → the same shape.

        Args:
            tokens: T must be even for "Z" and "B".
            key_mask: bool, False where nobody may attend to that token. Every group needs one True key.

        Raises:
            ValueError: T is odd and the pattern is "Z" or "B".
        """
        q, k, v = self.project(tokens)
        mask = None if key_mask is None else self.group_mask(key_mask)
        attended = self.join_heads(scaled_dot_product_attention(q, k, v, attn_mask=mask))
        return self.ungroup(self.out(attended), tokens.shape[1])

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, S, D) → queries, keys and values as `split_heads` gives them."""
        return self.split_heads(self.qkv(self.group(tokens)))

    def split_heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, G, L, 3 D) → queries, keys, values, each ((B G), H, L, D / H); row g has the *other* group's keys."""
        dim = qkv.shape[-1] // 3
        q, kv = torch.split(qkv, [dim, 2 * dim], dim=-1)
        if self.groups == 2:
            kv = kv.flip(1)  # both groups in one call: group g's queries meet the other group's keys and values
        q = rearrange(q, "b g l (h d) -> (b g) h l d", h=self.heads)
        k, v = rearrange(kv, "b g l (two h d) -> two (b g) h l d", two=2, h=self.heads)
        return q, k, v

    def join_heads(self, attended: Tensor) -> Tensor:
        """((B G), H, L, D / H) → (B, G, L, D)."""
        return rearrange(attended, "(b g) h l d -> b g l (h d)", g=self.groups)

    def group(self, tokens: Tensor) -> Tensor:
        """(B, T, S, D) → (B, G, L, D)."""
        frames = tokens.shape[1]
        if frames % self.groups:
            raise ValueError(
                f"pattern {self.pattern!r} splits the frames into two equal groups, but tokens have {frames} frames; "
                f"use an even number such as {frames + 1}, or pattern 'F'"
            )
        return rearrange(tokens, f"b {FRAME_AXIS[self.pattern]} s d -> b g (t s) d", g=self.groups)

    def ungroup(self, grouped: Tensor, frames: int) -> Tensor:
        """(B, G, L, D) → (B, T, S, D), the frames back in temporal order."""
        t = frames // self.groups
        return rearrange(grouped, f"b g (t s) d -> b {FRAME_AXIS[self.pattern]} s d", t=t)

    def group_mask(self, key_mask: Tensor) -> Tensor:
        """(B, T, S) → ((B G), 1, 1, L), which broadcasts over heads and queries."""
        grouped = self.group(key_mask[..., None])
        if self.groups == 2:
            grouped = grouped.flip(1)
        return rearrange(grouped, "b g l 1 -> (b g) 1 1 l")


class GroupLinears(nn.ModuleList):
    """One linear map per group: (B, G, L, in) → (B, G, L, out)."""

    def forward(self, grouped: Tensor) -> Tensor:
        """Apply map g to group g."""
        groups = zip(self, grouped.unbind(1), strict=True)
        return torch.stack([linear(tokens) for linear, tokens in groups], dim=1)


def qkv_linear(dim: int) -> nn.Linear:
    """One product for queries, keys and values, each D × D third started Xavier-uniform by itself."""
    linear = xavier_linear(dim, 3 * dim)
    for third in linear.weight.data.chunk(3):
        nn.init.xavier_uniform_(third)  # as one 3D × D matrix the weights would start √2 too small
    return linear


def xavier_linear(in_features: int, out_features: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer that starts Xavier-uniform with a zero bias."""
    linear = nn.Linear(in_features, out_features, bias=bias)
    nn.init.xavier_uniform_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear
