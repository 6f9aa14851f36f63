"""The plain two-level bootstrap, to compare the interval of `statistics.spread` with. numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def two_level_bootstrap(
    scores: NDArray[Any],
    *,
    units: NDArray[np.int64] | None = None,
    draws: int = 2000,
    alpha: float = 0.05,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile interval of the two-level bootstrap: seeds are drawn again, and units are drawn again.

    It is too narrow for few seeds (docs/comparing.md has its coverage), so verdicts use `statistics.spread`. With many seeds
    the two agree.

    Args:
        scores: (S, n) one score per seed and clip.
        units: (n,) number of the unit that each clip belongs to, from 0. None if every clip is its own.
        draws: Number of draws.
        alpha: Probability of a miss that the interval aims at.
        seed: Seed of the draws.
    """
    values = np.asarray(scores, np.float64)
    sizes = np.ones(values.shape[1])
    if units is not None:
        number = int(units.max()) + 1
        values = np.stack([np.bincount(units, row, number) for row in values])
        sizes = np.bincount(units, minlength=number).astype(np.float64)
    seeds, number = values.shape
    random = np.random.default_rng(seed)
    means = np.empty(draws)
    for first in range(0, draws, 250):  # bounds the memory: 250 × U weights at a time
        some = min(250, draws - first)
        of_seeds = random.multinomial(seeds, np.full(seeds, 1 / seeds), some) / seeds
        of_units = random.multinomial(number, np.full(number, 1 / number), some)
        means[first : first + some] = ((of_seeds @ values) * of_units).sum(axis=1) / (of_units @ sizes)
    low, high = np.quantile(means, [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)
