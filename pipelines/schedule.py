"""The order of training as a pure function: position in the endless stream → clip, epoch and random numbers.

Nothing here depends on the number of workers, on what was drawn before, or on NumPy's version: epoch orders come from the
raw output of a Philox generator, whose bits NumPy guarantees, and seeds from BLAKE2.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_MAX_ATTEMPTS = 20


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


class Plan(Protocol):
    """Turns a row number of one rank's stream into a position, and a position into a clip."""

    def position(self, row: int) -> int:
        """The position of the rank's `row`-th clip."""
        ...

    def clip(self, position: int, attempt: int) -> tuple[int, np.random.Generator | None] | None:
        """Source index and random generator at `position`; None when there is no further replacement."""
        ...


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """A rank's part of the endless training stream, from step `first_step` on."""

    schedule: Schedule
    train: tuple[int, ...]
    """Source indices of the training part."""
    global_batch: int
    rank: int
    world: int
    first_step: int

    def position(self, row: int) -> int:
        """Step s covers positions [s·G, (s+1)·G); the rank takes its slice of each."""
        low, high = rank_slice(self.global_batch, self.rank, self.world)
        step, offset = divmod(row, high - low)
        return (self.first_step + step) * self.global_batch + low + offset

    def clip(self, position: int, attempt: int) -> tuple[int, np.random.Generator | None] | None:
        """The scheduled clip, or its replacement."""
        if attempt > _MAX_ATTEMPTS:
            return None
        draw = self.schedule.at(position, attempt)
        return self.train[draw.clip], draw.rng()


@dataclass(frozen=True, slots=True)
class EvalPlan:
    """A rank's part of a list of clips, each exactly once over all ranks, nothing random."""

    clips: tuple[int, ...]
    rank: int
    world: int

    def position(self, row: int) -> int:
        """Every `world`-th clip."""
        return self.rank + row * self.world

    def clip(self, position: int, attempt: int) -> tuple[int, np.random.Generator | None] | None:
        """The listed clip; one that cannot be read has no replacement."""
        return None if attempt else (self.clips[position], None)

    def num_rows(self) -> int:
        """Clips of this rank; ranks differ by one at most."""
        return len(range(self.rank, len(self.clips), self.world))


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_clips: int) -> NDArray[np.int64]:
    bits = np.random.Philox(key=_seed("epoch", seed, epoch)).random_raw(num_clips)
    return np.argsort(bits, kind="stable")


def _seed(purpose: str, *numbers: int) -> int:
    text = ":".join([purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
