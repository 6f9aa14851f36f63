"""Points of a search's space: how Optuna proposes one, which there are, and how one is printed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from starlab.experiments.space import Distribution

_MOST = 100_000
"""Points of a space that are counted one by one. A larger space is never used up."""


@dataclass(frozen=True)
class Space:
    """The space of a search, for Optuna. A point has only the keys whose conditions hold."""

    distributions: Mapping[str, Distribution]
    """Each key behind those that its condition names."""

    @property
    def is_conditional(self) -> bool:
        """Whether some points lack some keys."""
        return any(distribution.when for distribution in self.distributions.values())

    @cached_property
    def size(self) -> int | None:
        """The number of points; None where a key has a range of floats, or there are more than 100,000."""
        sizes = [distribution.size for distribution in self.distributions.values()]
        if None in sizes:
            return None
        if not self.is_conditional:
            product = math.prod(size for size in sizes if size is not None)
            return product if product <= _MOST else None
        count = sum(1 for _, _ in zip(range(_MOST + 1), self._extend({}, list(self.distributions)), strict=False))
        return count if count <= _MOST else None

    def points(self) -> Iterator[dict[str, Any]]:
        """Every point of a space that has a size, in order, the last key fastest."""
        if self.size is not None:
            yield from self._extend({}, list(self.distributions))

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Have the sampler suggest a point."""
        values: dict[str, Any] = {}
        for key, distribution in self.distributions.items():
            if distribution.is_on(values):
                values[key] = self._value(key, trial._suggest(key, self.optuna(key)))
        return values

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The point that Optuna's params stand for."""
        return {key: self._value(key, params[key]) for key in self.distributions if key in params}

    def is_whole(self, params: Mapping[str, Any]) -> bool:
        """Whether the params are those of a point, not of a proposal that was killed between two of its values."""
        if not params.keys() <= self.distributions.keys():
            return False
        values = self.values(params)
        return all((key in values) == distribution.is_on(values) for key, distribution in self.distributions.items())

    def params(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Optuna's params for a point."""
        params = dict(values)
        for key, value in values.items():
            if (distribution := self.distributions[key]).kind == "choice":
                params[key] = _labels(distribution)[distribution.index(value)]
        return params

    def optuna(self, key: str) -> BaseDistribution:
        """Optuna's distribution of a key."""
        distribution = self.distributions[key]
        if distribution.kind == "choice":
            return CategoricalDistribution(_labels(distribution))
        low, high = distribution.values
        if distribution.kind in ("int", "log_int"):
            return IntDistribution(low, high, log=distribution.kind == "log_int", step=int(distribution.step or 1))
        return FloatDistribution(low, high, log=distribution.kind == "log", step=distribution.step)

    def _value(self, key: str, param: Any) -> Any:
        distribution = self.distributions[key]
        if distribution.kind == "choice":
            return distribution.values[_labels(distribution).index(param)]
        return param if distribution.size is None else distribution.value(distribution.index(param))

    def _extend(self, values: dict[str, Any], left: list[str]) -> Iterator[dict[str, Any]]:
        if not left:
            yield values
            return
        distribution = self.distributions[left[0]]
        if not distribution.is_on(values):
            yield from self._extend(values, left[1:])
            return
        for index in range(distribution.size or 0):
            yield from self._extend({**values, left[0]: distribution.value(index)}, left[1:])


def _labels(distribution: Distribution) -> list[Any]:
    """The choices as Optuna can store them: a list or a mapping becomes JSON text."""
    plain = str | int | float | None
    return [value if isinstance(value, plain) else json.dumps(value, sort_keys=True) for value in distribution.values]


def point_text(values: Mapping[str, Any]) -> str:
    """A name for a point: equal for equal points only."""
    return json.dumps(values, sort_keys=True)


def values_text(values: Mapping[str, Any]) -> str:
    """A point of the space as the overrides of a command line: "model.layers=2 train.lr=0.001"."""
    return " ".join(f"{key}={_text(value)}" for key, value in sorted(values.items()))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value)  # null and true, as in YAML
