"""How a batch is loaded: position → clip → picked frames → decoded → augmented. The work is the same wherever it runs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starlab.pipelines.augment import fit
from starlab.pipelines.batch import Batch
from starlab.pipelines.clip import ClipSource, UnreadableClipError
from starlab.pipelines.decode import NO_SHRINK
from starlab.pipelines.decoded_cache import DecodedCache
from starlab.pipelines.joint_noise import add_joint_noise
from starlab.pipelines.sampling import pick_frames
from starlab.pipelines.schedule import Plan
from starlab.pipelines.sources import DataConfig

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class LoadClips:
    """Loads clips by row number. A pure function, called by a Ray Data task or a thread: equal rows give equal bytes."""

    source: ClipSource
    config: DataConfig
    plan: Plan
    first_row: int

    def __call__(self, rows: Columns) -> Columns:
        """The columns frames, joints, label, clip, position and problems (lines of 'id\\treason') for `rows["id"]`."""
        columns = self.empty(len(rows["id"]))
        for slot, row in enumerate(rows["id"]):
            self.load(int(row), columns, slot)
        columns["problems"] = columns["problems"].astype(np.str_)  # Arrow takes no array of objects
        return columns

    def empty(self, num_clips: int) -> Columns:
        """Uninitialized columns for `num_clips` clips."""
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
        """Load the clip of one row into its slot. Without a readable clip, label and clip are -1, frames and joints 0."""
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
            frames, joints = columns["frames"][slot], columns["joints"][slot]
            picked = pick_frames(clip.num_frames, config.frames, drawn, choice.view).tolist()
            cache = DecodedCache.of(source, config, rng)
            if cache and cache.read(choice.clip, choice.view, frames, joints):
                add_joint_noise(joints, config, clip.clip_id, clip.num_frames, picked)
                label, index = clip.label, choice.clip
                break
            try:
                decoded = source.read(clip, picked, config.size if config.person_crop is None else NO_SHRINK)
                mirror = source.skeleton.mirror
                _, joints[:] = fit(decoded, config.size, config.augmentation(), mirror, rng, choice.view, frames)
            except UnreadableClipError as error:
                problems.append(f"{clip.clip_id}\t{error}")
                continue
            if cache:
                cache.write(choice.clip, choice.view, frames, joints)
            add_joint_noise(joints, config, clip.clip_id, clip.num_frames, picked)
            label, index = clip.label, choice.clip
            break
        columns["label"][slot], columns["clip"][slot], columns["position"][slot] = label, index, position
        columns["problems"][slot] = "\n".join(problems)


def as_batch(columns: Columns) -> Batch:
    """The columns of one batch, without the clips that could not be read, in writable memory."""
    unreadable = [tuple(line.split("\t", 1)) for text in columns["problems"] for line in str(text).splitlines()]
    read = columns["clip"] >= 0
    if not read.all():
        columns = {name: values[read] for name, values in columns.items()}
    elif not columns["frames"].flags.writeable:  # views of Ray's object store are read-only
        columns = columns | {name: columns[name].copy() for name in ("frames", "joints", "label", "clip", "position")}
    return Batch(
        frames=columns["frames"],
        joints=columns["joints"],
        labels=columns["label"],
        clips=columns["clip"],
        positions=columns["position"],
        unreadable=tuple((pair[0], pair[1]) for pair in unreadable),
    )
