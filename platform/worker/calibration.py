"""Keeps the validation predictions of the best checkpoint, and fits the temperature of its confidence to them at the end.

artifacts/validation.parquet    see predictions.py
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress

import numpy as np

from starlab.platform.recipe.calibration import expected_calibration_error, fit_temperature
from starlab.platform.recipe.metrics import Evaluation
from starlab.platform.runs.calibration import Calibration
from starlab.platform.worker.predictions import read_predictions, write_predictions
from starlab.platform.worker.tasks import TrainTask

FILE = "validation.parquet"


def keep_validation(task: TrainTask, evaluation: Evaluation | None) -> None:
    """Write the predictions of the checkpoint that is now the best. On a full disk they are lost, and the run goes on.

    A run that selects by its test part keeps none: a temperature fitted there would be a look at the test part.
    """
    if evaluation is not None and len(evaluation.labels) and task.spec.data.select != "test":
        with suppress(OSError):
            write_predictions(task.folder.artifacts / FILE, evaluation, task.source)


def calibrate(task: TrainTask, best: Mapping[str, float], test: Evaluation | None) -> Calibration | None:
    """Fit the temperature to the kept predictions, and measure the calibration errors.

    Args:
        task: The training.
        best: Validation metrics of the best checkpoint.
        test: Predictions of the test part; None if it was not evaluated.

    Returns:
        None if nothing was held out, if no actions were learned, or if the kept predictions are missing or those of other
        weights.
    """
    path = task.folder.artifacts / FILE
    if not best or not task.spec.train.learns_actions or not path.is_file():
        return None
    _, evaluation, _ = read_predictions(path)
    if not math.isclose(evaluation.metrics()["loss"], best["loss"], rel_tol=1e-4, abs_tol=1e-6):
        return None
    temperature = fit_temperature(evaluation)
    return Calibration(
        temperature=temperature,
        clips=len(evaluation.labels),
        val_ece_before=expected_calibration_error(evaluation),
        val_ece_after=expected_calibration_error(evaluation, temperature),
        test_ece_before=expected_calibration_error(test) if test else None,
        test_ece_after=expected_calibration_error(test, temperature) if test else None,
    )


def median_clip_frames(task: TrainTask) -> int:
    """Compute the median number of frames of the training clips."""
    return int(np.median([task.source.clips[index].num_frames for index in task.parts.train]))
