"""What training did to the attention, told apart from what the wiring does by itself."""

import numpy as np

from starlab.platform.reports.attention import Estimate, focus
from starlab.platform.reports.untrained import Untrained, against_untrained, change, changes, range_of, untrained_of


def clips(last: float, seed: int, count: int = 60) -> np.ndarray:
    """Importance of 16 frames in which the last quarter weighs `last` times as much as the others."""
    rng = np.random.default_rng(seed)
    values = np.array([1.0] * 12 + [last] * 4) * rng.uniform(0.95, 1.05, (count, 16))
    return (values / values.sum(axis=1, keepdims=True)).astype(np.float32)


def untrained(*weights: float) -> Untrained:
    return untrained_of([{"F": focus("F", clips(last, seed))} for seed, last in enumerate(weights)])


CONTROL = untrained(0.98, 1.0, 1.02, 0.99, 1.01)


def test_a_trained_model_whose_last_frames_gained_is_told_from_one_that_lost_and_from_one_that_did_not_change() -> None:
    assert changes(focus("F", clips(2.0, 9)), CONTROL) == ("more", "less")
    assert changes(focus("F", clips(0.5, 9)), CONTROL)[0] == "less"
    assert changes(focus("F", clips(1.0, 9)), CONTROL) == ("no change shown", "no change shown")
    assert "training moved importance to the last frames" in against_untrained(focus("F", clips(2.0, 9)), CONTROL)


def test_a_wiring_that_is_late_by_itself_gives_training_no_credit() -> None:
    late = untrained(1.9, 2.0, 2.1, 1.95, 2.05)
    assert changes(focus("F", clips(2.0, 9)), late)[0] == "no change shown"
    assert "no shift to or from the last frames is shown" in against_untrained(focus("F", clips(2.0, 9)), late)


def test_the_range_holds_one_more_untrained_model_in_95_of_100_cases() -> None:
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(2000):
        *models, another = rng.normal(0.25, 0.01, 6)
        found = range_of(models)
        inside += found.low <= another <= found.high
    assert 0.935 < inside / 2000 < 0.965


def test_a_run_differs_only_if_its_whole_interval_is_outside() -> None:
    band = Estimate(0.25, 0.24, 0.26)
    assert change(Estimate(0.27, 0.255, 0.285), band) == "no change shown"
    assert change(Estimate(0.27, 0.265, 0.275), band) == "more"
    assert change(Estimate(0.2, 0.19, 0.21), band) == "less"
