"""Points of a search's space: how Optuna proposes one, and how one is printed."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import optuna

from starlab.experiments.space import Distribution


@dataclass(frozen=True, slots=True)
class Space:
    """The space of a search, for Optuna."""

    distributions: Mapping[str, Distribution]

    @property
    def size(self) -> int | None:
        """The number of points; None where a key has a range of floats."""
        sizes = [distribution.size for distribution in self.distributions.values()]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    def points(self) -> Iterator[dict[str, Any]]:
        """Every point of a finite space as Optuna's params, in order; nothing for a space with a range of floats."""
        if self.size is not None:
            columns = [
                range(d.values[0], d.values[1] + 1) if d.kind == "int" else _labels(d) for d in self.distributions.values()
            ]
            for params in itertools.product(*columns):
                yield dict(zip(self.distributions, params, strict=True))

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Have the sampler suggest a value for every key."""
        for key, distribution in self.distributions.items():
            if distribution.kind == "choice":
                trial.suggest_categorical(key, _labels(distribution))
            elif distribution.kind == "int":
                trial.suggest_int(key, *distribution.values)
            else:
                trial.suggest_float(key, *distribution.values, log=distribution.kind == "log")
        return self.values(trial.params)

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a spec that Optuna's params stand for."""
        values = dict(params)
        for key, distribution in self.distributions.items():
            if distribution.kind == "choice" and key in params:
                values[key] = distribution.values[_labels(distribution).index(params[key])]
        return values


def _labels(distribution: Distribution) -> list[Any]:
    """The choices as Optuna can store them: a list or a mapping becomes JSON text."""
    plain = str | int | float | None
    return [value if isinstance(value, plain) else json.dumps(value, sort_keys=True) for value in distribution.values]


def values_text(values: Mapping[str, Any]) -> str:
    """A point of the space as the overrides of a command line: "model.layers=2 train.lr=0.001"."""
    return " ".join(f"{key}={_text(value)}" for key, value in sorted(values.items()))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value)  # null and true, as in YAML
