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
"""Where the median height of the people is below this share of the frame, they are small for an estimator."""
SUDDEN = 1.5
"""No person's height grows or shrinks by this factor from one frame to the next."""
MANY_SUDDEN = 0.05
"""Share of such changes from which on the clip is named."""
_NAMED = 5
_BINS = 1000
"""Of heights and confidences, both in [0, 1]; so percentiles are right to 0.001, at any number of frames."""
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ClipHealth:
    """What the joints of one clip are like."""

    clip_id: str
    num_frames: int
    frames_empty: int
    """Frames with nobody."""
    people: int
    """The sum over all frames."""
    most_people: int
    """In one frame."""
    heights: Counts
    """Histogram of the heights of the bodies, as shares of the frame's height."""
    confidences: Counts
    """Histogram of the confidences of the joints that were seen."""
    joints_unseen: int
    """Joints that were not seen of the people who were."""
    jumps: int
    """Times that a slot seems to change its person from one frame to the next."""
    sudden: int
    """Times that a body changes its height by more than the factor `SUDDEN` from one frame to the next."""


def clip_health(clip_id: str, joints: NDArray[np.float32], track_ids: NDArray[np.int32] | None = None) -> ClipHealth:
    """Look at the joints of one clip.

    Args:
        clip_id: Its name.
        joints: (T, M, N, 3): x and y as fractions of the frame, and the confidence; 0 where not seen.
        track_ids: (T, M): the person in each slot, -1 where nobody is; None takes each slot for one person.
    """
    seen = joints[..., 2] > 0
    there: NDArray[np.bool_] = np.any(seen, axis=2)
    lowest = np.where(seen, joints[..., 1], -np.inf).max(axis=2, initial=-np.inf)
    highest = np.where(seen, joints[..., 1], np.inf).min(axis=2, initial=np.inf)
    height = np.where(there, lowest - highest, 0)
    small, large = np.minimum(height[1:], height[:-1]), np.maximum(height[1:], height[:-1])
    people = there.sum(axis=1)
    return ClipHealth(
        clip_id=clip_id,
        num_frames=len(joints),
        frames_empty=int((people == 0).sum()),
        people=int(people.sum()),
        most_people=int(people.max(initial=0)),
        heights=_histogram(height[there]),
        confidences=_histogram(joints[..., 2][seen]),
        joints_unseen=int((~seen[there]).sum()),
        jumps=_jumps(joints, track_ids),
        sudden=int((there[1:] & there[:-1] & (large > SUDDEN * small)).sum()),
    )


@dataclass(slots=True)
class JointHealth:
    """The health of all clips of a file."""

    clips: list[ClipHealth] = field(default_factory=list)

    def lines(self) -> list[str]:
        """A line for each thing looked at, then one for each thing that looks wrong."""
        frames, people = self._sum("num_frames"), self._sum("people")
        if not frames:
            return ["joints     no clip has any"]
        empty, most = self._sum("frames_empty"), max(clip.most_people for clip in self.clips)
        lines = [
            f"joints     {len(self.clips):,} clips, {frames:,} frames, {people / frames:.1f} people a frame, at most {most}",
            f"nobody     in {empty:,} frames ({empty / frames:.1%})",
        ]
        if people:
            heights, confidences = (sum(getattr(clip, name) for clip in self.clips) for name in ("heights", "confidences"))
            low, middle, high = (_percentile(heights, share) for share in (0.05, 0.5, 0.95))
            lowest, median, highest = (_percentile(confidences, share) for share in (0, 0.5, 1))
            unseen, seen = self._sum("joints_unseen"), int(confidences.sum())
            lines += [
                f"scale      people are {middle:.0%} of the frame's height (5 % are below {low:.0%}, 5 % above {high:.0%})",
                f"confidence {lowest:.2f} to {highest:.2f}, median {median:.2f}; "
                f"{unseen / (unseen + seen):.1%} of the joints of these people are not seen",
                f"identity   {self._sum('jumps'):,} jumps from one person to another, "
                f"{self._sum('sudden'):,} sudden changes of height",
            ]
        return [*lines, *(f"LOOK       {problem}" for problem in self.problems())]

    def problems(self) -> list[str]:
        """What looks wrong, with the clips that it is about, the worst first."""
        found: list[str] = []
        nobody = {clip.clip_id: 1.0 for clip in self.clips if not clip.people}
        if nobody:
            found.append(f"nobody was found in {_named(nobody)}")
        empty = {clip.clip_id: clip.frames_empty / clip.num_frames for clip in self.clips if clip.people}
        if many := {name: share for name, share in empty.items() if share >= MANY_EMPTY}:
            found.append(f"nobody in {MANY_EMPTY:.0%} or more of the frames of {_named(many)}")
        heights = {clip.clip_id: _percentile(clip.heights, 0.5) for clip in self.clips if clip.people}
        if small := {name: -height for name, height in heights.items() if height < SMALL}:
            found.append(f"people are below {SMALL:.0%} of the frame's height in {_named(small)}; a larger --size finds more")
        if jumps := {clip.clip_id: float(clip.jumps) for clip in self.clips if clip.jumps}:
            found.append(f"people seem to be mixed up in {_named(jumps)}")
        sudden = {clip.clip_id: clip.sudden / clip.people for clip in self.clips if clip.people}
        if many := {name: share for name, share in sudden.items() if share >= MANY_SUDDEN}:
            found.append(f"people change their height suddenly in {_named(many)}")
        if all(np.count_nonzero(clip.confidences) <= 1 for clip in self.clips) and self._sum("people"):
            found.append("every confidence is the same: does the estimator give none?")
        return found

    def _sum(self, name: str) -> int:
        return sum(getattr(clip, name) for clip in self.clips)


def joint_health(clips: Iterable[tuple[str, NDArray[np.float32], NDArray[np.int32] | None]]) -> JointHealth:
    """Look at (clip id, joints, track ids) of many clips, as `clip_health` takes them."""
    return JointHealth([clip_health(clip_id, joints, track_ids) for clip_id, joints, track_ids in clips])


def _jumps(joints: NDArray[np.float32], track_ids: NDArray[np.int32] | None) -> int:
    num_frames, num_slots = joints.shape[:2]
    if num_slots < 2:
        return 0
    jumps = slot_jumps(joints)
    if track_ids is not None:  # a slot that is used again by another person is no mistake
        there = np.where(track_ids >= 0, np.arange(num_frames)[:, None], -1)
        before = np.maximum.accumulate(there, axis=0)[:-1]
        jumps &= track_ids[1:] == track_ids[before, np.arange(num_slots)]
    return int(jumps.sum())


def _histogram(values: NDArray[np.float32]) -> Counts:
    bins = np.clip(np.rint(values * _BINS), 0, _BINS).astype(np.int64)
    return np.bincount(bins, minlength=_BINS + 1)


def _percentile(counts: Counts, share: float) -> float:
    """The least value that at least this share of all values does not exceed."""
    total = np.cumsum(counts)
    return float(np.searchsorted(total, max(1, share * total[-1]))) / _BINS


def _named(clips: dict[str, float]) -> str:
    """The number of the clips and the names of those with the largest values."""
    names = sorted(clips, key=lambda name: (-clips[name], name))
    more = ", …" if len(names) > _NAMED else ""
    return f"{len(names):,} clip{'' if len(names) == 1 else 's'}: {', '.join(names[:_NAMED])}{more}"
