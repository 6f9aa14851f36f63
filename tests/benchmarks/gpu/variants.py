"""Changes to the model that are tried from outside: more work in the last layer, and attention without a dense mask."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from starlab.models.attention import select_rows
from starlab.models.star import StarTransformer
from starlab.models.stem import StemConvolution
from starlab.models.tokens import Tokens


class EveryRowStar(StarTransformer):
    """The same model, but its last layer computes the rows of all tokens, of which the head reads the class tokens alone."""

    def _attend(self, z: Tokens) -> Tensor:
        x = z.tokens
        for layer in (*self.encoder, *self.decoder):
            x = layer(x, z.key_mask)
        return select_rows(x, z.class_rows)


def stem_on_pixels(model: StarTransformer) -> None:
    """Make the first convolution read pixels, as torchvision's does, where it has another way."""
    if model.backbone is None:
        return
    for module in model.backbone.get_submodule("stem").children():
        if isinstance(module, StemConvolution):
            module.on_cells = partial(nn.Conv3d.forward, module)  # type: ignore[method-assign]


def residuals_in_fp32(model: StarTransformer) -> None:
    """Make every layer pass its tokens on in fp32, as autocast does by itself."""
    for layer in model.layers():
        layer._join = _join_in_fp32  # type: ignore[method-assign]


def _join_in_fp32(norm: nn.Module, x: Tensor, branch: Tensor) -> Tensor:
    return cast(Tensor, norm(x + branch))


def without_mask(_module: Any, _inputs: Any, z: Tokens) -> Tokens:
    """A hook on the tokenizer that lets every token attend to absent bodies too. Changes the results: a bound, no fix."""
    return dataclasses.replace(z, key_mask=None)


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
