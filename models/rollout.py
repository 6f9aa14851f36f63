"""Attention rollout: how much each frame and each token contributes to the class tokens (Fig. 6).

Letters: B clips, T frames, H W pixels, M bodies, N joints, S tokens per frame; G groups, L queries and K keys per group.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from starlab.models.attention import SpatioTemporalAttention, to_other_groups
from starlab.models.star import StarTransformer

QUERIES_AT_ONCE = 256  # rows of the attention matrix in memory at a time


@dataclass(frozen=True, slots=True)
class TokenImportance:
    """Importance of every token of a batch, and which token is what."""

    importance: Tensor
    """(B, T, S) float32, non-negative, of sum 1 for each clip."""
    class_rows: tuple[int, ...]
    """Indices of the class tokens among the S tokens of every frame."""
    grid_rows: tuple[int, ...]
    """Those of the global map's cells, row by row; empty for a model of poses alone."""
    joint_rows: tuple[int, ...]
    """Those of the joints, body by body; empty for a model of pixels alone."""


def frame_importance(model: StarTransformer, frames: Tensor, joints: Tensor, patterns: str | None = None) -> Tensor:
    """Attention rollout of a batch in evaluation mode, by frame: `token_importance` summed over the tokens of each frame.

    Returns:
        (B, T) float32, each row non-negative and of sum 1.
    """
    return token_importance(model, frames, joints, patterns).importance.sum(2)


@torch.no_grad()
def token_importance(model: StarTransformer, frames: Tensor, joints: Tensor, patterns: str | None = None) -> TokenImportance:
    """Attention rollout of a batch in evaluation mode; the model is unchanged afterwards.

    Every attention becomes Ã = (A + 1) / 2, where A is its weight matrix averaged over the heads (for Z and B it is
    zero within a group) and 1 stands for the residual. The rows of Ã_n ··· Ã_1 that belong to class tokens are averaged,
    as the head averages those tokens.

    Args:
        model: an uncompiled StarTransformer with any pairing of attentions.
        frames: uint8 (B, T, H, W, 3).
        joints: float32 (B, T, M, N, 3).
        patterns: letters of the attentions to follow, e.g. "Z"; the others count as their residual alone. None follows all.
    """
    calls: list[tuple[SpatioTemporalAttention, Tensor, Tensor | None]] = []

    def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(module, SpatioTemporalAttention)
        calls.append((module, inputs[0], inputs[1]))

    class_rows: list[tuple[int, ...]] = []
    attentions = [module for module in model.modules() if isinstance(module, SpatioTemporalAttention)]
    hooks = [attention.register_forward_pre_hook(record) for attention in attentions]
    hooks.append(model.tokens.register_forward_hook(lambda *call: class_rows.append(call[2].class_rows)))
    try:
        with evaluating(model):
            model(frames, joints)
    finally:
        for hook in hooks:
            hook.remove()

    # Only the average row of the class tokens is needed. It passes through the attentions from the last to the first, as
    # products of a row and a matrix, so that the matrix is never stored whole.
    tokens = calls[0][1]
    row = torch.zeros(tokens.shape[:3], device=tokens.device)
    row[:, :, list(class_rows[0])] = 1 / (tokens.shape[1] * len(class_rows[0]))
    for attention, attention_input, key_mask in reversed(calls):
        if patterns is None or attention.pattern in patterns:
            row = (row + through_attention(attention, row, attention_input, key_mask)) / 2
    # The tokens of a frame are CLS_glob, grid, CLS_joint, joints, CLS_total (see Tokenizer), of which some may be absent.
    num_tokens = tokens.shape[2]
    num_joints = 0 if model.tokens.joint_tokens is None else joints.shape[2] * joints.shape[3]
    joint_rows = tuple(range(num_tokens - 1 - num_joints, num_tokens - 1))
    grid_rows = tuple(index for index in range(num_tokens) if index not in (*class_rows[0], *joint_rows))
    return TokenImportance(row, class_rows[0], grid_rows, joint_rows)


def through_attention(attention: SpatioTemporalAttention, row: Tensor, tokens: Tensor, key_mask: Tensor | None) -> Tensor:
    """The product of a row over all tokens and the attention's weight matrix (mean over heads): (B, T, S)."""
    q, k, _ = attention.project(tokens)
    mask = None if key_mask is None else attention.group_mask(key_mask)
    grouped_row = rearrange(attention.group(row[..., None]), "b g l 1 -> (b g) 1 1 l")
    keys = torch.zeros(k.shape[0], k.shape[2], device=k.device)
    chunks = zip(torch.split(q, QUERIES_AT_ONCE, 2), torch.split(grouped_row, QUERIES_AT_ONCE, 3), strict=True)
    for q_chunk, row_chunk in chunks:
        scores = (q_chunk @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        keys += (row_chunk @ scores.softmax(-1)).mean((1, 2))
    # The keys of row g are tokens of the other groups: put the sums back where those tokens are.
    grouped_keys = to_other_groups(rearrange(keys, "(b g) k -> b g k", g=attention.groups))
    return rearrange(attention.ungroup(grouped_keys[..., None], tokens.shape[1]), "b t s 1 -> b t s")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode for the block, and back into its mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
