"""The attention patterns: how FAttn, ZAttn and BAttn split the frames of a clip (Eq. 5-10). Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Grouping:
    """How an attention pattern splits the frames of a clip into equal groups."""

    frame_axis: str
    """The frame axis in einops, from g, the group, and t, the frame within it: "(g t)" for groups of consecutive frames,
    "(t g)" for groups of every G-th frame."""
    groups: int
    """Number of groups, G. A token attends to all tokens of the other groups, or to every token where G is 1."""


PATTERNS: dict[str, Grouping] = {
    "F": Grouping("(g t)", groups=1),  # every frame
    "Z": Grouping("(t g)", groups=2),  # odd frames, even frames; frame 1 is odd (the paper counts from 1)
    "B": Grouping("(g t)", groups=2),  # first half, second half
}
"""Every attention pattern by its letter. A new pattern needs an entry here and nothing else."""


def divisible_frames(frames: int, groups: int) -> str:
    """A phrase for an error message: which numbers of frames divide into the groups, and the next one from `frames`."""
    kind = "an even number" if groups == 2 else f"a multiple of {groups}"
    return f"{kind} such as {frames + -frames % groups}"
