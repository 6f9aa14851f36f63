"""Distributions: which values a search may give a key of a spec, on which condition, and which keys it may vary."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, TypeAlias, cast, get_args

Kind: TypeAlias = Literal["int", "float", "log", "log_int", "choice"]
_FORM = (
    "write {int: [low, high]}, {float: [low, high]}, {log: [low, high]}, {log_int: [low, high]} or {choice: [values]}; "
    "int and float take a step, and all take a condition: {float: [0.8, 0.95], step: 0.05, when: {train.optimizer: sgd}}"
)

_DATA_KEYS = frozenset(
    {"frames", "size", "augment", "crop_area", "crop_aspect", "flip", "color_jitter", "rotation_degrees", "person_crop"}
    | {"oversample", "train_fraction"}
)
"""Keys of `data` that a trial varies: how a clip becomes a batch, and how many of the training clips there are."""
_WHY_NOT = {
    "data.store": "it says where the data are, which changes no result",
    "data.source": "it says where the data are, which changes no result",
    "data.decode": "it says where clips are decoded, which changes no result",
    "data.select": "trials are compared on the validation part",
    "data.test_views": "only the test part is seen through it, and trials are compared on the validation part",
    "data.test_crop": "only the test part is seen through it, and trials are compared on the validation part",
    "data.max_unreadable_fraction": "it says when a run stops, which changes no result",
    "train.init_from": "a search has one model that its trials start from; the rows of an ablation may have several",
    "train.init_digest": "a search has one model that its trials start from; the rows of an ablation may have several",
    "train.profile": "it is not part of a run's identity, so all of its trials would be one run",
    "model.weights_path": "it says where a file is, which changes no result",
}


@dataclass(frozen=True, slots=True)
class Distribution:
    """The values that a search may give one key."""

    kind: Kind
    """"int" and "float" are uniform over [low, high], both ends included; "log" and "log_int" are a float and an int, uniform
    in their logarithm."""
    values: tuple[Any, ...]
    """(low, high), or for "choice" the values."""
    step: int | float | None = None
    """Distance between two values of "int" and "float", counted from low; None is 1 for "int" and any float for "float"."""
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Keys of the space and the values that each must have for this key to be searched. Otherwise it keeps the base's value."""

    @classmethod
    def from_yaml(cls, form: object) -> Distribution:
        """Read the form of the YAML file: {int: [1, 4]}, {choice: [FF, FZ]}, {float: [0, 0.5], step: 0.1}.

        Raises:
            ValueError: the form is another, low is not below high, or the step does not lead from low to high.
        """
        kinds = [key for key in form if key not in ("step", "when")] if isinstance(form, Mapping) else []
        if not isinstance(form, Mapping) or len(kinds) != 1 or kinds[0] not in get_args(Kind):
            raise ValueError(_FORM)
        kind, values, step, when = kinds[0], form[kinds[0]], form.get("step"), form.get("when", {})
        if not isinstance(values, list) or not values or (kind != "choice" and len(values) != 2):
            raise ValueError(_FORM)
        if kind != "choice" and not _is_range(kind, values):
            raise ValueError("low must be below high (and above 0 for log and log_int, whole for int and log_int)")
        for index, value in enumerate(values):
            if value in values[:index]:  # 1, 1.0 and true are equal, and a sampler takes them for one
                raise ValueError(f"{values[values.index(value)]!r} and {value!r} are one value; remove one of them")
        if step is not None:
            _check_step(kind, values, step)
        if not isinstance(when, Mapping) or ("when" in form and not when):
            raise ValueError("write when: {key of the space: value, or [values]}")
        conditions = {str(key): tuple(value) if isinstance(value, list) else (value,) for key, value in when.items()}
        return cls(cast(Kind, kind), tuple(values), step, conditions)

    def to_yaml(self) -> dict[str, Any]:
        """Return the form that `from_yaml` reads."""
        form: dict[str, Any] = {self.kind: list(self.values)}
        if self.step is not None:
            form["step"] = self.step
        if self.when:
            form["when"] = {key: values[0] if len(values) == 1 else list(values) for key, values in self.when.items()}
        return form

    @property
    def size(self) -> int | None:
        """The number of values; None for a range of floats without a step."""
        if self.kind == "choice":
            return len(self.values)
        if self.kind in ("int", "log_int") or self.step is not None:
            return int((_exact(self.values[1]) - _exact(self.values[0])) / _exact(self.step or 1)) + 1
        return None

    def value(self, index: int) -> Any:
        """The value at a position of a distribution that has a size, from 0."""
        if self.kind == "choice":
            return self.values[index]
        exact = _exact(self.values[0]) + index * _exact(self.step or 1)
        return float(exact) if self.kind == "float" else int(exact)

    def index(self, value: Any) -> int:
        """The position of the value nearest to `value`, in a distribution that has a size.

        Raises:
            ValueError: a choice has no such value.
        """
        if self.kind == "choice":
            return next(index for index, choice in enumerate(self.values) if _equal(choice, value))
        return round((_exact(value) - _exact(self.values[0])) / _exact(self.step or 1))

    def find(self, value: Any) -> Any:
        """The value of this distribution that equals `value`, in the distribution's own type.

        Raises:
            ValueError: there is none.
        """
        if self.kind == "choice":
            for choice in self.values:
                if _equal(choice, value):
                    return choice
        elif isinstance(value, int | float) and not isinstance(value, bool) and self.values[0] <= value <= self.values[1]:
            if self.size is None:
                return float(value)
            if _equal(nearest := self.value(self.index(value)), value):
                return nearest
        raise ValueError(f"{value!r} is not in {self.to_yaml()}")

    @property
    def edges(self) -> tuple[Any, ...]:
        """The values to check before a search starts: both ends of a range, or every choice."""
        return self.values

    def is_on(self, values: Mapping[str, Any]) -> bool:
        """Whether a point with these values has a value of this key too."""
        return all(
            key in values and any(_equal(wanted, values[key]) for wanted in allowed) for key, allowed in self.when.items()
        )


def in_order(space: Mapping[str, Distribution]) -> list[str]:
    """The keys of a space, each behind those that its condition names.

    Raises:
        ValueError: a condition names a key outside the space or a value that the key never has, or conditions form a circle.
    """
    for key, distribution in space.items():
        for parent, allowed in distribution.when.items():
            _check_condition(space, key, parent, allowed)
    ordered: list[str] = []
    while len(ordered) < len(space):
        ready = [key for key in space if key not in ordered and all(parent in ordered for parent in space[key].when)]
        if not ready:
            circle = " → ".join(_circle(space, [key for key in space if key not in ordered]))
            raise ValueError(f"the conditions of the space form a circle: {circle}; remove one `when`")
        ordered += ready
    return ordered


def why_not_searchable(key: str) -> str | None:
    """Why a search cannot vary this dotted key of a spec; None where it can."""
    section, _, rest = key.partition(".")
    if key in _WHY_NOT:
        return _WHY_NOT[key]
    if section == "data" and rest not in _DATA_KEYS:
        return "it decides which clips there are, and trials are compared on the same ones; start a search for each value"
    if section not in ("data", "model", "train"):
        return "it says where a run computes and is recorded, which changes no result"
    return None


def _is_range(kind: Kind, values: list[Any]) -> bool:
    numeric = int if kind in ("int", "log_int") else int | float
    if not all(isinstance(value, numeric) and not isinstance(value, bool) for value in values):
        return False
    low, high = values
    return bool(low < high and (kind not in ("log", "log_int") or low > 0))


def _check_step(kind: Kind, values: list[Any], step: object) -> None:
    if kind not in ("int", "float"):
        raise ValueError(f"{kind} takes no step; only int and float do")
    if isinstance(step, bool) or not isinstance(step, int if kind == "int" else int | float) or step <= 0:
        raise ValueError(f"step is {step!r}; it must be above 0{' and whole' if kind == 'int' else ''}")
    if (_exact(values[1]) - _exact(values[0])) % _exact(step):
        raise ValueError(f"steps of {step:g} do not lead from {values[0]} to {values[1]}; change the step or one end")


def _check_condition(space: Mapping[str, Distribution], key: str, parent: str, allowed: tuple[Any, ...]) -> None:
    if parent not in space:
        near = difflib.get_close_matches(parent, [other for other in space if other != key], n=1, cutoff=0.6)
        hint = f"did you mean '{near[0]}'?" if near else f"keys of the space: {', '.join(space)}"
        raise ValueError(f"space.{key} has a condition on '{parent}', which is not a key of the space; {hint}")
    if space[parent].size is None:
        raise ValueError(f"space.{key} has a condition on '{parent}', a range of floats; give that key a step or choices")
    for value in allowed:
        try:
            space[parent].find(value)
        except ValueError:
            raise ValueError(
                f"space.{key} has the condition {parent} = {value!r}, which never holds: space.{parent} is "
                f"{space[parent].to_yaml()}"
            ) from None


def _circle(space: Mapping[str, Distribution], left: list[str]) -> list[str]:
    """The keys of one circle among those that could not be ordered, the first one again at its end."""
    path = [left[0]]
    while path[-1] not in path[:-1]:
        path.append(next(parent for parent in space[path[-1]].when if parent in left))
    return path[path.index(path[-1]) :]


def _exact(number: int | float) -> Decimal:
    return Decimal(str(number))


def _equal(one: Any, other: Any) -> bool:
    """Equality in which true is not 1, and a list from a JSON file equals a tuple."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)
