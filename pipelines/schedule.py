"""The order of training as a pure function: position in the endless stream → clip, epoch and random numbers.

Nothing here depends on the number of workers, on what was drawn before, or on NumPy's version: epoch orders come from the
raw output of a Philox generator, whose bits NumPy guarantees, and seeds from BLAKE2.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Draw:
    """What stands at one position."""

    clip: int
    """Index into the training part."""
    epoch: int
    seed: int
    """Seeds every random choice made for this position (frames, crop, …)."""

    def rng(self) -> np.random.Generator:
        """A fresh generator for this position: always the same numbers."""
        return np.random.Generator(np.random.Philox(key=self.seed))


@dataclass(frozen=True, slots=True)
class Schedule:
    """The endless training stream over `num_clips` clips: epoch after epoch, each a permutation of all clips.

    Raises:
        ValueError: `num_clips` is not positive.
    """

    seed: int
    num_clips: int

    def __post_init__(self) -> None:
        if self.num_clips < 1:
            raise ValueError(f"the training part holds {self.num_clips} clips; a schedule needs at least 1")

    def at(self, position: int, attempt: int = 0) -> Draw:
        """The clip and the random seed at `position` ≥ 0.

        `attempt` > 0 names the replacement of a clip that could not be read: another clip, drawn from
        (seed, position, attempt) alone. Positions never shift.
        """
        epoch, offset = divmod(position, self.num_clips)
        seed = _seed("augment", self.seed, position, attempt)
        if attempt == 0:
            clip = int(_permutation(self.seed, epoch, self.num_clips)[offset])
        else:
            clip = _seed("replace", self.seed, position, attempt) % self.num_clips
        return Draw(clip, epoch, seed)


def rank_slice(global_batch: int, rank: int, world: int) -> tuple[int, int]:
    """The half-open part of a step's `global_batch` positions that `rank` of `world` takes.

    The parts are contiguous, in order, differ by one clip at most and cover the batch.

    Raises:
        ValueError: more workers than clips in a step.
    """
    if world > global_batch:
        raise ValueError(
            f"train.global_batch is {global_batch} but resources.workers is {world}: each worker needs a clip per step; "
            f"use at most {global_batch} workers or a larger train.global_batch"
        )
    return global_batch * rank // world, global_batch * (rank + 1) // world


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_clips: int) -> NDArray[np.int64]:
    bits = np.random.Philox(key=_seed("epoch", seed, epoch)).random_raw(num_clips)
    return np.argsort(bits, kind="stable")


def _seed(purpose: str, *numbers: int) -> int:
    text = ":".join([purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
