"""The paper's results and recipe as data. Every entry names its table, figure or section.

The paper is "STAR-Transformer: A Spatio-temporal Cross Attention Transformer for Human Action Recognition" (WACV 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperResult:
    """A top-1 accuracy that the paper reports."""

    source: str
    dataset: str
    protocol: str | None = None
    top1: float
    """In percent."""
    model: Mapping[str, Any] = field(default_factory=lambda: {"encoder": "FZ", "decoder": "FB", "class_tokens": "multi"})
    """What the model must be, by key of `model`."""


def _table4(encoder: str, decoder: str, top1: float) -> PaperResult:
    model = {"encoder": encoder, "decoder": decoder, "class_tokens": "multi"}
    return PaperResult(source="Table 4", dataset="penn_action", top1=top1, model=model)


PAPER_RESULTS = (
    PaperResult(source="Table 1", dataset="penn_action", top1=98.7),
    PaperResult(source="Table 2", dataset="ntu60", protocol="xsub", top1=92.0),
    PaperResult(source="Table 2", dataset="ntu60", protocol="xview", top1=96.5),
    PaperResult(source="Table 2", dataset="ntu120", protocol="xsub", top1=90.3),
    PaperResult(source="Table 2", dataset="ntu120", protocol="xset", top1=92.7),
    PaperResult(
        source="Table 3",
        dataset="penn_action",
        top1=97.3,
        model={"encoder": "FZ", "decoder": "FB", "class_tokens": "single"},
    ),
    _table4("FF", "FF", 96.1),
    _table4("FZ", "FZ", 97.3),
    _table4("FB", "FB", 97.8),
    _table4("FB", "FZ", 97.3),
    _table4("FZ", "FB", 98.7),
)
"""The first entry that fits a run is the one it is compared with. All are for three layers (§4.3)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeEntry:
    """One setting of the paper's recipe."""

    key: str
    """Key of the spec."""
    value: Any
    source: str
    """Section or table of the paper; "not stated" where the paper is silent and the value is the plainest reading."""
    note: str = ""
    """What a reader should know about a difference."""


def _silent(key: str, value: Any, note: str = "") -> RecipeEntry:
    return RecipeEntry(key=key, value=value, source="not stated", note=note)


RECIPE = (
    RecipeEntry(key="data.frames", value=16, source="§3, §4.1"),
    RecipeEntry(key="data.size", value=224, source="§3"),
    RecipeEntry(key="data.estimated_joints", value=None, source="Tables 1, 2", note="the paper has annotated poses"),
    RecipeEntry(key="model.pose", value="annotated", source="Tables 1, 2", note="the paper has annotated poses"),
    _silent("data.person_crop", None, "people that fill the frame are easier to recognise"),
    _silent("data.joint_jitter_px", 0.0, "noise on the joints lowers the accuracy"),
    _silent("data.joint_drop", 0.0, "missing joints lower the accuracy"),
    _silent("data.augment", "none", "augmentation usually helps"),
    _silent("data.test_views", [1, 1], "more views of a test clip usually help"),
    _silent("data.test_crop", 1.0),
    _silent("data.validation_fraction", 0.0, "clips that are held out for the selection are missing in training"),
    _silent("data.select", "last", "a checkpoint that is chosen by the test part has an optimistic accuracy"),
    _silent("data.train_fraction", 1.0, "fewer training clips lower the accuracy"),
    _silent("data.limit", None, "fewer clips of each class, in test too"),
    _silent("data.oversample", None),
    RecipeEntry(key="train.epochs", value=300, source="§4.1"),
    _silent("train.stop_after_epochs", None),
    RecipeEntry(
        key="train.global_batch",
        value=16,
        source="§4.1",
        note="batch 4 on each of 4 V100; 4 over all GPUs is the other reading",
    ),
    RecipeEntry(key="train.optimizer", value="sgd", source="§4.1"),
    RecipeEntry(key="train.lr", value=2e-4, source="§4.1"),
    RecipeEntry(key="train.momentum", value=0.9, source="§4.1"),
    _silent("train.lr_scaling", "none"),
    _silent("train.backbone_lr_scale", 1.0),
    _silent("train.weight_decay", 0.0),
    _silent("train.schedule", "constant"),
    _silent("train.warmup_fraction", 0.0),
    _silent("train.clip_norm", None),
    _silent("train.label_smoothing", 0.0),
    _silent("train.mixup", 0.0),
    _silent("train.cutmix", 0.0),
    _silent("train.ema", None),
    RecipeEntry(key="model.modality", value="both", source="Tables 1, 2"),
    RecipeEntry(key="model.backbone", value="mc3_18", source="§3.1, §4.1"),
    RecipeEntry(
        key="model.weights",
        value="kinetics400",
        source="§3.1, §4.1",
        note="weights from random lower the accuracy on small data",
    ),
    _silent("model.pixel_norm", "kinetics"),
    _silent("model.local_layer", "layer2"),
    _silent("model.grid", None),
    _silent("model.frozen_stages", 0),
    _silent("model.sigma_cells", 0.7),
    _silent("model.heatmap_norm", "sum"),
    RecipeEntry(key="model.class_tokens", value="multi", source="Eq. 2-4, Table 3"),
    RecipeEntry(key="model.joint_position", value="index", source="Eq. 3"),
    _silent("model.temporal_position", "none", "without one the transformer cannot see the direction of time"),
    _silent("model.token_norm", False),
    RecipeEntry(key="model.layers", value=3, source="§4.3, Fig. 5"),
    _silent("model.encoder_layers", None),
    _silent("model.decoder_layers", None),
    _silent("model.share_layers", False),
    RecipeEntry(key="model.encoder", value="FZ", source="§3.3, Table 4"),
    RecipeEntry(key="model.decoder", value="FB", source="§3.3, Table 4"),
    RecipeEntry(key="model.norm", value="post", source="Eq. 11-14"),
    RecipeEntry(key="model.group_projections", value="shared", source="§3.2"),
    _silent("model.init", "depth_scaled", "the start of the weights decides whether post-norm trains at all"),
    _silent("model.token_init_std", 0.02),
    _silent("model.dim", 512),
    _silent("model.heads", 8),
    _silent("model.mlp_ratio", 4.0),
    _silent("model.dropout", 0.0),
    _silent("model.drop_path", 0.0),
)
"""The paper's recipe. Where the paper is silent, the value is this project's reading (docs/model.md)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CitedResult:
    """A top-1 accuracy of another method, as the paper cites it."""

    source: str
    method: str
    dataset: str
    protocol: str | None
    top1: float
    """In percent."""
    rgb: bool
    """Whether the method sees pixels."""
    estimated_pose: bool = False
    """Whether the paper says that its poses are estimated and not annotated."""


def _table2(
    method: str, top1: tuple[float | None, float | None, float | None, float | None], *, rgb: bool, estimated: bool = False
) -> list[CitedResult]:
    parts = (("ntu60", "xsub"), ("ntu60", "xview"), ("ntu120", "xsub"), ("ntu120", "xset"))
    return [
        CitedResult(
            source="Table 2", method=method, dataset=dataset, protocol=part, top1=value, rgb=rgb, estimated_pose=estimated
        )
        for (dataset, part), value in zip(parts, top1, strict=True)
        if value is not None
    ]


CITED_RESULTS = (
    *(
        CitedResult(source="Table 1", method=method, dataset="penn_action", protocol=None, top1=top1, rgb=rgb)
        for method, top1, rgb in (
            ("3D Deep", 98.1, True),
            ("PoseMap", 98.2, True),
            ("Multitask CNN", 98.6, True),
            ("HDM-BG", 93.4, False),
            ("Pr-VIPE", 97.5, False),
            ("UNIK", 97.9, False),
        )
    ),
    *_table2("PoseMap", (91.7, 95.2, None, None), rgb=True),
    *_table2("MMTM", (91.9, None, None, None), rgb=True),
    *_table2("VPN", (95.5, 98.0, 86.3, 87.8), rgb=True),
    *_table2("DualHead-Net", (92.0, 96.6, 88.2, 89.3), rgb=False),
    *_table2("Skeletal GNN", (91.6, 96.7, 87.5, 89.2), rgb=False),
    *_table2("CTR-GCN", (92.4, 96.8, 88.9, 90.6), rgb=False),
    *_table2("InfoGCN", (93.0, 97.1, 89.8, 91.2), rgb=False),
    *_table2("3s-AimCLR", (86.9, 92.8, 80.1, 80.9), rgb=False),
    *_table2("PoseC3D", (97.0, 99.6, 95.3, 96.4), rgb=True, estimated=True),
    *_table2("KA-AGTN", (90.4, 96.1, 86.1, 88.0), rgb=False),
)
"""Other methods in the paper's Tables 1 and 2."""
