"""Statistics of a store, counted from its index alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from starlab.pipelines.shards import StoredClip
from starlab.pipelines.store import StoreSource


@dataclass(frozen=True, slots=True)
class ClassCount:
    """One class of a store."""

    name: str
    train: int
    """Clips of the official training part, validation included."""
    test: int
    mean_frames: float
    joints_unseen: float
    """Share of its joints with confidence 0."""

    def cells(self) -> tuple[str, ...]:
        """The cells of its row in a table."""
        return (self.name, f"{self.train:,}", f"{self.test:,}", f"{self.mean_frames:.0f}", f"{self.joints_unseen:.1%}")


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """The output of `starlab data stats`."""

    classes: tuple[ClassCount, ...]
    """Those that have clips, in the order of the labels, followed by the sum over all classes."""
    absent: tuple[str, ...]
    """The classes without any clip."""
    frames: tuple[int, float, float, float, int]
    """Shortest, median, mean, 95th percentile and longest clip, in frames."""
    sizes: tuple[tuple[str, int], ...]
    """(width×height, clips), the most frequent first."""
    frames_unseen: tuple[int, int]
    """Frames without any joint, and the number of clips with such frames."""
    outside: tuple[int, tuple[str, ...]] | None
    """Visible joints outside the frame, and the clips that have any, the one with the most first; None if the store is of an
    earlier version, which did not count them."""
    notes: tuple[tuple[str, str], ...]
    """(clip id, what to know of it): clips that are used all the same."""
    quarantine: tuple[tuple[str, str], ...]
    """(clip id, reason)"""

    def lines(self) -> list[str]:
        """The lines below the table."""
        shortest, median, mean, high, longest = self.frames
        unseen, clips = self.frames_unseen
        named = ", ".join(f"{size} ({count:,})" for size, count in self.sizes[:5])
        more = f" and {len(self.sizes) - 5} more" if len(self.sizes) > 5 else ""
        lines = [
            f"frames     {shortest} to {longest} a clip, median {median:.0f}, mean {mean:.1f}, 95 % below {high:.0f}",
            f"sizes      {named}{more}",
            "joints     none"
            if self.classes[-1].joints_unseen == 1
            else f"joints     {unseen:,} frames of {clips:,} clips have none",
        ]
        if self.outside is not None and self.outside[0]:
            count, where = self.outside
            more = ", …" if len(where) > 5 else ""
            lines.append(
                f"           {count:,} visible are outside the frame, in {len(where):,} clips: {', '.join(where[:5])}{more}"
            )
        if self.absent:
            more = ", …" if len(self.absent) > 5 else ""
            lines.append(f"classes    {len(self.absent)} have no clip: {', '.join(self.absent[:5])}{more}")
        if self.notes:
            lines += note_lines(self.notes)
        return [
            *lines,
            f"quarantine {len(self.quarantine)} clips",
            *(f"           {clip}: {reason}" for clip, reason in self.quarantine),
        ]


def note_lines(notes: Sequence[tuple[str, str]]) -> list[str]:
    """Lines about clips whose video and skeleton differ in length by no more than is allowed."""
    more = [f"           and {len(notes) - 10} more"] if len(notes) > 10 else []
    return [
        f"lengths    {len(notes):,} clips use the frames that their video and their skeleton both have",
        *(f"           {clip}: {note}" for clip, note in notes[:10]),
        *more,
    ]


def store_statistics(source: StoreSource) -> StoreStatistics:
    """Count the clips of a store without opening a shard."""
    clips = tuple(source.stored)
    lengths = np.array([clip.num_frames for clip in clips])
    sizes: dict[str, int] = {}
    for clip in clips:
        size = f"{clip.width}×{clip.height}"
        sizes[size] = sizes.get(size, 0) + 1
    per_class = [[clip for clip in clips if clip.label == label] for label in range(len(source.classes))]
    return StoreStatistics(
        classes=(
            *(_count(name, members) for name, members in zip(source.classes, per_class, strict=True) if members),
            _count("all", list(clips)),
        ),
        absent=tuple(name for name, members in zip(source.classes, per_class, strict=True) if not members),
        frames=(
            int(lengths.min()),
            float(np.median(lengths)),
            float(lengths.mean()),
            float(np.percentile(lengths, 95)),
            int(lengths.max()),
        ),
        sizes=tuple(sorted(sizes.items(), key=lambda item: (-item[1], item[0]))),
        frames_unseen=(sum(clip.frames_unseen for clip in clips), sum(clip.frames_unseen > 0 for clip in clips)),
        outside=_outside(clips),
        notes=tuple(sorted(source.notes.items())),
        quarantine=tuple((clip.clip_id, clip.reason) for clip in source.skipped),
    )


def _outside(clips: Sequence[StoredClip]) -> tuple[int, tuple[str, ...]] | None:
    counts = {clip.clip_id: clip.joints_outside for clip in clips if clip.joints_outside is not None}
    if len(counts) < len(clips):
        return None
    return sum(counts.values()), tuple(clip for clip in sorted(counts, key=lambda clip: (-counts[clip], clip)) if counts[clip])


def _count(name: str, clips: list[StoredClip]) -> ClassCount:
    frames = sum(clip.num_frames for clip in clips)
    return ClassCount(
        name=name,
        train=sum(clip.split != "test" for clip in clips),
        test=sum(clip.split == "test" for clip in clips),
        mean_frames=frames / max(1, len(clips)),
        joints_unseen=sum(clip.joints_unseen * clip.num_frames for clip in clips) / max(1, frames),
    )
