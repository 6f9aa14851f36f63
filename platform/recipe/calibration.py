"""Calibrates a model's confidence: a temperature for its logits, and the error of its confidence.

Temperature scaling (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017): the logits are divided by one number
before the softmax. The predicted classes stay as they are.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from starlab.platform.recipe.metrics import Evaluation, log_softmax, softmax

BINS = 15
"""Number of equal bins of the confidence, as in the paper."""
_LOWEST, _HIGHEST = math.log(0.05), math.log(20.0)


def fit_temperature(evaluation: Evaluation) -> float:
    """Fit the temperature that gives the predictions of an evaluation the highest likelihood.

    A part on which every prediction is right has no best temperature: the likelihood grows as the temperature goes to 0. A
    standard normal prior on the temperature's logarithm keeps it near 1 there. It counts as much as a fraction of one clip, so
    it does not matter where there are many.

    Raises:
        ValueError: There are no clips.
    """
    from scipy.optimize import minimize_scalar  # takes a fifth of a second, which the start of a training need not wait for

    if not len(evaluation.labels):
        raise ValueError("a temperature cannot be fitted without clips")
    logits, rows = evaluation.logits.astype(np.float64), np.arange(len(evaluation.labels))

    def cost(log_temperature: float) -> float:
        likelihoods = log_softmax(logits / math.exp(log_temperature))[rows, evaluation.labels]
        return float(-likelihoods.sum() + log_temperature**2 / 2)

    found = minimize_scalar(cost, bounds=(_LOWEST, _HIGHEST), method="bounded", options={"xatol": 1e-4})
    return math.exp(float(found.x))


def expected_calibration_error(evaluation: Evaluation, temperature: float = 1.0) -> float:
    """Compute the mean distance between confidence and accuracy over bins of the confidence (ECE), in [0, 1].

    It is NaN without clips.

    Args:
        evaluation: Predictions with their true classes.
        temperature: Number to divide the logits by.
    """
    if not len(evaluation.labels):
        return math.nan
    confidence: NDArray[np.float64] = softmax(evaluation.logits.astype(np.float64) / temperature).max(axis=1)
    right = evaluation.predicted == evaluation.labels
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(right))
