"""The first experiment on a data set of one's own: small enough for two CPU cores, and a start for more."""

from __future__ import annotations

from pathlib import Path

from starlab.pipelines.custom.description import Description

CLIPS_TO_DRAW = 6000
"""Training clips in all epochs together; the small model has learnt by then what it will from a few hundred clips."""
MOST_EPOCHS, FEWEST_EPOCHS = 150, 8


def experiment_name(root: Path) -> str:
    """The folder's name as a name of an experiment: letters, digits, '_', '.' and '-'."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "_" for c in root.resolve().name)
    return name if name[:1].isalnum() else f"data{name}"


def experiment_text(root: Path, description: Description) -> str:
    """The YAML of the experiment."""
    clips = len(description.clips)
    epochs = max(FEWEST_EPOCHS, min(MOST_EPOCHS, round(CLIPS_TO_DRAW / max(1, clips))))
    may_flip = description.facts.may_flip and not description.facts.sided_classes
    with_joints = description.joints is not None
    joints = "joint_position: index_xy\n  token_norm: true\n  " if with_joints else "modality: rgb\n  token_norm: true\n  "
    return f"""# A first experiment on the clips of {experiment_name(root)}: a small model that trains on two cores in minutes.
data:
  dataset: custom
  store: {_quoted(str(root.resolve()))}     # or the store that `starlab prepare custom` makes of it
  frames: 16
  size: 64
  augment: standard
  crop_area: [0.7, 1.0]
  crop_aspect: [1.0, 1.0]
  flip: {str(may_flip).lower()}
  color_jitter: 0.2
  validation_fraction: 0.15
model:
  {joints}backbone: mc3_tiny
  layers: 1
  encoder: FZ
  decoder: FB
  dim: 64
  heads: 4
  mlp_ratio: 2.0
  norm: pre
  token_init_std: 0.5
  temporal_position: sincos
  temporal_position_scale: 0.7
  pixel_norm: clip
train:
  epochs: {epochs}
  evaluate_every_epochs: {max(1, epochs // 10)}
  global_batch: 8
  optimizer: adamw
  lr: 1.0e-3
  weight_decay: 0.05
  schedule: cosine
  warmup_fraction: 0.1
  clip_norm: 1.0
  precision: fp32
resources: {{workers: 1}}
"""


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
