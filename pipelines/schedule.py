"""The order of training as a pure function: position in the endless stream → clip, epoch and random numbers.

Nothing here depends on the number of workers, on what was drawn before, or on NumPy's version: epoch orders come from the
raw output of a Philox generator, whose bits NumPy guarantees, and seeds from BLAKE2.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from starlab.pipelines.sampling import MIDDLE, View

_MAX_ATTEMPTS = 20
_LARGEST_WEIGHT = 2**20
"""Weights are whole numbers up to this, so that the rounding of a machine never decides which clip is drawn."""


@dataclass(frozen=True, slots=True)
class Draw:
    """The clip at one position."""

    clip: int
    """Index into the training part."""
    epoch: int
    seed: int
    """Seed of every random choice for this position (frames, crop, …)."""

    def rng(self) -> np.random.Generator:
        """A fresh generator for this position, which always gives the same numbers."""
        return np.random.Generator(np.random.Philox(key=self.seed))


@dataclass(frozen=True, slots=True)
class Schedule:
    """The endless training stream over `num_clips` clips: epoch after epoch, each a permutation of all clips.

    With weights an epoch is as long, but a clip occurs in it as often as its weight says, rounded up or down by a draw of that
    epoch, so that the shares are exact over epochs.

    Raises:
        ValueError: `num_clips` is not positive, or the number of weights is another.
    """

    seed: int
    num_clips: int
    weights: bytes = b""
    """From `clip_weights`; empty draws all clips equally often."""

    def __post_init__(self) -> None:
        if self.num_clips < 1:
            raise ValueError(f"the training part holds {self.num_clips} clips; a schedule needs at least 1")
        if self.weights and len(self.weights) != 4 * self.num_clips:
            raise ValueError(f"{len(self.weights) // 4} weights for {self.num_clips} clips")

    def at(self, position: int, attempt: int = 0) -> Draw:
        """The clip and the random seed at `position` ≥ 0.

        `attempt` > 0 names the replacement of a clip that could not be read: another clip, drawn from
        (seed, position, attempt) alone. Positions never shift.
        """
        epoch, offset = divmod(position, self.num_clips)
        seed = _seed("augment", self.seed, position, attempt)
        if attempt == 0:
            clip = int(_order(self.seed, epoch, self.num_clips, self.weights)[offset])
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


@dataclass(frozen=True, slots=True)
class Choice:
    """What to load at a position."""

    clip: int
    """Index into the source."""
    rng: np.random.Generator | None
    """The generator for its augmentation; None in an evaluation."""
    view: View = MIDDLE


class Plan(Protocol):
    """Turns a row number of one rank's stream into a position, and a position into a clip."""

    def position(self, row: int) -> int:
        """The position of the rank's `row`-th clip."""
        ...

    def clip(self, position: int, attempt: int) -> Choice | None:
        """The choice at `position`; None when there is no further replacement."""
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

    def clip(self, position: int, attempt: int) -> Choice | None:
        """The scheduled clip, or its replacement."""
        if attempt > _MAX_ATTEMPTS:
            return None
        draw = self.schedule.at(position, attempt)
        return Choice(self.train[draw.clip], draw.rng())


@dataclass(frozen=True, slots=True)
class EvalPlan:
    """A rank's part of a list of clips, each view of each clip exactly once over all ranks, nothing random."""

    clips: tuple[int, ...]
    rank: int
    world: int
    times: int = 1
    """Views of a clip in time."""
    places: int = 1
    """Views of its picture, for each of those in time."""

    @property
    def views(self) -> int:
        """Positions per clip: position p shows clip p // views."""
        return self.times * self.places

    def position(self, row: int) -> int:
        """Every `world`-th view."""
        return self.rank + row * self.world

    def clip(self, position: int, attempt: int) -> Choice | None:
        """The listed clip; an unreadable one has no replacement."""
        index, view = divmod(position, self.views)
        time, place = divmod(view, self.places)
        return None if attempt else Choice(self.clips[index], None, View(time, self.times, place, self.places))

    def num_rows(self) -> int:
        """Views of this rank; ranks differ by one at most."""
        return len(range(self.rank, len(self.clips) * self.views, self.world))


def clip_weights(labels: Sequence[int], oversample: Literal["balanced"] | Mapping[int, float] | None) -> bytes:
    """Weights for `Schedule.weights`: how often each clip is drawn.

    Args:
        labels: The class of each clip.
        oversample: None draws all equally often; "balanced" every class; a mapping gives classes weights other than 1.
    """
    if oversample is None:
        return b""
    if oversample == "balanced":
        counts = Counter(labels)
        weights = np.array([1 / counts[label] for label in labels])
    else:
        weights = np.array([float(oversample.get(label, 1.0)) for label in labels])
    whole: NDArray[np.uint32] = np.maximum(1, np.rint(weights / weights.max() * _LARGEST_WEIGHT)).astype("<u4")
    return whole.tobytes()


def check_weights(weights: Mapping[str, float], classes: Sequence[str]) -> None:
    """Check the weights that `data.oversample` gives to classes.

    Raises:
        ValueError: a class is unknown, which names the nearest one, or a weight is not in (0, 1000].
    """
    for name, weight in weights.items():
        if name not in classes:
            near = difflib.get_close_matches(name, classes, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"its classes: {', '.join(classes)}"
            raise ValueError(f"data.oversample names '{name}', which is no class of the data set; {hint}")
        if not 0 < weight <= 1000:
            raise ValueError(f"data.oversample.{name} is {weight}; it must be above 0 and at most 1000")


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, num_clips: int, weights: bytes) -> NDArray[np.int64]:
    order = _permutation("epoch", seed, epoch, num_clips)
    if not weights:
        return order
    # Lay the weights end to end in this epoch's order and step through them evenly from a drawn start: a clip is hit as often
    # as its share says, rounded up or down. Then shuffle the hits.
    ends = np.cumsum(np.frombuffer(weights, "<u4")[order], dtype=np.uint64).astype(object) * num_clips
    total = int(ends[-1]) // num_clips
    start = _seed("oversample", seed, epoch) % total
    hits = ((ends + start) // total).astype(np.int64)
    drawn = np.repeat(order, np.diff(hits, prepend=0))
    return drawn[_permutation("oversampled", seed, epoch, num_clips)]


def _permutation(purpose: str, seed: int, epoch: int, num_clips: int) -> NDArray[np.int64]:
    bits = np.random.Philox(key=_seed(purpose, seed, epoch)).random_raw(num_clips)
    return np.argsort(bits, kind="stable")


def _seed(purpose: str, *numbers: int) -> int:
    text = ":".join([purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
