"""Every choice of the model in one place.

The defaults are the paper's; docs/model.md explains the reading behind each option. Shapes: D is the width of a token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from starlab.models.patterns import PATTERNS, divisible_frames

Weights = Literal["none", "kinetics400"]
BackboneName = Literal["mc3_18", "mc3_tiny"]
PixelNorm = Literal["kinetics", "clip"]
LocalLayer = Literal["layer2", "layer3"]
BatchNorm = Literal["train", "frozen", "sync"]
HeatmapNorm = Literal["sum", "peak"]
JointPosition = Literal["index", "index_xy"]
ClassTokens = Literal["multi", "single"]
TemporalPosition = Literal["none", "sincos", "learned"]
Norm = Literal["post", "pre"]
Init = Literal["depth_scaled", "xavier", "torch", "trunc_normal"]
GroupProjections = Literal["shared", "separate"]
Modality = Literal["both", "rgb", "pose"]
PoseSource = Literal["annotated", "estimated", "learned"]

CHOICES: dict[str, object] = {
    "modality": Modality,
    "pose": PoseSource,
    "backbone": BackboneName,
    "weights": Weights,
    "pixel_norm": PixelNorm,
    "local_layer": LocalLayer,
    "batch_norm": BatchNorm,
    "heatmap_norm": HeatmapNorm,
    "joint_position": JointPosition,
    "class_tokens": ClassTokens,
    "temporal_position": TemporalPosition,
    "norm": Norm,
    "init": Init,
    "group_projections": GroupProjections,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class StarConfig:
    """A STAR-transformer. Only `num_classes` and `num_joints` are required; the rest is the paper's model."""

    # --- the data --------------------------------------------------------------------------------------------------
    num_classes: int
    """Classes, the length of a clip's logits."""
    num_joints: int
    """Joints per body: 13 in Penn-Action, 25 in NTU."""
    max_bodies: int = 1
    """Bodies per clip, side by side; above 1, absent bodies are masked out of every attention."""
    frames: int = 16
    """Frames per clip; a multiple of the groups of each attention pattern in use (even for Z and B)."""
    modality: Modality = "both"
    """Use both; "rgb": no JM-tokens; "pose": joint tokens from x, y and confidence alone, without reading a pixel."""

    pose: PoseSource = "annotated"
    """Where the joints of Eq. 1 come from: the data set's annotations, an estimator's file, which the model treats alike, or
    "learned": the model's own heat maps, so that it recognises from frames alone. It is trained on the given joints."""

    # --- backbone --------------------------------------------------------------------------------------------------
    backbone: BackboneName = "mc3_18"
    """The paper's "mc3_18"; or "mc3_tiny", the same pattern at an eighth of the width, for demos on a CPU."""
    weights: Weights = "none"
    """Random weights ("none"), or "kinetics400", which reads a file when the model is built (the paper's choice)."""
    weights_path: str | None = None
    """The Kinetics-400 file; None means the torch hub cache."""
    pixel_norm: PixelNorm = "kinetics"
    """Normalise pixels by the mean and deviation of Kinetics, or each clip to mean 0 and deviation 1."""
    local_layer: LocalLayer = "layer2"
    """The "middle layer" whose map gives the JM-tokens."""
    grid: int | None = None
    """Average the global map to grid × grid cells per frame; None keeps it (14 × 14 at 224²)."""
    frozen_stages: int = 0
    """Number of stages, of stem, layer1 … layer4, that stay as loaded: 0 to 5."""
    batch_norm: BatchNorm = "train"
    """Normalise by the statistics of the batch ("train"), of the batch over all workers ("sync", CUDA only), or by the stored
    ones ("frozen")."""

    # --- tokens ----------------------------------------------------------------------------------------------------
    sigma_cells: float = 0.7
    """Deviation of a joint's Gaussian, in cells of the local map."""
    heatmap_norm: HeatmapNorm = "sum"
    """Scale a heat map so that its cells sum to 1 (Eq. 1 becomes a weighted mean), or so that its peak is 1."""
    joint_position: JointPosition = "index"
    """The paper's learned vector per joint; "index_xy" adds a Fourier code of x and y."""
    class_tokens: ClassTokens = "multi"
    """CLS_glob, CLS_joint and CLS_total per frame ("multi"), or CLS_total alone (Table 3)."""
    token_norm: bool = False
    """LayerNorm on the projected GG- and JM-tokens."""
    token_init_std: float = 0.02
    """Initial deviation of class tokens and learned positions."""
    temporal_position: TemporalPosition = "none"
    """Added to the tokens of each frame. The paper adds none, so its transformer is blind to the direction of time."""
    temporal_position_scale: float = 1.0
    """Factor on the temporal position."""

    # --- transformer -----------------------------------------------------------------------------------------------
    layers: int = 3
    """Encoder layers, and as many decoder layers: 1 to 8."""
    encoder_layers: int | None = None
    """Encoder layers; None means `layers`."""
    decoder_layers: int | None = None
    """Decoder layers; None means `layers`."""
    share_layers: bool = False
    """Use one encoder layer at every depth of the encoder, and one decoder layer at every depth of the decoder (Universal
    Transformers, arXiv:1807.03819, 2019; ALBERT, arXiv:1909.11942, 2020). The paper's layers have weights of their own."""
    encoder: str = "FZ"
    """First and second attention of an encoder layer: one or two letters of `patterns.PATTERNS`."""
    decoder: str = "FB"
    """The same for a decoder layer."""
    dim: int = 512
    """Width of a token."""
    heads: int = 8
    """Attention heads; a divisor of `dim`."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP divided by `dim`."""
    norm: Norm = "post"
    """The paper's post-norm, or pre-norm with a final norm."""
    init: Init = "depth_scaled"
    """Start of the layers' weights. The paper names none; under post-norm "xavier" starts as an average of all tokens."""
    group_projections: GroupProjections = "shared"
    """Whether the groups of Z and B share their Q, K, V and output projections."""
    dropout: float = 0.0
    """Dropout probability on every branch of a layer and inside the MLP."""
    drop_path: float = 0.0
    """Stochastic depth (Huang et al., arXiv:1603.09382, 2016): the probability at the last layer; it grows linearly from 0 at
    the first. Depths that share a layer have the mean of their probabilities."""

    # --- speed and memory; no effect on results ------------------------------------------------------------------------
    channels_last: bool = True
    """Keep the backbone's maps in channels_last_3d, which saves a copy of the frames; False where NCTHW is faster."""
    activation_checkpointing: bool = False
    """Recompute each stage and layer in the backward pass instead of keeping its activations."""

    @property
    def encoder_depth(self) -> int:
        """Number of encoder layers."""
        return self.layers if self.encoder_layers is None else self.encoder_layers

    @property
    def decoder_depth(self) -> int:
        """Number of decoder layers."""
        return self.layers if self.decoder_layers is None else self.decoder_layers

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value, the limit and the fix."""
        for field, choices in CHOICES.items():
            self._require(field, getattr(self, field) in get_args(choices), f"must be one of {get_args(choices)}")
        learned = self.pose == "learned"
        self._require("pose", not learned or self.modality == "both", "needs modality 'both': heat maps select pixels")
        self._require("pose", not learned or self.heatmap_norm == "sum", "needs heatmap_norm 'sum': its maps sum to 1")
        for field in ("num_classes", "num_joints", "max_bodies", "frames", "dim", "heads"):
            self._require(field, getattr(self, field) >= 1, "must be at least 1")
        for field in ("layers", "encoder_layers", "decoder_layers"):
            depth = getattr(self, field)
            self._require(field, depth is None or 1 <= depth <= 8, "must be 1 to 8")
        for field in ("dropout", "drop_path"):
            self._require(field, 0 <= getattr(self, field) < 1, "must be at least 0 and below 1")
        for field in ("mlp_ratio", "sigma_cells"):
            self._require(field, getattr(self, field) > 0, "must be above 0")
        for field in ("token_init_std", "temporal_position_scale"):
            self._require(field, getattr(self, field) >= 0, "must not be negative")
        self._require("grid", self.grid is None or self.grid >= 1, "must be at least 1, or None")
        self._require("frozen_stages", 0 <= self.frozen_stages <= 5, "must be 0 to 5: stem, layer1, …, layer4")
        self._require("dim", self.dim % self.heads == 0, f"must be a multiple of heads = {self.heads}")
        self._require(
            "dim",
            self.temporal_position != "sincos" or self.dim % 2 == 0,
            "must be even for temporal_position 'sincos'",
        )
        self._require(
            "weights",
            self.weights == "none" or self.backbone == "mc3_18",
            f"exist for backbone 'mc3_18' only, not for {self.backbone!r}; use weights 'none'",
        )
        for field in ("encoder", "decoder"):
            letters = getattr(self, field)
            known = 1 <= len(letters) <= 2 and set(letters) <= PATTERNS.keys()
            self._require(field, known, f"must be one or two letters of {', '.join(PATTERNS)}")
        groups = math.lcm(*(PATTERNS[letter].groups for letter in self.encoder + self.decoder))
        self._require(
            "frames",
            self.frames % groups == 0,
            f"must be {'even' if groups == 2 else f'a multiple of {groups}'}, because encoder {self.encoder!r} and decoder "
            f"{self.decoder!r} split the frames into equal groups: use {divisible_frames(self.frames, groups)}, "
            "or 'FF' for both",
        )

    def _require(self, field: str, holds: bool, limit: str) -> None:
        if not holds:
            raise ValueError(f"StarConfig.{field} is {getattr(self, field)!r}; it {limit}")
