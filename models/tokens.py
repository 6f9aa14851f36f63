"""GG-, JM- and class tokens, concatenated frame by frame (Eq. 1-4).

Letters: B clips, T frames, M bodies, N joints per body, P cells of the global map, S tokens per frame, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from starlab.models.attention import xavier_linear
from starlab.models.config import ClassTokens, HeatmapNorm, JointPosition, TemporalPosition
from starlab.models.heatmaps import CellGrid, joint_heatmaps, pool_joints, present_bodies, visible_joints

FOURIER_BANDS = 6  # wavelengths from two frames down to a sixteenth of a frame

Bodies = tuple[tuple[int, tuple[int, ...]], ...]
"""Which bodies are present in the clips of a batch: (number of clips, indices of their bodies) for each run of equal clips."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The input of the encoder."""

    tokens: Tensor
    """(B, T, S, D)."""
    key_mask: Tensor | None
    """bool (B, T, S), False for the joints of an absent body; None where no body can be absent."""
    class_rows: tuple[int, ...]
    """Indices of the class tokens among the S tokens of every frame."""

    def without_absent(self, bodies: Bodies, max_bodies: int, num_joints: int) -> list[Tokens]:
        """Split the batch into its runs of clips with the same bodies, and leave out the tokens of absent ones.

        What remains needs no mask. `max_bodies` and `num_joints` (per body) are those of the model.
        """
        runs, first_clip = [], 0
        first_joint = self.tokens.shape[2] - 1 - max_bodies * num_joints  # the joints stand before the last class token
        for clips, present in bodies:
            own = self.tokens[first_clip : first_clip + clips]
            first_clip += clips
            if len(present) < max_bodies:
                joints = own[:, :, first_joint:-1].unflatten(2, (max_bodies, num_joints))
                kept = [joints[:, :, body] for body in present]
                own = torch.cat([own[:, :, :first_joint], *kept, own[:, :, -1:]], dim=2)
            total = own.shape[2] - 1
            runs.append(Tokens(own, None, (*self.class_rows[:-1], total)))
        return runs


class GlobalTokens(nn.Module):
    """GG-tokens: each cell of the global map, projected to width D."""

    def __init__(self, channels: int, dim: int, *, token_norm: bool) -> None:
        super().__init__()
        self.projection = xavier_linear(channels, dim)
        self.norm = nn.LayerNorm(dim) if token_norm else nn.Identity()

    def forward(self, global_map: Tensor) -> Tensor:
        """(B, C, T, h, w) → (B, T, P, D)."""
        cells = rearrange(global_map, "b c t h w -> b t (h w) c")
        return cast(Tensor, self.norm(self.projection(cells)))


@dataclass(frozen=True, kw_only=True, slots=True)
class JointTokenOptions:
    """How JM-tokens are made; `StarConfig` explains each option."""

    num_joints: int
    max_bodies: int
    stride_px: int
    """Pixels between neighbouring cells of the local map."""
    sigma_cells: float
    heatmap_norm: HeatmapNorm
    position: JointPosition
    token_norm: bool
    init_std: float


class JointTokens(nn.Module):
    """JM-tokens + pos (Eq. 1 and the sum in Eq. 3): one token per joint and body."""

    def __init__(self, channels: int | None, dim: int, options: JointTokenOptions) -> None:
        """`channels`: those of the local map; None makes tokens of the joint alone, without a pixel."""
        super().__init__()
        self.stride_px = options.stride_px
        self.sigma_cells = options.sigma_cells
        self.heatmap_norm = options.heatmap_norm
        init_std = options.init_std
        self.projection = xavier_linear(4 * FOURIER_BANDS + 1 if channels is None else channels, dim)
        self.norm = nn.LayerNorm(dim) if options.token_norm else nn.Identity()
        # Eq. 1 gives an invisible joint the zero vector. LayerNorm would multiply the gradient of that by 1 / √ε = 316, so
        # under token_norm such a joint has a learned token in its place.
        self.unseen = nn.Parameter(torch.randn(dim) * init_std) if options.token_norm else None
        self.pos = nn.Parameter(torch.randn(options.num_joints, dim) * init_std)
        self.body = nn.Parameter(torch.randn(options.max_bodies, dim) * init_std) if options.max_bodies > 1 else None
        wants_xy = options.position == "index_xy" and channels is not None
        self.xy = xavier_linear(4 * FOURIER_BANDS, dim, bias=False) if wants_xy else None

    def forward(
        self, local_map: Tensor | None, joints: Tensor, size_px: tuple[int, int], heatmaps: Tensor | None = None
    ) -> Tensor:
        """Map (B, C, T, H, W) and joints (B, T, M, N, 3) → (B, T, M·N, D).

        `local_map` is None if `channels` was None; `size_px` is the height and width of the frames. `heatmaps`,
        (B, T, M·N, H, W), take the place of the Gaussians around the joints in Eq. 1.
        """
        joints = rearrange(joints, "b t m n c -> b t (m n) c")
        if local_map is None:
            confidence = torch.where(visible_joints(joints), joints[..., 2], 0)
            features = torch.cat([fourier_code(joints), confidence[..., None]], dim=-1)
        else:
            if heatmaps is None:
                heatmaps = joint_heatmaps(joints, self.grid(local_map, size_px), self.sigma_cells, self.heatmap_norm)
            features = pool_joints(local_map, heatmaps)
        tokens = cast(Tensor, self.norm(self.projection(features.to(self.pos.dtype))))
        if self.unseen is not None:
            tokens = torch.where(visible_joints(joints)[..., None], tokens, self.unseen)
        position = self.pos if self.body is None else rearrange(self.body[:, None] + self.pos, "m n d -> (m n) d")
        tokens = tokens + position
        return tokens if self.xy is None else tokens + self.xy(fourier_code(joints).to(self.pos.dtype))

    def grid(self, local_map: Tensor, size_px: tuple[int, int]) -> CellGrid:
        """Where the cells of the local map (B, C, T, H, W) are in frames of `size_px`, height and width."""
        return CellGrid((local_map.shape[-2], local_map.shape[-1]), size_px, self.stride_px)


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeOptions:
    """How a frame's place in time is added to its tokens; `StarConfig` explains each option."""

    frames: int
    position: TemporalPosition
    scale: float


class Tokenizer(nn.Module):
    """Z = (CLS_glob ⊕ GG) ⊕ (CLS_joint ⊕ (JM + pos)) ⊕ CLS_total for every frame (Eq. 2-4), and the key mask."""

    time: Tensor | None

    def __init__(
        self,
        dim: int,
        *,
        global_tokens: GlobalTokens | None,
        joint_tokens: JointTokens | None,
        class_tokens: ClassTokens,
        time: TimeOptions,
        init_std: float,
    ) -> None:
        """`global_tokens` or `joint_tokens` None leaves that modality out, with its class token."""
        super().__init__()
        self.global_tokens = global_tokens
        self.joint_tokens = joint_tokens
        multi = class_tokens == "multi"
        self.cls_glob = nn.Parameter(torch.randn(dim) * init_std) if multi and global_tokens else None
        self.cls_joint = nn.Parameter(torch.randn(dim) * init_std) if multi and joint_tokens else None
        self.cls_total = nn.Parameter(torch.randn(dim) * init_std)
        self.temporal_position_scale = time.scale
        if time.position == "learned":
            self.time = nn.Parameter(torch.randn(time.frames, dim) * init_std)
        else:
            table = sincos_position(time.frames, dim) if time.position == "sincos" else None
            self.register_buffer("time", table, persistent=False)

    def forward(
        self,
        local_map: Tensor | None,
        global_map: Tensor | None,
        joints: Tensor,
        size_px: tuple[int, int],
        heatmaps: Tensor | None = None,
    ) -> Tokens:
        """Maps (B, C, T, H, W) and joints (B, T, M, N, 3) → `Tokens`.

        A map is None where the modality does not use it; `size_px` is the height and width of the frames; `heatmaps` as in
        `JointTokens`.
        """
        clips, frames = joints.shape[:2]
        gg = None if self.global_tokens is None else self.global_tokens(global_map)
        jm = None if self.joint_tokens is None else self.joint_tokens(local_map, joints, size_px, heatmaps)
        parts = [part for part in (self.cls_glob, gg, self.cls_joint, jm, self.cls_total) if part is not None]
        rows = [1 if part.ndim == 1 else part.shape[2] for part in parts]
        starts = [sum(rows[:index]) for index in range(len(parts))]
        class_rows = tuple(start for part, start in zip(parts, starts, strict=True) if part.ndim == 1)
        # every frame carries its own class tokens: the same learned vectors, repeated
        per_frame = [part if part.ndim > 1 else repeat(part, "d -> b t 1 d", b=clips, t=frames) for part in parts]
        tokens = torch.cat(per_frame, dim=2)
        if self.time is not None:
            tokens = tokens + self.temporal_position_scale * self.time[:, None]
        key_mask = None
        if jm is not None and joints.shape[2] > 1:
            key_mask = present_keys(joints, tokens.shape[2] - 1 - jm.shape[2], tokens.shape[2])
        return Tokens(tokens, key_mask, tuple(class_rows))


def present_keys(joints: Tensor, first_joint: int, num_tokens: int) -> Tensor:
    """(B, T, S) bool: False for the joint tokens of a body whose confidences are 0 over the whole clip."""
    num_frames, num_joints = joints.shape[1], joints.shape[3]
    joint_keys = repeat(present_bodies(joints), "b m -> b t (m n)", t=num_frames, n=num_joints)
    after = num_tokens - first_joint - joint_keys.shape[2]
    return nn.functional.pad(joint_keys, (first_joint, after), value=True)


def fourier_code(joints: Tensor) -> Tensor:
    """Sine and cosine of x and y at octaves, (B, T, N, 4 · FOURIER_BANDS) in [-1, 1]; 0 for a joint that is not visible."""
    octaves = torch.arange(FOURIER_BANDS, device=joints.device, dtype=joints.dtype)
    phase = rearrange(joints[..., :2, None] * (math.pi * 2.0**octaves), "... xy f -> ... (xy f)")
    code = torch.cat([phase.sin(), phase.cos()], dim=-1)
    return torch.where(visible_joints(joints)[..., None], code, 0)


def sincos_position(frames: int, dim: int) -> Tensor:
    """(T, D): sines, then cosines, of the frame index at D/2 wavelengths from 2π to 2π · 10,000 frames."""
    rates = 10_000.0 ** (-torch.arange(dim // 2) / (dim // 2))
    phase = torch.arange(frames)[:, None] * rates
    return torch.cat([phase.sin(), phase.cos()], dim=-1)
