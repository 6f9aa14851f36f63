"""Changes to the model that are tried from outside: less work in the last layer, and attention without a dense mask."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import linear, pad

from starlab.models import attention as attention_module
from starlab.models.attention import SpatioTemporalAttention, from_other_groups
from starlab.models.layers import StarLayer
from starlab.models.star import StarTransformer
from starlab.models.tokens import Tokens


class ClassRowsStar(StarTransformer):
    """The same model, but its last layer computes the rows of the class tokens alone. The head reads no others."""

    def embed(self, frames: Tensor, joints: Tensor) -> Tensor:
        """The mean of the class tokens of all frames, (B, D)."""
        local, grid = (None, None) if self.backbone is None else self.backbone(frames)
        z = self.tokens(local, grid, joints, (frames.shape[2], frames.shape[3]))
        x = z.tokens
        *layers, last = (*self.encoder, *self.decoder)
        for layer in layers:
            x = layer(x, z.key_mask)
        return cast(Tensor, self.norm(class_rows(cast(StarLayer, last), x, z.key_mask, z.class_rows)).mean((1, 2)))


def class_rows(layer: StarLayer, x: Tensor, key_mask: Tensor | None, rows: tuple[int, ...]) -> Tensor:
    """Rows `rows` of every frame of `layer(x, key_mask)`: (B, T, S, D) → (B, T, len(rows), D), for the paper's layer.

    Raises:
        ValueError: the layer is pre-norm or has dropout, which the paper's has not.
    """
    if layer.pre or layer.dropout or layer.drop_path:
        raise ValueError("class rows alone are implemented for post-norm layers without dropout and drop-path")
    *first, (attention, norm) = zip(layer.attentions, layer.attention_norms, strict=True)
    for earlier, earlier_norm in first:
        x = earlier_norm(x + earlier(x, key_mask))
    own = torch.stack([x[:, :, row] for row in rows], dim=2)
    own = norm(own + attend_rows(cast(SpatioTemporalAttention, attention), own, x, key_mask))
    return cast(Tensor, layer.mlp_norm(own + layer.mlp(own)))


def attend_rows(attention: SpatioTemporalAttention, own: Tensor, tokens: Tensor, key_mask: Tensor | None) -> Tensor:
    """`attention(tokens, key_mask)`, but for the queries `own` alone: (B, T, R, D) → the same shape."""
    dim, heads, qkv = tokens.shape[-1], attention.heads, cast(torch.nn.Linear, attention.qkv)
    q = linear(attention.group(own), qkv.weight[:dim], qkv.bias[:dim])
    kv = linear(attention.group(tokens), qkv.weight[dim:], qkv.bias[dim:])
    q = rearrange(q, "b g l (h d) -> (b g) h l d", h=heads)
    k, v = rearrange(from_other_groups(kv), "b g k (two h d) -> two (b g) h k d", two=2, h=heads)
    mask = None if key_mask is None else attention.group_mask(key_mask)
    attend = attention_module.scaled_dot_product_attention  # type: ignore[attr-defined]  # by name: it may have been replaced
    attended = attention.join_heads(attend(q, k, v, attn_mask=mask))
    return attention.ungroup(attention.out(attended), tokens.shape[1])


def without_mask(_module: Any, _inputs: Any, z: Tokens) -> Tokens:
    """A hook on the tokenizer that lets every token attend to absent bodies too. Changes the results: a bound, no fix."""
    return dataclasses.replace(z, key_mask=None)


class AbsentBodiesLeftOut:
    """A hook on the tokenizer that drops the tokens of bodies absent from all clips of the batch. Exact for the logits."""

    def __init__(self, absent_joints: int) -> None:
        """`absent_joints`: joint tokens of the absent bodies, which come just before the last class token."""
        self.absent_joints = absent_joints

    def __call__(self, _module: Any, _inputs: Any, z: Tokens) -> Tokens:
        """The tokens that are there, and no mask."""
        kept = torch.cat([z.tokens[:, :, : -1 - self.absent_joints], z.tokens[:, :, -1:]], dim=2)
        return Tokens(kept, None, (*z.class_rows[:-1], z.class_rows[-1] - self.absent_joints))


@dataclasses.dataclass(frozen=True, slots=True)
class Packing:
    """Where the present keys of a batch are, for variable-length attention."""

    keys: Tensor
    """int64 indices of the present keys among those of all groups."""
    query_starts: Tensor
    key_starts: Tensor
    """int32 (groups + 1,) first row of every group among the packed rows, and their number."""
    longest: int
    """Keys of the group that has most."""


class VarlenAttention:
    """Takes the place of `scaled_dot_product_attention` and packs the present keys instead of masking the absent ones.

    Which keys are present is read from the first mask of a shape and kept: a loader knows it on the host, without reading
    it back, and the clips of a benchmark do not change.
    """

    def __init__(self) -> None:
        self.packings: dict[tuple[int, ...], Packing] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """((B G), H, L, d) queries, ((B G), H, K, d) keys and values, bool ((B G), 1, 1, K) mask → ((B G), H, L, d)."""
        from torch.nn.attention.varlen import varlen_attn

        if attn_mask is None:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v)
        groups, heads, queries, dim = q.shape
        shape = (*attn_mask.shape, queries)
        if shape not in self.packings:
            self.packings[shape] = packing(attn_mask.reshape(groups, -1), queries)
        packed = self.packings[shape]
        rows_q, rows_k, rows_v = (x.transpose(1, 2).reshape(-1, heads, dim) for x in (q, k, v))
        keys, values = (x.index_select(0, packed.keys) for x in (rows_k, rows_v))
        out = varlen_attn(rows_q, keys, values, packed.query_starts, packed.key_starts, queries, packed.longest)
        return cast(Tensor, out).reshape(groups, queries, heads, dim).transpose(1, 2)


def packing(present: Tensor, queries: int) -> Packing:
    """The packing of bool (groups, K); every group has `queries` queries. Waits for the device."""
    lengths = present.sum(1)
    starts = pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    query_starts = torch.arange(0, (len(present) + 1) * queries, queries, dtype=torch.int32, device=present.device)
    return Packing(present.flatten().nonzero()[:, 0], query_starts, starts, int(lengths.max()))
