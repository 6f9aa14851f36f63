"""FAttn, ZAttn and BAttn (Eq. 5-10): one operation with three groupings of the frame axis.

Letters: B clips, T frames, S tokens per frame, R selected ones, D width; G groups, L tokens and K keys per group, H heads.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from starlab.models.config import GroupProjections
from starlab.models.patterns import PATTERNS, divisible_frames


class SpatioTemporalAttention(nn.Module):
    """Multi-head attention over the tokens of several frames, with its projections; without residual and norm.

    "F": every token attends to all T·S tokens (Eq. 5-6). "Z": tokens of odd frames attend to those of even frames and
    the reverse (Eq. 7-9). "B": the same with the two halves of the clip (Eq. 10). The output is in temporal order.
    """

    def __init__(self, dim: int, heads: int, pattern: str, group_projections: GroupProjections = "shared") -> None:
        """Build the projections.

        Args:
            dim: Width of a token, D.
            heads: Attention heads; they divide `dim`.
            pattern: A letter of `PATTERNS`.
            group_projections: "separate" gives each group of frames its own projections ("F" has one group).

        Raises:
            ValueError: `pattern` is not in `PATTERNS`, or `heads` does not divide `dim`.
        """
        super().__init__()
        if pattern not in PATTERNS:
            raise ValueError(f"pattern is {pattern!r}; it must be one of {', '.join(PATTERNS)}")
        if dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads; choose a multiple of {heads}")
        self.heads = heads
        self.pattern = pattern
        self.frame_axis, self.groups = PATTERNS[pattern].frame_axis, PATTERNS[pattern].groups
        if group_projections == "separate" and self.groups > 1:
            self.qkv: nn.Module = GroupLinears([qkv_linear(dim) for _ in range(self.groups)])
            self.out: nn.Module = GroupLinears([xavier_linear(dim, dim) for _ in range(self.groups)])
        else:
            self.qkv = qkv_linear(dim)
            self.out = xavier_linear(dim, dim)

    def forward(self, tokens: Tensor, key_mask: Tensor | None = None, rows: tuple[int, ...] | None = None) -> Tensor:
        """Attend: (B, T, S, D) → the same shape, or (B, T, R, D) for R `rows`.

        Args:
            tokens: T is a multiple of the pattern's groups.
            key_mask: bool (B, T, S), False for a token that no token may attend to. Every group needs one True key.
            rows: Indices of the tokens of every frame that attend; None means all. Keys and values always come from all tokens.

        Raises:
            ValueError: T does not divide into the pattern's groups.
        """
        q, k, v = self.project(tokens)
        if rows is not None:
            per_frame = rearrange(q, "n h (t s) d -> n h t s d", s=tokens.shape[2])
            q = rearrange(select_rows(per_frame, rows), "n h t r d -> n h (t r) d")
        mask = None if key_mask is None else self.group_mask(key_mask)
        attended = self.join_heads(scaled_dot_product_attention(q, k, v, attn_mask=mask))
        return self.ungroup(self.out(attended), tokens.shape[1])

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, S, D) → queries, keys and values in the form that `split_heads` returns."""
        return self.split_heads(self.qkv(self.group(tokens)))

    def split_heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, G, L, 3 D) → queries ((B G), H, L, D / H), keys and values ((B G), H, K, D / H).

        Row g holds the queries of group g and the keys and values of the *other* groups: one call attends for all groups.
        """
        dim = qkv.shape[-1] // 3
        q, kv = torch.split(qkv, [dim, 2 * dim], dim=-1)
        q = rearrange(q, "b g l (h d) -> (b g) h l d", h=self.heads)
        k, v = rearrange(from_other_groups(kv), "b g k (two h d) -> two (b g) h k d", two=2, h=self.heads)
        return q, k, v

    def join_heads(self, attended: Tensor) -> Tensor:
        """((B G), H, L, D / H) → (B, G, L, D)."""
        return rearrange(attended, "(b g) h l d -> b g l (h d)", g=self.groups)

    def group(self, tokens: Tensor) -> Tensor:
        """(B, T, S, D) → (B, G, L, D)."""
        frames = tokens.shape[1]
        if frames % self.groups:
            raise ValueError(
                f"pattern {self.pattern!r} splits the frames into {self.groups} equal groups, but tokens have {frames} "
                f"frames; use {divisible_frames(frames, self.groups)}, or pattern 'F'"
            )
        return rearrange(tokens, f"b {self.frame_axis} s d -> b g (t s) d", g=self.groups)

    def ungroup(self, grouped: Tensor, frames: int) -> Tensor:
        """(B, G, L, D) → (B, T, S, D), the frames back in temporal order."""
        return rearrange(grouped, f"b g (t s) d -> b {self.frame_axis} s d", t=frames // self.groups)

    def group_mask(self, key_mask: Tensor) -> Tensor:
        """(B, T, S) → ((B G), 1, 1, K), which broadcasts over heads and queries."""
        return rearrange(from_other_groups(self.group(key_mask[..., None])), "b g k 1 -> (b g) 1 1 k")


def select_rows(x: Tensor, rows: tuple[int, ...]) -> Tensor:
    """(..., S, D) → (..., R, D): some tokens of every frame, by their indices."""
    return torch.stack([x[..., row, :] for row in rows], dim=-2)  # a list as index would be copied to the device first


def from_other_groups(grouped: Tensor) -> Tensor:
    """(B, G, L, ...) → (B, G, K, ...): what each group attends to, the tokens of all other groups.

    K is (G - 1) · L; the next group comes first, cyclically. A single group attends to itself.
    """
    groups = grouped.shape[1]
    if groups == 1:
        return grouped
    if groups == 2:
        return grouped.flip(1)  # the general case in one copy instead of two
    return torch.cat([grouped.roll(-shift, 1) for shift in range(1, groups)], dim=2)


def to_other_groups(keys: Tensor) -> Tensor:
    """(B, G, K) → (B, G, L): sum over the places where `from_other_groups` put each token (its transpose)."""
    groups = keys.shape[1]
    if groups == 1:
        return keys
    return torch.stack([part.roll(shift, 1) for shift, part in enumerate(keys.chunk(groups - 1, 2), start=1)]).sum(0)


class GroupLinears(nn.ModuleList):
    """One linear map per group: (B, G, L, in) → (B, G, L, out)."""

    def forward(self, grouped: Tensor) -> Tensor:
        """Apply map g to group g."""
        groups = zip(self, grouped.unbind(1), strict=True)
        return torch.stack([linear(tokens) for linear, tokens in groups], dim=1)


def qkv_linear(dim: int) -> nn.Linear:
    """One product for queries, keys and values; each D × D third starts Xavier-uniform on its own."""
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
