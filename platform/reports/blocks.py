"""Complete blocks of runs. Where a row holds runs with several settings, its value at a seed is the mean over the settings.

Settings that are not replicates must not be counted as such: their spread is not the noise of the seeds, and a mean over other
settings is another mean. So a row is measured on seeds and settings of which every combination has a run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from numpy.typing import NDArray

Key = tuple[Any, ...]
"""Which run of its row a run is: its seed, then the values of the keys that `--by` leaves open, if any."""


@dataclass(frozen=True, slots=True)
class Block:
    """Seeds and settings of which every combination has a run."""

    seeds: tuple[int, ...]
    settings: tuple[Key, ...]
    """Values of the keys that `--by` leaves open. One empty tuple if it leaves none open."""

    @property
    def keys(self) -> frozenset[Key]:
        """The runs of the block."""
        return frozenset((seed, *setting) for seed in self.seeds for setting in self.settings)

    def by_seed(self, values: Mapping[Key, Any]) -> NDArray[np.floating]:
        """Return (S, ...) the mean over the settings at each seed of values by run."""
        if len(self.settings) == 1:
            return np.stack([np.asarray(values[seed, *self.settings[0]]) for seed in self.seeds])
        return np.stack([np.mean([values[seed, *setting] for setting in self.settings], axis=0) for seed in self.seeds])


def largest_block(keys: Collection[Key]) -> Block:
    """Return the complete block of these runs with the most runs. Blocks of several seeds go before those of one."""
    seeds_of: dict[Key, set[int]] = {}
    for seed, *setting in keys:
        seeds_of.setdefault(tuple(setting), set()).add(seed)
    distinct = {frozenset(seeds) for seeds in seeds_of.values()}
    shared = {one & other for one, other in combinations_with_replacement(distinct, 2)}
    blocks = [
        Block(tuple(sorted(seeds)), tuple(sorted((setting for setting, there in seeds_of.items() if seeds <= there), key=repr)))
        for seeds in shared
        if seeds
    ]
    return max(
        blocks,
        key=lambda block: (min(2, len(block.seeds)), len(block.seeds) * len(block.settings), block.seeds),
        default=Block((), ()),
    )
