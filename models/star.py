"""The STAR-transformer (WACV 2023): video frames and skeletons → class logits. Open this page first.

    frames ─► backbone ─► global map ─► GG-tokens ─┐
                 └──────► local map ──► JM-tokens ─┴─► Z ─► encoder (F-Z) ─► decoder (F-B) ─► mean class token ─► head
    joints ─────────────► heat maps ────────┘

With `pose` "learned", a head on the two maps predicts the heat maps, and no joints are needed (pose_head.py).

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
from starlab.models.heatmaps import CellGrid, joint_heatmaps, present_bodies
from starlab.models.initialisation import initialise
from starlab.models.inputs import check_frames, check_inputs
from starlab.models.layers import LayerOptions, StarLayer
from starlab.models.pose_head import FoundPose, PoseHead, left_to_right, pose_losses
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
        self.pose = build_pose_head(config) if config.pose == "learned" else None
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

    def forward(self, frames: Tensor, joints: Tensor | None = None, bodies: Bodies | None = None) -> Tensor:
        """Logits of a batch of clips.

        Args:
            frames: uint8 (B, T, H, W, 3), RGB.
            joints: float32 (B, T, M, N, 3): x, y as fractions of the frame (pixel centres), confidence. A joint with
                confidence 0 or outside [0, 1] is invisible; a body is absent when all its confidences are 0 over the
                clip, and then its tokens are masked as keys (where `max_bodies` > 1). A model with `pose` "learned"
                finds the joints itself and ignores these.
            bodies: The bodies that are present, if that is known outside the device (`pipelines.batch.Batch.by_bodies`). Their
                tokens are then left out instead of masked, which gives the same logits faster.

        Returns:
            (B, num_classes), float32, under autocast too.

        Raises:
            TypeError, ValueError: a tensor is missing or has another dtype, layout or size; joints are NaN (checked on the
                CPU only, where it costs no synchronisation; elsewhere such a joint counts as invisible).
        """
        return self._classify(self.embed(frames, joints, bodies))

    def embed(self, frames: Tensor, joints: Tensor | None = None, bodies: Bodies | None = None) -> Tensor:
        """The mean of the class tokens of all frames, (B, D): the multi-feature representation of Fig. 1."""
        if self.pose is not None:
            return self._embed_found(frames)[0]
        given = check_inputs(self.config, frames, joints)
        local, grid = (None, None) if self.backbone is None else self.backbone(frames)
        return self._mean_class_token(self.tokens(local, grid, given, (frames.shape[2], frames.shape[3])), bodies)

    def forward_with_joints(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of a batch of clips, and the joints that a model with `pose` "learned" found in them.

        Returns:
            (B, num_classes) as `forward`, and (B, T, M, N, 3) float32: x, y as fractions of the frame, confidence; bodies
            from left to right.
        """
        embedding, joints = self._embed_found(frames)
        return self._classify(embedding), joints

    def forward_taught(self, frames: Tensor, joints: Tensor, bodies: Bodies | None, forced: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of a training batch, and the loss of the pose of each clip, for a model with `pose` "learned".

        Args:
            frames: As in `forward`.
            joints: As in `forward`; the head learns from them.
            bodies: As in `forward`.
            forced: bool (B,), whether Eq. 1 takes the given joints of a clip in place of those that the head found.

        Returns:
            (B, num_classes) and (B,), float32. Both reach the head and the backbone by their gradients.
        """
        joints = left_to_right(check_inputs(self.config, frames, joints))
        local, grid, found, cells = self._find(frames)
        losses = pose_losses(found, joints, cells, self.config.sigma_cells)
        given = joint_heatmaps(joints.flatten(2, 3), cells, self.config.sigma_cells)
        there = present_bodies(joints)
        forced = forced[:, None, None, None, None]
        maps = torch.where(forced, given, found.log_maps.exp())
        shown = torch.where(forced, joints, found.joints(cells, self.config.num_joints, there))
        z = self.tokens(local, grid, shown, cells.size_px, maps)
        present_first = bodies and tuple((clips, tuple(range(len(present)))) for clips, present in bodies)
        return self._classify(self._mean_class_token(z, present_first)), losses

    def _embed_found(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        check_frames(self.config, frames)
        local, grid, found, cells = self._find(frames)
        joints = found.joints(cells, self.config.num_joints, found.present())
        return self._mean_class_token(self.tokens(local, grid, joints, cells.size_px, found.log_maps.exp()), None), joints

    def _find(self, frames: Tensor) -> tuple[Tensor, Tensor, FoundPose, CellGrid]:
        """The local and the global map, what the head found in them, and where the local map's cells are."""
        pose, backbone, joint_tokens = self.pose, self.backbone, self.tokens.joint_tokens
        if pose is None or backbone is None or joint_tokens is None:
            raise ValueError(f"StarConfig.pose is {self.config.pose!r}; only a model with 'learned' finds joints")
        local, grid = backbone(frames)
        cells = joint_tokens.grid(local, (frames.shape[2], frames.shape[3]))
        return local, grid, pose(local, grid), cells

    def _classify(self, embedding: Tensor) -> Tensor:
        with full_precision(embedding.device):
            return self.head(embedding.to(self.tokens.cls_total.dtype))  # type: ignore[no-any-return]

    def _mean_class_token(self, z: Tokens, bodies: Bodies | None) -> Tensor:
        runs = [z]
        if z.key_mask is not None and bodies is not None:
            runs = z.without_absent(bodies, self.config.max_bodies, self.config.num_joints)
        class_tokens = torch.cat([self._attend(run) for run in runs]) if len(runs) > 1 else self._attend(runs[0])
        return self.norm(class_tokens).mean((1, 2), dtype=self.tokens.cls_total.dtype)  # type: ignore[no-any-return]

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


def build_pose_head(config: StarConfig) -> PoseHead:
    """Build the head of a configuration that finds joints by itself."""
    channels = CHANNELS[config.backbone]
    return PoseHead(
        channels[config.local_layer], channels["layer4"], max_bodies=config.max_bodies, num_joints=config.num_joints
    )


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
