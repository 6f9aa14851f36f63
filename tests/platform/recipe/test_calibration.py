"""A temperature makes confidence honest; the calibration error of known cases."""

from __future__ import annotations

import numpy as np
import pytest

from starlab.platform.recipe.calibration import expected_calibration_error, fit_temperature
from starlab.platform.recipe.metrics import Evaluation, softmax


def draw(clips: int, overconfidence: float, seed: int = 0) -> Evaluation:
    """Labels drawn from the model's own probabilities, and logits that are too large by a factor."""
    dice = np.random.default_rng(seed)
    honest = dice.normal(size=(clips, 5)) * 1.5
    labels = np.array([dice.choice(5, p=row) for row in softmax(honest)])
    return Evaluation(np.arange(clips), labels, (overconfidence * honest).astype(np.float32), ())


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_temperature_is_the_factor_by_which_logits_are_too_large(factor: float) -> None:
    assert fit_temperature(draw(4000, factor)) == pytest.approx(factor, rel=0.08)


def test_the_calibration_error_falls_on_clips_that_the_fit_did_not_see() -> None:
    temperature = fit_temperature(draw(1000, 3.0))
    other = draw(4000, 3.0, seed=1)
    assert expected_calibration_error(other) > 0.15
    assert expected_calibration_error(other, temperature) < 0.03


def test_the_error_of_a_known_case() -> None:
    logits = np.log(np.array([[0.9, 0.1]] * 10)).astype(np.float32)
    labels = np.array([0] * 6 + [1] * 4)
    assert expected_calibration_error(Evaluation(np.arange(10), labels, logits, ())) == pytest.approx(0.3, abs=1e-6)


def test_a_part_without_a_mistake_leaves_the_temperature_near_one() -> None:
    logits = np.eye(4, dtype=np.float32)[np.arange(40) % 4] * 9
    assert 0.3 < fit_temperature(Evaluation(np.arange(40), np.arange(40) % 4, logits, ())) < 1.5


def test_no_clips_are_an_error() -> None:
    empty = Evaluation(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.float32), ())
    with pytest.raises(ValueError, match="without clips"):
        fit_temperature(empty)
    assert np.isnan(expected_calibration_error(empty))
