"""Intervals, tests and power: against other computations, in edge cases, and by simulated comparisons whose truth is known."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from starlab.platform.reports.bootstrap import two_level_bootstrap
from starlab.platform.reports.simulated import Effects, hits, subjects_of
from starlab.platform.reports.statistics import (
    Spread,
    holm,
    mcnemar,
    share_explained,
    sign_flip,
    spread,
)


def differences(accuracies: tuple[float, float], seeds: int, clips: int, effects: Effects, seed: int) -> np.ndarray:
    base, row = hits(accuracies, seeds, clips, effects, np.random.default_rng(seed))
    return row.astype(float) - base


def test_the_parts_of_the_variance_are_those_of_the_two_way_analysis_of_variance() -> None:
    scores = differences((0.8, 0.9), 4, 50, Effects(), 1)
    mean, by_seed, by_clip = scores.mean(), scores.mean(axis=1), scores.mean(axis=0)
    of_seeds = 50 * ((by_seed - mean) ** 2).sum() / 3
    of_clips = 4 * ((by_clip - mean) ** 2).sum() / 49
    rest = ((scores - by_seed[:, None] - by_clip + mean) ** 2).sum() / (3 * 49)
    found = spread(scores)
    assert found.mean == pytest.approx(mean)
    assert found.by_seed == pytest.approx(tuple(by_seed))
    assert found.seed_variance == pytest.approx(of_seeds / 200)
    assert found.unit_variance == pytest.approx(max(0, of_clips - rest) / 200)


def test_clips_alike_at_every_seed_leave_students_interval_over_the_seeds() -> None:
    scores = np.repeat([[0.1], [0.4], [0.2]], 30, axis=1)
    interval = stats.t.interval(0.95, 2, loc=np.mean([0.1, 0.4, 0.2]), scale=stats.sem([0.1, 0.4, 0.2]))
    assert spread(scores, bounded=False).interval() == pytest.approx(interval)
    assert spread(scores, bounded=False).p_value() == pytest.approx(stats.ttest_1samp([0.1, 0.4, 0.2], 0).pvalue)


def test_one_seed_leaves_students_interval_over_the_clips() -> None:
    scores = np.random.default_rng(2).normal(size=(1, 40))
    interval = stats.t.interval(0.95, 39, loc=scores.mean(), scale=stats.sem(scores[0]))
    assert spread(scores, bounded=False).interval() == pytest.approx(interval)
    assert spread(scores).sd is None


def test_a_unit_per_clip_is_the_same_as_no_units() -> None:
    scores = differences((0.8, 0.9), 3, 60, Effects(), 3)
    plain, single = spread(scores), spread(scores, units=np.arange(60))
    assert single.interval() == pytest.approx(plain.interval())


def test_the_mean_of_strata_is_the_mean_of_the_classes_recalls_and_a_class_of_one_clip_weighs_as_a_class() -> None:
    strata = np.array([0] * 40 + [1] * 9 + [2])
    scores = differences((0.8, 0.9), 3, 50, Effects(), 4)
    found = spread(scores, strata=strata)
    assert found.mean == pytest.approx(np.mean([scores[:, strata == label].mean() for label in range(3)]))
    assert found.floor == pytest.approx(50 / 52 / 3)


def test_one_seed_of_strata_has_the_variance_of_a_stratified_sample() -> None:
    strata = np.array([0] * 4 + [1] * 2 + [2] * 3)
    scores = np.random.default_rng(5).normal(size=(1, 9))
    parts = [scores[0, strata == label].var(ddof=1) / (strata == label).sum() / 9 for label in range(3)]
    found = spread(scores, strata=strata, bounded=False)
    assert found.unit_variance == pytest.approx(sum(parts))
    assert found.unit_freedom == 9 - 3


def test_a_class_of_one_clip_shows_no_spread_and_is_no_proof_of_none() -> None:
    two_classes = np.repeat([[0.0, -1.0]], 3, axis=0)
    assert spread(two_classes, strata=np.array([0, 1])).interval() == pytest.approx(spread(two_classes).interval())
    one_alone = spread(np.repeat([[0.0, 0.0, 0.0, -1.0]], 3, axis=0), strata=np.array([0, 0, 0, 1]))
    assert one_alone.unit_freedom == 3
    assert one_alone.p_value() > 0.05


def test_few_clips_of_many_classes_are_covered_as_often_as_promised() -> None:
    random, strata, inside = np.random.default_rng(6), np.repeat(np.arange(40), 2), []
    for _ in range(400):
        base, row = hits([0.85, 0.85], 3, 80, Effects(row=1.0), random)
        low, high = spread(row.astype(float) - base, strata=strata).interval()
        inside.append(low <= 0 <= high)
    assert np.mean(inside) > 0.95  # 0.92 without the factor n / (n − 1) of each class


def test_no_difference_on_any_clip_is_no_proof_of_none() -> None:
    found = spread(np.zeros((3, 150)))
    low, high = found.interval()
    assert (found.mean, found.p_value()) == (0, 1)
    assert high == -low == pytest.approx(1.96 / 152, rel=1e-3)
    assert found.p_value_outside(0.005) > 0.05
    assert found.p_value_outside(0.02) < 0.05


def test_two_clips_give_a_very_wide_interval_and_fewer_give_an_error() -> None:
    found = spread(np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]))
    assert found.p_value() > 0.3
    with pytest.raises(ValueError, match="3 seeds, 1 clips and 1 units"):
        spread(np.ones((3, 1)))
    with pytest.raises(ValueError, match="1 units"):
        spread(np.ones((3, 4)), units=np.zeros(4, np.int64))


@pytest.mark.parametrize("seed", range(5))
def test_the_p_value_is_where_the_interval_reaches_zero_and_equivalence_where_it_fits_into_the_region(seed: int) -> None:
    found = spread(differences((0.9, 0.92), 3, 300, Effects(), seed))
    assert found.half_width(found.p_value()) == pytest.approx(abs(found.mean), rel=1e-6)
    rope = abs(found.mean) + 0.01
    assert found.half_width(2 * found.p_value_outside(rope)) == pytest.approx(0.01, rel=1e-6)
    assert found.p_value_outside(abs(found.mean)) == 1


@pytest.mark.parametrize("units", range(2, 60))
def test_the_p_value_of_a_large_difference_over_few_units_agrees_with_its_interval(units: int) -> None:
    """scipy 1.17 gives wrong quantiles of Student's t for the smallest probabilities at 3 and at 5 to 12 degrees of freedom."""
    of_units = np.repeat(np.arange(units), 4)
    found = spread((of_units % 2)[None].astype(float), units=of_units)
    assert found.half_width(found.p_value()) == pytest.approx(abs(found.mean), rel=1e-6)
    assert (found.p_value() < 0.05) == (found.half_width(0.05) < abs(found.mean))


def test_mcnemar_counts_the_clips_that_one_run_alone_has_right_and_is_the_exact_binomial_test() -> None:
    row = np.array([True] * 9 + [False] * 2 + [True] * 20)
    base = np.array([False] * 9 + [True] * 2 + [True] * 20)
    assert mcnemar(row, base) == (9, 2, pytest.approx(stats.binomtest(9, 11).pvalue))
    assert mcnemar(row, row) == (0, 0, 1.0)


def test_sign_flips_are_those_of_scipy_and_cannot_reach_five_percent_with_five_seeds() -> None:
    values = [0.4, 1.2, -0.3, 0.8, 0.5, 0.9, 0.2]
    expected = stats.permutation_test((values,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flip(values) == pytest.approx(expected)
    assert sign_flip([1.0] * 5) == pytest.approx(1 / 16)
    assert sign_flip([1.0] * 6) == pytest.approx(1 / 32)
    assert 0 < sign_flip([1.0] * 30) < 1e-3
    assert sign_flip([0.0] * 7) == 1


def test_holm_multiplies_by_what_is_left_and_never_falls() -> None:
    assert holm([0.01, 0.04, math.nan, 0.03]) == [
        pytest.approx(0.03),
        pytest.approx(0.06),
        pytest.approx(math.nan, nan_ok=True),
        0.06,
    ]
    assert holm([]) == []


def test_the_two_level_bootstrap_agrees_where_there_are_many_seeds_and_is_too_narrow_where_there_are_few() -> None:
    many = differences((0.9, 0.92), 40, 400, Effects(seed=0.5, row=1), 1)
    low, high = two_level_bootstrap(many)
    assert (high - low) / 2 == pytest.approx(spread(many).half_width(), rel=0.12)
    few = np.repeat([[0.1], [0.4], [0.2]], 30, axis=1)
    low, high = two_level_bootstrap(few)
    assert high - low < 0.6 * 2 * spread(few, bounded=False).half_width()


def test_the_two_level_bootstrap_draws_whole_subjects() -> None:
    subject = np.repeat([0, 1, 2, 3], [5, 10, 10, 15])
    scores = np.tile(np.where(subject < 2, 1.0, 0.0), (4, 1))
    low, high = two_level_bootstrap(scores, units=subject, draws=500)
    assert (low, high) == (pytest.approx(0, abs=0.1), 1)


def test_power_says_what_a_comparison_sees_and_how_many_seeds_see_it() -> None:
    found = spread(differences((0.9, 0.9), 3, 1000, Effects(seed=0.3), 5))
    needed = found.seeds_for(0.03)
    assert needed is not None
    assert found.detectable(needed) <= 0.03 < found.detectable(needed - 1)
    assert found.detectable(3) > found.detectable(6) > found.detectable(60)
    assert found.detectable(5, comparisons=4) > found.detectable(5)
    assert found.seeds_for(1e-6) is None  # however many seeds, the clips are too few
    with pytest.raises(ValueError, match="2 seeds"):
        spread(np.zeros((1, 9))).detectable(3)


def test_a_difference_of_the_detectable_size_is_found_about_four_times_in_five() -> None:
    effects, seeds = Effects(seed=0.3, row=0.5), 6
    known = spread(differences((0.9, 0.9), 200, 400, effects, 1))  # so many seeds that its parts are almost the true ones
    size = known.detectable(seeds)
    found = [
        spread(differences((0.9 - size / 2, 0.9 + size / 2), seeds, 400, effects, 100 + number)).p_value() <= 0.05
        for number in range(300)
    ]
    assert 0.7 <= np.mean(found) <= 0.9


def test_a_gap_to_the_paper_is_compared_with_the_noise_of_one_more_run() -> None:
    seeds = [97.0, 98.0, 97.5]
    explained = share_explained(1.2, seeds)
    assert explained is not None
    half, p_value = explained
    assert half == pytest.approx(stats.t.ppf(0.975, 2) * np.std(seeds, ddof=1) * math.sqrt(4 / 3))
    assert 0.05 < p_value < 1
    assert share_explained(1.2, [97.0]) is None
    assert share_explained(1.2, [97.0, 97.0]) is None


def coverage(seeds: int, effects: Effects, clips: int, accuracies: tuple[float, float], number: int) -> tuple[float, float]:
    """The share of intervals that hold the true difference, and of comparisons with a p-value of 0.05 or less."""
    units = subjects_of(clips, effects.subjects) if effects.subjects else None
    true = accuracies[1] - accuracies[0]
    found: list[Spread] = [
        spread(differences(accuracies, seeds, clips, effects, 1000 * seeds + draw), units=units) for draw in range(number)
    ]
    covered = [low <= true <= high for low, high in (one.interval() for one in found)]
    return float(np.mean(covered)), float(np.mean([one.p_value() <= 0.05 for one in found]))


@pytest.mark.parametrize(("seeds", "noise"), list(itertools.product((2, 3, 5), (0.0, 0.3))))
def test_intervals_of_few_seeds_hold_the_truth_as_often_as_they_say(seeds: int, noise: float) -> None:
    held, wrong = coverage(seeds, Effects(seed=noise), 400, (0.9, 0.9), 600)
    assert 0.925 <= held <= 0.985  # 600 draws miss by 0.018 at most, in 19 of 20 tests; the whole benchmark is exact
    assert wrong <= 0.075
    assert coverage(seeds, Effects(seed=noise), 400, (0.85, 0.93), 600)[0] >= 0.925


def test_intervals_over_subjects_hold_the_truth_where_intervals_over_clips_do_not() -> None:
    effects = Effects(seed=0.05, subject=0.5, subjects=20)
    assert coverage(5, effects, 800, (0.9, 0.9), 400)[0] >= 0.92
    overlooked = [spread(differences((0.9, 0.9), 5, 800, effects, 5000 + draw)).p_value() <= 0.05 for draw in range(400)]
    assert np.mean(overlooked) > 0.15
