"""Whether estimated joints look right: people found, their size, confidences, and people who are mixed up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from starlab.pipelines.body_tracks import slot_jumps

MANY_EMPTY = 0.2
"""Share of a clip's frames without anybody from which on the clip is named."""
SMALL = 0.1
"""A median height of the people below this share of the frame is small for the estimator and is named."""
SUDDEN = 1.5
"""Factor by which a body grows or shrinks from one frame to the next that no person does."""
_NAMED = 5


@dataclass(frozen=True, slots=True)
class ClipHealth:
    """What the joints of one clip are like."""

    clip_id: str
    num_frames: int
    frames_empty: int
    """Frames with nobody."""
    people: NDArray[np.int64]
    """(T,): people in each frame."""
    heights: NDArray[np.float32]
    """Heights of the bodies in all frames, as shares of the frame's height."""
    confidences: NDArray[np.float32]
    """Of all joints that were seen."""
    joints_unseen: tuple[int, int]
    """Joints that were not seen, of how many of the people who were."""
    jumps: int
    """Times that a slot seems to change its person from one frame to the next."""
    sudden: int
    """Times that a body changes its size by more than the factor `SUDDEN` from one frame to the next."""


def clip_health(clip_id: str, joints: NDArray[np.float32]) -> ClipHealth:
    """Look at the joints of one clip.

    Args:
        clip_id: Its name.
        joints: (T, M, N, 3): x and y as fractions of the frame, and the confidence; 0 where not seen.
    """
    seen = joints[..., 2] > 0
    there = seen.any(axis=2)
    lowest = np.where(seen, joints[..., 1], -np.inf).max(axis=2)
    highest = np.where(seen, joints[..., 1], np.inf).min(axis=2)
    height = np.where(there, lowest - highest, 0).astype(np.float32)
    both = there[1:] & there[:-1] & (np.minimum(height[1:], height[:-1]) > 0)
    ratio = np.divide(height[1:], height[:-1], out=np.ones_like(height[1:]), where=both)
    people = there.sum(axis=1)
    return ClipHealth(
        clip_id=clip_id,
        num_frames=len(joints),
        frames_empty=int((people == 0).sum()),
        people=people,
        heights=height[there],
        confidences=joints[..., 2][seen],
        joints_unseen=(int((~seen[there]).sum()), int(seen[there].size)),
        jumps=int(slot_jumps(joints).sum()) if joints.shape[1] > 1 else 0,
        sudden=int((both & (np.maximum(ratio, 1 / np.maximum(ratio, 1e-6)) > SUDDEN)).sum()),
    )


@dataclass(slots=True)
class JointHealth:
    """The health of all clips of a file."""

    clips: list[ClipHealth] = field(default_factory=list)

    def lines(self) -> list[str]:
        """A line for each thing looked at, then one for each thing that looks wrong."""
        if not self.clips:
            return ["joints     no clip"]
        frames = sum(clip.num_frames for clip in self.clips)
        empty = sum(clip.frames_empty for clip in self.clips)
        people = np.concatenate([clip.people for clip in self.clips])
        heights, confidences = (
            np.concatenate([getattr(clip, name) for clip in self.clips]) for name in ("heights", "confidences")
        )
        lines = [
            f"joints     {len(self.clips):,} clips, {frames:,} frames, {people.mean():.1f} people a frame, at most {people.max()}",
            f"nobody     in {empty:,} frames ({empty / frames:.1%})",
        ]
        if not len(heights):
            return [*lines, "LOOK       nobody was found in any frame of any clip"]
        low, middle, high = np.percentile(heights, (5, 50, 95))
        unseen, of = (sum(clip.joints_unseen[part] for clip in self.clips) for part in (0, 1))
        lowest, median, highest = np.percentile(confidences, (0, 50, 100))
        jumps, sudden = sum(clip.jumps for clip in self.clips), sum(clip.sudden for clip in self.clips)
        lines += [
            f"scale      people are {middle:.0%} of the frame's height (5 % are below {low:.0%}, 5 % above {high:.0%})",
            f"confidence {lowest:.2f} to {highest:.2f}, median {median:.2f}; {unseen / of:.1%} of the joints of these people unseen",
            f"identity   {jumps:,} jumps from one person to another, {sudden:,} sudden changes of size",
        ]
        return [*lines, *(f"LOOK       {problem}" for problem in self.problems())]

    def problems(self) -> list[str]:
        """What looks wrong, with the clips that it is about, the worst first."""
        found: list[str] = []
        empty = {clip.clip_id: clip.frames_empty / clip.num_frames for clip in self.clips}
        nobody = sorted(name for name, share in empty.items() if share == 1)
        if nobody:
            found.append(f"nobody was found in {len(nobody):,} clips: {_names(nobody)}")
        many = sorted((name for name, share in empty.items() if MANY_EMPTY <= share < 1), key=lambda name: (-empty[name], name))
        if many:
            found.append(f"nobody in {MANY_EMPTY:.0%} or more of the frames of {len(many):,} clips: {_names(many)}")
        small = sorted(clip.clip_id for clip in self.clips if len(clip.heights) and float(np.median(clip.heights)) < SMALL)
        if small:
            found.append(
                f"people are below {SMALL:.0%} of the frame's height in {len(small):,} clips, where a larger --size "
                f"finds more: {_names(small)}"
            )
        confidences = np.concatenate([clip.confidences for clip in self.clips])
        if len(confidences) and confidences.min() == confidences.max():
            found.append(f"every confidence is {confidences[0]:.2f}: does the estimator give none?")
        jumps = {clip.clip_id: clip.jumps for clip in self.clips if clip.jumps}
        if jumps:
            names = sorted(jumps, key=lambda name: (-jumps[name], name))
            found.append(f"people seem to be mixed up in {len(names):,} clips: {_names(names)}")
        return found


def joint_health(clips: Iterable[tuple[str, NDArray[np.float32]]]) -> JointHealth:
    """Look at (clip id, joints) pairs, joints as (T, M, N, 3)."""
    return JointHealth([clip_health(clip_id, joints) for clip_id, joints in clips])


def _names(names: list[str]) -> str:
    return f"{', '.join(names[:_NAMED])}{', …' if len(names) > _NAMED else ''}"
