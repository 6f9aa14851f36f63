"""What makes two runs the same run: the part of a resolved spec that decides its result, hashed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from starlab.pipelines.generated.bystanders import SyntheticBystandersConfig

ADDED_LATER: tuple[tuple[str, str, object], ...] = (
    ("train", "select_by", "top1"),
    ("train", "backbone_lr_scale", 1.0),
    ("train", "stop_after_epochs", None),
    ("train", "init_from", None),
    ("train", "init_digest", None),
    ("train", "init_lr_scale", 1.0),
    ("train", "extends", None),
    ("train", "tf32", False),
    ("train", "deterministic", False),
    ("train", "cutmix", 0.0),
    ("train", "checkpoint_every_epochs", 1),
    ("model", "share_layers", False),
    ("train", "action_loss_weight", 1.0),
    ("train", "pose_loss_weight", 1.0),
    ("train", "pose_teacher_forcing", 0.0),
    ("model", "pose", "annotated"),
    ("model", "pose", "estimated"),  # data.estimated_joints decides between the two, and the fingerprint holds its file
    ("data", "joint_jitter_px", 0.0),
    ("data", "joint_drop", 0.0),
    ("data", "synthetic_bystanders", asdict(SyntheticBystandersConfig())),
    ("data", "clamp_confidence", False),
    ("data", "train_fraction", 1.0),
    ("data", "custom", None),
    ("data", "rotation_degrees", 0.0),
    ("data", "person_crop", None),
)
"""Keys (section, key, default) that do not count for a run's identity at their default, so that earlier runs keep their ids."""
PLACES = ("store", "source", "decode", "cache", "estimated_joints")
"""Keys of `data` that say where the data are and where they are decoded. The fingerprint stands for them."""


def run_id(name: str, resolved: Mapping[str, Any], fingerprint: str) -> str:
    """Return a run's id: its name and 8 hex digits over data, model and train.

    Args:
        name: Name of the experiment.
        resolved: `Spec.to_dict()`.
        fingerprint: That of the data.
    """
    identity = {section: dict(resolved[section]) for section in ("data", "model", "train")}
    for place in PLACES:
        del identity["data"][place]
    del identity["train"]["profile"]
    if identity["train"]["init_digest"]:
        identity["train"]["init_from"] = None  # the digest of the weights counts, not their name
    identity["data"]["fingerprint"] = fingerprint
    for section, key, default in ADDED_LATER:
        if identity[section].get(key) == default:
            del identity[section][key]
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
