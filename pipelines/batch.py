"""A batch, and how its clips are loaded: position → clip → picked frames → decoded → augmented, the same wherever it runs.

Letters: B clips  T frames  H W pixels  M bodies  N joints.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starlab.pipelines.augment import fit
from starlab.pipelines.clip import ClipSource, UnreadableClipError
from starlab.pipelines.sampling import pick_frames
from starlab.pipelines.schedule import Plan
from starlab.pipelines.sources import DataConfig

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Batch:
    """Clips ready for the model."""

    frames: NDArray[np.uint8]
    """(B, T, H, W, 3), RGB."""
    joints: NDArray[np.float32]
    """(B, T, M, N, 3): x, y in [0, 1] of the frame, confidence."""
    labels: NDArray[np.int64]
    """(B,)"""
    clips: NDArray[np.int64]
    """(B,) index of each clip in the source."""
    positions: NDArray[np.int64]
    """(B,) position in the training stream; in an evaluation, in its list of clips."""
    unreadable: tuple[tuple[str, str], ...]
    """(clip id, reason) of each clip met in this batch that could not be read: replaced in training, left out in evaluation."""


@dataclass(frozen=True, slots=True)
class LoadClips:
    """The work of a Ray Data task, or of a thread: row numbers → columns of a batch. Pure: same rows, same bytes."""

    source: ClipSource
    config: DataConfig
    plan: Plan
    first_row: int

    def __call__(self, rows: Columns) -> Columns:
        """Columns frames, joints, label, clip, position, problems (JSON-free: 'id\\treason' lines) for `rows["id"]`."""
        columns = self.empty(len(rows["id"]))
        for slot, row in enumerate(rows["id"]):
            self.load(int(row), columns, slot)
        columns["problems"] = columns["problems"].astype(np.str_)  # an array that Arrow takes
        return columns

    def empty(self, num_clips: int) -> Columns:
        """Room for so many clips."""
        config, source = self.config, self.source
        return {
            "frames": np.empty((num_clips, config.frames, config.size, config.size, 3), np.uint8),
            "joints": np.empty((num_clips, config.frames, source.max_bodies, len(source.skeleton.joints), 3), np.float32),
            "label": np.empty(num_clips, np.int64),
            "clip": np.empty(num_clips, np.int64),
            "position": np.empty(num_clips, np.int64),
            "problems": np.full(num_clips, "", object),
        }

    def load(self, row: int, columns: Columns, slot: int) -> None:
        """Put one row's clip into its slot; where none can be read, label and clip -1 and nothing to see."""
        config, source = self.config, self.source
        position = self.plan.position(self.first_row + row)
        problems: list[str] = []
        label, index = -1, -1
        for attempt in itertools.count():
            choice = self.plan.clip(position, attempt)
            if choice is None:
                columns["frames"][slot], columns["joints"][slot] = 0, 0
                break
            clip, rng = source.clips[choice.clip], choice.rng
            drawn = rng if config.augment == "standard" else None
            try:
                picked = pick_frames(clip.num_frames, config.frames, drawn, choice.view)
                decoded = source.read(clip, picked.tolist(), config.size)
            except UnreadableClipError as error:
                problems.append(f"{clip.clip_id}\t{error}")
                continue
            out, mirror = columns["frames"][slot], source.skeleton.mirror
            _, columns["joints"][slot] = fit(decoded, config.size, config.augmentation(), mirror, rng, choice.view, out)
            label, index = clip.label, choice.clip
            break
        columns["label"][slot], columns["clip"][slot], columns["position"][slot] = label, index, position
        columns["problems"][slot] = "\n".join(problems)


def as_batch(columns: Columns) -> Batch:
    """The columns of one batch, without the clips that could not be read, in memory that may be written to."""
    unreadable = [tuple(line.split("\t", 1)) for text in columns["problems"] for line in str(text).splitlines()]
    read = columns["clip"] >= 0
    if not read.all():
        columns = {name: values[read] for name, values in columns.items()}
    elif not columns["frames"].flags.writeable:  # it lies in the object store
        columns = columns | {name: columns[name].copy() for name in ("frames", "joints", "label", "clip", "position")}
    return Batch(
        frames=columns["frames"],
        joints=columns["joints"],
        labels=columns["label"],
        clips=columns["clip"],
        positions=columns["position"],
        unreadable=tuple((pair[0], pair[1]) for pair in unreadable),
    )
