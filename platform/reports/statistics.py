"""Statistics of a metric over training seeds and test clips: intervals, tests and power. numpy and scipy only.

Every metric of this module is a weighted mean of scores, one per seed and clip: hits for an accuracy, the difference of two
rows' hits for a comparison. The scores form a table of seeds × clips, and both are samples: another training would have
another seed, another test part other clips (or other subjects, where several clips show one subject). The variance of the
mean has a part from the seeds and a part from the clips:

    V_seeds = MS_seeds / (S·U)        V_units = max(0, MS_units − MS_rest) / (S·U)

with the mean squares of the two-way analysis of variance. A two-level bootstrap estimates the same, but with a factor
(S − 1)/S on the first part, and it counts the noise of single clips up to three times. The interval takes Student's t of
S − 1 degrees of freedom for the part of the seeds and of U − 1 for the part of the units, weighted by the parts (Cochran and
Cox, Experimental Designs, 1957). docs/comparing.md has its measured coverage.

Letters: S seeds  n clips  U units (subjects, else clips)  R draws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, stdtr, stdtrit

Floats = NDArray[np.float64]

_MANY_DRAWS = 4096
"""Number of sign patterns up to which the sign-flip test lists all of them."""
_MAX_SEEDS = 1000
"""Largest number of seeds that the power calculation tries."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean over seeds and clips with the two parts of its variance."""

    mean: float
    by_seed: tuple[float, ...]
    """The mean over clips at each seed."""
    seeds: int
    units: int
    """Number of subjects, or of clips where no subject is known."""
    unit_freedom: int
    """Degrees of freedom of `unit_variance`: units less the means that are taken from them, one, or one for each class."""
    seed_variance: float
    """Part of the variance of `mean` that comes from the seeds, noise of single clips included. 0 for one seed."""
    unit_variance: float
    """Part of the variance of `mean` that comes from the choice of the units."""
    noise_variance: float
    """Part of `seed_variance` that single clips have even if all seeds are equally good. It is measured well with few seeds."""
    floor: float
    """Smallest standard error that the data can show, the effect of one clip; 0 for a metric without a bound."""

    @property
    def sd(self) -> float | None:
        """Standard deviation over seeds, None for one seed."""
        return float(np.std(self.by_seed, ddof=1)) if self.seeds > 1 else None

    def half_width(self, alpha: float = 0.05) -> float:
        """Return half of the width of the two-sided interval that misses with probability `alpha`."""
        total = self.seed_variance + self.unit_variance
        bound = self.floor * _student(alpha, math.inf)
        if total == 0:
            return bound
        weighted = self.unit_variance * _student(alpha, self.unit_freedom)
        if self.seed_variance:
            weighted += self.seed_variance * _student(alpha, self.seeds - 1)
        return max(weighted / math.sqrt(total), bound)

    def interval(self, alpha: float = 0.05) -> tuple[float, float]:
        """Return the two-sided interval that misses with probability `alpha`."""
        half = self.half_width(alpha)
        return self.mean - half, self.mean + half

    def p_value(self) -> float:
        """Return the two-sided p-value of the hypothesis that the mean of both populations is 0."""
        return _solve(self.half_width, abs(self.mean))

    def p_value_outside(self, rope: float) -> float:
        """Return the p-value of the hypothesis that the mean is `rope` or more away from 0: two one-sided tests."""
        room = rope - abs(self.mean)
        return min(1.0, _solve(self.half_width, room) / 2) if room > 0 else 1.0

    def detectable(self, seeds: int, *, comparisons: int = 1, power: float = 0.8) -> float:
        """Return the smallest true mean that `seeds` seeds find with probability `power`, at a p-value of 0.05 / comparisons.

        It extrapolates the measured parts of the variance, so it is rough for few seeds. Seeds that lie closer together than
        the noise of single clips allows are taken as luck.

        Raises:
            ValueError: `seeds` is below 2, or this mean is of one seed, which does not show how seeds differ.
        """
        if seeds < 2 or self.seeds < 2:
            raise ValueError(f"power needs 2 seeds or more, not {min(seeds, self.seeds)}")
        of_seeds = max(self.seed_variance, self.noise_variance) * self.seeds / seeds
        total = of_seeds + self.unit_variance
        factor_seeds, factor_units = (
            _student(0.05 / comparisons, df) + float(stdtrit(df, power)) for df in (seeds - 1.0, float(self.unit_freedom))
        )
        found = (of_seeds * factor_seeds + self.unit_variance * factor_units) / math.sqrt(total) if total else 0.0
        return max(found, self.floor * factor_units)

    def seeds_for(self, effect: float, *, comparisons: int = 1, power: float = 0.8) -> int | None:
        """Return the smallest number of seeds that finds a true mean of `effect`.

        None if 1,000 seeds are not enough: then the test part is too small.
        """
        low, high = 1, 2
        while self.detectable(high, comparisons=comparisons, power=power) > effect:
            low, high = high, 2 * high
            if low >= _MAX_SEEDS:
                return None
        while high - low > 1:
            middle = (low + high) // 2
            enough = self.detectable(middle, comparisons=comparisons, power=power) <= effect
            low, high = (low, middle) if enough else (middle, high)
        return high


def spread(
    scores: NDArray[Any],
    *,
    units: NDArray[np.int64] | None = None,
    strata: NDArray[np.int64] | None = None,
    bounded: bool = True,
) -> Spread:
    """Measure the mean of scores and the parts of its variance.

    Args:
        scores: (S, n) one score per seed and clip, such as hits, or the hits of one row minus those of another.
        units: (n,) number of the unit that each clip belongs to, from 0. None if every clip is its own.
        strata: (n,) class of each clip; then the mean is the mean of the classes' means. None weights all clips alike.
        bounded: Whether the scores are hits or differences of hits, so that one clip moves the mean by its weight at most.

    Raises:
        ValueError: There are no seeds, fewer than two clips or fewer than two units.
    """
    values = np.asarray(scores, np.float64)
    seeds, clips = values.shape
    number = clips if units is None else int(units.max(initial=-1)) + 1
    if seeds < 1 or clips < 2 or number < 2:
        raise ValueError(
            f"there are {seeds} seeds, {clips} clips and {number} units; a spread needs 1 seed and 2 of the others"
        )
    weights, groups = _weights(clips, strata)
    size = np.bincount(groups)
    centre = np.bincount(groups, values.mean(axis=0) * weights) / np.bincount(groups, weights)
    residuals = (values - centre[groups]) * weights
    if units is None:
        by_unit = residuals
    else:  # subjects have clips of many classes, so that their sums are one sample
        by_unit = np.stack([np.bincount(units, row, number) for row in residuals])
        groups, size = np.zeros(number, np.int64), np.array([number])
    of_seeds, of_units = by_unit.sum(axis=1), by_unit.mean(axis=0)  # both have the mean 0 but for rounding
    of_groups = np.stack([np.bincount(groups, row) for row in by_unit]) / size
    rest = by_unit - of_units - of_groups[:, groups]
    larger = (size / (size - 1))[groups]  # squared deviations from a mean of so many are too small by this factor
    noise = float((larger * rest**2).sum()) / (seeds * (seeds - 1)) if seeds > 1 else 0.0
    unit_variance = max(0.0, float((larger * of_units**2).sum()) - noise)
    return Spread(
        mean=float((values * weights).sum() / seeds),
        by_seed=tuple((values * weights).sum(axis=1).tolist()),
        seeds=seeds,
        units=number,
        unit_freedom=number - len(size),
        seed_variance=_clean(float((of_seeds**2).sum()) / (seeds * (seeds - 1)) if seeds > 1 else 0.0),
        unit_variance=_clean(unit_variance),
        noise_variance=_clean(noise),
        floor=float(weights.max()) * clips / (clips + 2) if bounded else 0.0,
    )


def _weights(clips: int, strata: NDArray[np.int64] | None) -> tuple[Floats, NDArray[np.int64]]:
    """Return (n,) weights of the clips, which sum to 1, and (n,) the group of each clip within which clips are compared.

    A group is a stratum. One clip alone shows no spread, so strata of one clip are a group together; a single one of these
    joins the smallest other stratum.
    """
    if strata is None:
        return np.full(clips, 1 / clips), np.zeros(clips, np.int64)
    _, stratum, size = np.unique(strata, return_inverse=True, return_counts=True)
    alone = np.flatnonzero(size == 1)
    groups = np.arange(len(size))
    if len(alone) == 1:
        others = np.flatnonzero(size > 1)
        groups[alone] = others[np.argmin(size[others])]
    elif len(alone):
        groups[alone] = alone[0]
    return 1 / (len(size) * size[stratum]), np.unique(groups[stratum], return_inverse=True)[1]


def _clean(variance: float) -> float:
    """A variance of nothing but rounding errors is 0."""
    return 0.0 if variance < 1e-24 else variance


def _student(alpha: float, df: float) -> float:
    """Return the quantile of Student's t that is exceeded in absolute value with probability `alpha`."""
    quantile = float(stdtrit(min(df, 1e9), alpha / 2))
    return -quantile if quantile <= 0 else math.inf  # scipy 1.17 gives +inf for the smallest alphas and few degrees of freedom


def _solve(half_width: Callable[[float], float], distance: float) -> float:
    """Return the alpha at which half the width of the interval is `distance`."""
    if half_width(1e-300) <= distance and distance > 0:
        return 0.0
    low, high = -300.0, 0.0  # log10 of alpha
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if half_width(10**middle) > distance else (low, middle)
    return float(10**high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm 1979), in their order. NaN stays NaN and is not counted."""
    counted = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = list(p_values), 0.0
    for rank, (p, index) in enumerate(counted):
        largest = max(largest, min(1.0, p * (len(counted) - rank)))
        adjusted[index] = largest
    return adjusted


def mcnemar(row: NDArray[np.bool_], base: NDArray[np.bool_]) -> tuple[int, int, float]:
    """Compare the hits of two runs on the same clips (McNemar 1947, exact).

    Args:
        row: (n,) whether one run is right on each clip.
        base: (n,) the same for the other run.

    Returns:
        The number of clips that only `row` has right, that only `base` has right, and the two-sided p-value.
    """
    only_row, only_base = int((row & ~base).sum()), int((base & ~row).sum())
    either = only_row + only_base
    return only_row, only_base, min(1.0, 2 * float(bdtr(min(only_row, only_base), either, 0.5)))


def sign_flip(differences: Sequence[float], *, seed: int = 0) -> float:
    """Return the two-sided p-value of the sign-flip permutation test on the differences of paired seeds.

    It is exact up to 12 seeds; for more, 20,000 random patterns of signs are drawn. It is never below 2 / 2^S, so it cannot
    reach 0.05 with fewer than six seeds.
    """
    values = np.asarray(differences, np.float64)
    if 2 ** len(values) <= _MANY_DRAWS:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(values))))
        extra = 0
    else:
        signs = np.random.default_rng(seed).choice((-1.0, 1.0), (20_000, len(values)))
        extra = 1  # the observed pattern counts as a draw, so the p-value is never 0
    larger = np.abs(signs @ values) >= abs(values.sum()) - 1e-12
    return float((larger.sum() + extra) / (len(signs) + extra))


def share_explained(gap: float, by_seed: Sequence[float]) -> tuple[float, float] | None:
    """Say how a gap between one published run and the mean of our seeds compares with seed noise.

    `gap` is the published value minus the mean of `by_seed`.

    Returns:
        Half of the width of the 95 % prediction interval for one further run of ours, and the two-sided p-value of `gap` under
        seed noise alone. None for fewer than two seeds, or if all seeds have the same value.
    """
    seeds = len(by_seed)
    noise = float(np.std(by_seed, ddof=1)) * math.sqrt(1 + 1 / seeds) if seeds > 1 else 0.0
    if noise == 0:
        return None
    return noise * _student(0.05, seeds - 1), 2 * float(stdtr(seeds - 1, -abs(gap) / noise))
