"""Names of the metrics in a run's journal and in MLflow, of the form "part/name".

MLflow shows the parts in alphabetical order, so "best" comes first.
"""

from __future__ import annotations

BEST_VAL_TOP1 = "best/val_top1"
"""Top-1 on the selection part: of a run's best checkpoint so far, or of a search's best trial so far."""
TRAIN = "train/"
"""Prefix of the training curve."""
TRAIN_LOSS = "train/loss"
TRAIN_TOP1 = "train/top1"
TRAIN_RATE = "train/lr"
TRAIN_BAD_STEPS = "train/bad_steps"
EPOCH = "epoch"
EPOCH_TRAIN_LOSS = "epoch/train_loss"
EPOCH_TRAIN_TOP1 = "epoch/train_top1"
UNREADABLE_CLIPS = "data/unreadable_clips"
VAL = "val/"
"""Prefix of the metrics of the selection part (the validation part, or the test part where the spec says so)."""
VAL_TOP1 = "val/top1"
VAL_LOSS = "val/loss"
VAL_CLIPS = "val/clips"
TEST = "test/"
"""Prefix of the metrics of the test part."""
TEST_TOP1 = "test/top1"
TEST_MEAN_CLASS = "test/mean_class"
SYSTEM = "system/"
"""Prefix of metrics of the machine rather than the model: speeds, waits, memory. A replay never repeats them exactly."""
CLIPS_PER_SECOND = "system/clips_per_second"
DATA_WAIT = "system/data_wait"
MEMORY_MEGABYTES = "system/system_memory_usage_megabytes"
GPU_MEMORY_SUFFIX = "memory_usage_megabytes"
