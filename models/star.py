"""The STAR-transformer (WACV 2023): video frames and skeletons → class logits. Open this page first.

    frames ─► backbone ─► global map ─► GG-tokens ─┐
                 └──────► local map ──► JM-tokens ─┴─► Z ─► encoder (F-Z) ─► decoder (F-B) ─► mean class token ─► head
    joints ─────────────► heat maps ────────┘

Letters: B clips, T frames, H W pixels, M bodies, N joints per body, S tokens per frame, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from starlab.models.attention import xavier_linear
from starlab.models.backbone import LOCAL_STRIDE_PX, Backbone, BackboneOptions, load_kinetics400
from starlab.models.config import StarConfig
from starlab.models.initialisation import initialise
from starlab.models.inputs import check_inputs
from starlab.models.layers import LayerOptions, StarLayer
from starlab.models.state import load_state
from starlab.models.tokens import Bodies, GlobalTokens, JointTokenOptions, JointTokens, TimeOptions, Tokenizer, Tokens
from starlab.models.trunks import CHANNELS

__all__ = ["StarConfig", "StarTransformer", "load_state"]


class StarTransformer(nn.Module):
    """`logits = StarTransformer(config)(frames, joints)`; see docs/model.md for the equations behind each part."""

    def __init__(self, config: StarConfig) -> None:
        """Build the model with random weights; those of the backbone come from a file if `config.weights` is "kinetics400".

        Raises:
            FileNotFoundError, ValueError: the Kinetics-400 file is missing or damaged.
        """
        super().__init__()
        self.config = config
        self.backbone = None if config.modality == "pose" else build_backbone(config)
        self.tokens = build_tokenizer(config)
        depths = (config.encoder_depth, config.decoder_depth)
        drop_paths = [config.drop_path * index / max(1, sum(depths) - 1) for index in range(sum(depths))]
        self.encoder = build_layers(config, config.encoder, drop_paths[: depths[0]])
        self.decoder = build_layers(config, config.decoder, drop_paths[depths[0] :])
        initialise(self.layers(), config.init)
        self.norm = nn.LayerNorm(config.dim) if config.norm == "pre" else nn.Identity()
        self.head = nn.Sequential(
            nn.LayerNorm(config.dim),
            xavier_linear(config.dim, config.dim),
            nn.GELU(),
            xavier_linear(config.dim, config.num_classes),
        )

    def forward(self, frames: Tensor, joints: Tensor, bodies: Bodies | None = None) -> Tensor:
        """Logits of a batch of clips.

        Args:
            frames: uint8 (B, T, H, W, 3), RGB.
            joints: float32 (B, T, M, N, 3): x, y as fractions of the frame (pixel centres), confidence. A joint with
                confidence 0 or outside [0, 1] is invisible; a body is absent when all its confidences are 0 over the
                clip, and then its tokens are masked as keys (where `max_bodies` > 1).
            bodies: The bodies that are present, if that is known outside the device (`pipelines.batch.Batch.by_bodies`). Their
                tokens are then left out instead of masked, which gives the same logits faster.

        Returns:
            (B, num_classes), float32, under autocast too.

        Raises:
            TypeError, ValueError: a tensor has another dtype, layout or size; joints are NaN (checked on the CPU only,
                where it costs no synchronisation; elsewhere such a joint counts as invisible).
        """
        embedding = self.embed(frames, joints, bodies)
        with full_precision(embedding.device):
            return self.head(embedding.to(self.tokens.cls_total.dtype))  # type: ignore[no-any-return]

    def embed(self, frames: Tensor, joints: Tensor, bodies: Bodies | None = None) -> Tensor:
        """The mean of the class tokens of all frames, (B, D): the multi-feature representation of Fig. 1."""
        check_inputs(self.config, frames, joints)
        local, grid = (None, None) if self.backbone is None else self.backbone(frames)
        z = self.tokens(local, grid, joints, (frames.shape[2], frames.shape[3]))
        runs = [z]
        if z.key_mask is not None and bodies is not None:
            runs = z.without_absent(bodies, self.config.max_bodies, self.config.num_joints)
        class_tokens = torch.cat([self._attend(run) for run in runs]) if len(runs) > 1 else self._attend(runs[0])
        return self.norm(class_tokens).mean((1, 2))  # type: ignore[no-any-return]

    def layers(self) -> list[StarLayer]:
        """The layers of encoder and decoder in the order in which they run; a shared layer comes once for each depth."""
        config = self.config
        uses = (config.encoder_depth, config.decoder_depth) if config.share_layers else (1, 1)
        return cast(list[StarLayer], [*self.encoder] * uses[0] + [*self.decoder] * uses[1])

    def _attend(self, z: Tokens) -> Tensor:
        """Encoder and decoder: the class tokens of every frame, (B, T, R, D). The last layer computes no others."""
        x = z.tokens
        layers = self.layers()
        for index, layer in enumerate(layers):
            rows = z.class_rows if index == len(layers) - 1 else None
            if self.config.activation_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(layer, x, z.key_mask, rows, use_reentrant=False)
            else:
                x = layer(x, z.key_mask, rows)
        return x


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """A block without autocast. The head costs nothing, and half precision would round logits to two or three digits."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)  # "meta" has no autocast


def build_backbone(config: StarConfig) -> Backbone:
    """Build the backbone of a configuration, with its weights."""
    backbone = Backbone(
        config.backbone,
        BackboneOptions(
            local_layer=config.local_layer,
            grid=config.grid,
            pixel_norm=config.pixel_norm,
            frozen_stages=config.frozen_stages,
            batch_norm=config.batch_norm,
            channels_last=config.channels_last,
            activation_checkpointing=config.activation_checkpointing,
        ),
    )
    if config.weights == "kinetics400":
        load_kinetics400(backbone, config.weights_path)
    return backbone


def build_tokenizer(config: StarConfig) -> Tokenizer:
    """Build the tokenizer of a configuration: GG-, JM- and class tokens."""
    channels = CHANNELS[config.backbone]
    glob = GlobalTokens(channels["layer4"], config.dim, token_norm=config.token_norm)
    joint = JointTokens(
        None if config.modality == "pose" else channels[config.local_layer],
        config.dim,
        JointTokenOptions(
            num_joints=config.num_joints,
            max_bodies=config.max_bodies,
            stride_px=LOCAL_STRIDE_PX[config.local_layer],
            sigma_cells=config.sigma_cells,
            heatmap_norm=config.heatmap_norm,
            position=config.joint_position,
            token_norm=config.token_norm,
            init_std=config.token_init_std,
        ),
    )
    return Tokenizer(
        config.dim,
        global_tokens=None if config.modality == "pose" else glob,
        joint_tokens=None if config.modality == "rgb" else joint,
        class_tokens=config.class_tokens,
        time=TimeOptions(frames=config.frames, position=config.temporal_position, scale=config.temporal_position_scale),
        init_std=config.token_init_std,
    )


def build_layers(config: StarConfig, patterns: str, drop_paths: Sequence[float]) -> nn.ModuleList:
    """Build the layers of the encoder or the decoder, one for each probability; a single one if they share their weights."""
    if config.share_layers:
        drop_paths = [sum(drop_paths) / len(drop_paths)]
    return nn.ModuleList(build_layer(config, patterns, probability) for probability in drop_paths)


def build_layer(config: StarConfig, patterns: str, drop_path: float) -> StarLayer:
    """Build one encoder or decoder layer of a configuration."""
    return StarLayer(
        config.dim,
        config.heads,
        patterns,
        LayerOptions(
            mlp_ratio=config.mlp_ratio,
            norm=config.norm,
            group_projections=config.group_projections,
            dropout=config.dropout,
            drop_path=drop_path,
        ),
    )
