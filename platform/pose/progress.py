"""How far an extraction of joints is, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from starlab.platform.pose.clips import Clips

LOOKED_AT = 64
"""Largest videos whose headers are read beforehand, for their lengths."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoseProgress:
    """Progress of an extraction."""

    videos_done: int
    videos: int
    frames_done: int
    """In this call."""
    frames_per_second: float
    """0 before the first."""
    videos_bad: int
    seconds_left: float | None = None
    """None while it is not known how many frames there are."""

    def line(self) -> str:
        """One line of text."""
        parts = [f"{self.videos_done:>4,}/{self.videos:,} videos", f"{self.frames_done:,} frames"]
        if self.frames_per_second > 0:
            parts.append(f"{self.frames_per_second:.1f} frames/s")
        if self.videos_bad:
            parts.append(f"{self.videos_bad} bad")
        if self.seconds_left is not None and self.videos_done < self.videos:
            minutes, seconds = divmod(round(self.seconds_left), 60)
            parts.append(f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} left")
        return "  ".join(parts)


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much work videos are, by their numbers."""

    sizes: Mapping[int, int]
    """Only compared with each other; see `Clips.size`."""
    lengths: Mapping[int, int]
    """About how many frames some of them have."""


def look_at_amounts(clips: Clips, todo: Sequence[int]) -> Amounts:
    """Look at the sizes of all videos and at the lengths of the largest ones."""
    sizes = {number: clips.size(number) for number in todo}
    largest = sorted(todo, key=lambda number: -sizes[number])[:LOOKED_AT]
    return Amounts(sizes, {number: length for number in largest if (length := clips.length(number))})


class Meter:
    """Measures the progress of one call."""

    def __init__(self, videos: int, todo: Sequence[int], amounts: Amounts) -> None:
        """Begin to measure.

        Args:
            videos: How many there are, with those that an earlier call estimated.
            todo: Numbers of those that this call estimates.
            amounts: How much work they are.
        """
        self.counter = ray.remote(num_cpus=0)(_Counter).remote()
        """The actor that counts frames; `set` is called with (video, first frame of the part) and a number of frames."""
        self._videos, self._todo, self._amounts = videos, todo, amounts
        self._began = time.monotonic()
        self._done: dict[int, int] = {}

    def close(self) -> None:
        """End the actor."""
        ray.kill(self.counter)

    def finish(self, number: int) -> None:
        """Note that a video is done, so that the lengths of others can be told by its size."""
        self._done[number] = ray.get(self.counter.of.remote(number))

    def progress(self, videos_bad: int) -> PoseProgress:
        """How far it is now."""
        frames = ray.get(self.counter.total.remote())
        rate = frames / (time.monotonic() - self._began)
        all_frames = self._expected()
        known = all_frames is not None and rate > 0
        return PoseProgress(
            videos_done=self._videos - len(self._todo) + len(self._done),
            videos=self._videos,
            frames_done=frames,
            frames_per_second=rate,
            videos_bad=videos_bad,
            seconds_left=max(0.0, (all_frames or 0.0) - frames) / rate if known else None,
        )

    def _expected(self) -> float | None:
        """About how many frames all videos of this call have: by their headers, else by their sizes and what is done."""
        frames, unknown, sizes = 0.0, 0, self._amounts.sizes
        for number in self._todo:
            known = self._done.get(number, self._amounts.lengths.get(number))
            if known is None:
                unknown += sizes[number]
            else:
                frames += known
        if not unknown:
            return frames
        size = sum(sizes[number] for number in self._done)
        return frames + unknown * sum(self._done.values()) / size if size else None


class _Counter:
    """Counts the frames of all videos under way; an actor."""

    def __init__(self) -> None:
        self._frames: dict[tuple[int, int], int] = {}

    def set(self, part: tuple[int, int], frames: int) -> None:
        """Note how many frames of a part of a video were read."""
        self._frames[part] = frames

    def of(self, number: int) -> int:
        """The frames of a video."""
        return sum(frames for part, frames in self._frames.items() if part[0] == number)

    def total(self) -> int:
        """The frames of all videos."""
        return sum(self._frames.values())
