"""How far an extraction of joints is, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from starlab.platform.pose.clips import Clips


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


class Meter:
    """Measures the progress of one call."""

    def __init__(self, clips: Clips, todo: Sequence[int], lengths: Mapping[int, int]) -> None:
        """Begin to measure.

        Args:
            clips: The videos.
            todo: Numbers of those that this call estimates.
            lengths: About how many frames some of them have.
        """
        self.counter = ray.remote(num_cpus=0)(_Counter).remote()
        """The actor that counts frames; `set` is called with (video, first frame of the part) and a number of frames."""
        self._clips, self._todo, self._lengths = clips, todo, lengths
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
            videos_done=len(self._clips.clip_ids) - len(self._todo) + len(self._done),
            videos=len(self._clips.clip_ids),
            frames_done=frames,
            frames_per_second=rate,
            videos_bad=videos_bad,
            seconds_left=max(0.0, (all_frames or 0.0) - frames) / rate if known else None,
        )

    def _expected(self) -> float | None:
        """About how many frames all videos of this call have: by their headers, else by their sizes and what is done."""
        frames, unknown = 0.0, 0
        for number in self._todo:
            if number in self._done or number in self._lengths:
                frames += self._done.get(number, self._lengths.get(number, 0))
            else:
                unknown += self._clips.size(number)
        if not unknown:
            return frames
        size = sum(self._clips.size(number) for number in self._done)
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
