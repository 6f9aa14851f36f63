"""How much each searched key matters: PED-ANOVA, by Optuna."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import optuna

from starlab.experiments.space import Distribution
from starlab.platform.runs.search_records import Trial
from starlab.platform.search.objectives import Objective
from starlab.platform.search.space import Space

FEWEST_TRIALS = 10
"""With fewer trials, the best tenth is less than one of them."""


def importances(trials: Sequence[Trial], space: Mapping[str, Distribution], objective: Objective) -> dict[str, float]:
    """Compute the importance of each key: how much its values among the best tenth of the trials differ from those of all.

    Args:
        trials: Finished trials. Those without a value of the objective are left out.
        space: Space of the search. A key that a condition switches off in some trials is left out.
        objective: What the trials are judged by.

    Returns:
        Shares by key, which sum to 1; empty for fewer than `FEWEST_TRIALS` trials or fewer than two keys.
    """
    optuna_space = Space(space)
    inside = [trial for trial in trials if _fits(trial, space) and math.isfinite(trial.value_of(objective.name))]
    keys = [key for key in space if all(key in trial.values for trial in inside)]
    if len(inside) < FEWEST_TRIALS or len(keys) < 2:
        return {}
    study = optuna.create_study(direction=objective.direction)
    distributions = {key: optuna_space.optuna(key) for key in keys}
    for trial in inside:
        params = optuna_space.params({key: trial.values[key] for key in keys})
        value = trial.value_of(objective.name)
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
    found = optuna.importance.get_param_importances(study, evaluator=optuna.importance.PedAnovaImportanceEvaluator())
    return {key: float(share) for key, share in found.items()}


def _fits(trial: Trial, space: Mapping[str, Distribution]) -> bool:
    """Whether the trial is a point of the space: one of a wider, earlier space has no place in it."""
    try:
        for key, value in trial.values.items():
            space[key].find(value)
    except (KeyError, ValueError):
        return False
    return True
