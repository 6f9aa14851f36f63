"""Points of a search's space: how Optuna proposes one, and how one is printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna

from starlab.experiments.space import Distribution


@dataclass(frozen=True, slots=True)
class Space:
    """The space of a search as a function that Optuna calls with each new trial."""

    distributions: Mapping[str, Distribution]

    def __call__(self, trial: optuna.Trial) -> None:
        """Have the sampler suggest a value for every key."""
        for key, distribution in self.distributions.items():
            if distribution.kind == "choice":
                trial.suggest_categorical(key, list(distribution.values))
            elif distribution.kind == "int":
                trial.suggest_int(key, *distribution.values)
            else:
                trial.suggest_float(key, *distribution.values, log=distribution.kind == "log")


def values_text(values: Mapping[str, Any]) -> str:
    """A point of the space as the overrides of a command line: "model.layers=2 train.lr=0.001"."""
    return " ".join(
        f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in sorted(values.items())
    )
