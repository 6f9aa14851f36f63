"""Distributions: which values a search may give a key of a spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

Kind: TypeAlias = Literal["int", "float", "log", "choice"]
_FORM = "write {int: [low, high]}, {float: [low, high]}, {log: [low, high]} or {choice: [values]}"


@dataclass(frozen=True, slots=True)
class Distribution:
    """The values that a search may give one key."""

    kind: Kind
    """"int" and "float" are uniform over [low, high], both ends included; "log" is a float, uniform in its logarithm."""
    values: tuple[Any, ...]
    """(low, high), or for "choice" the values."""

    @classmethod
    def from_yaml(cls, form: object) -> Distribution:
        """Read the form of the YAML file: {int: [1, 4]}, {choice: [FF, FZ]}.

        Raises:
            ValueError: the form is another, or low is not below high.
        """
        if not isinstance(form, Mapping) or len(form) != 1 or next(iter(form)) not in get_args(Kind):
            raise ValueError(_FORM)
        kind, values = next(iter(form.items()))
        if not isinstance(values, list) or not values or (kind != "choice" and len(values) != 2):
            raise ValueError(_FORM)
        if kind != "choice" and not _is_range(kind, values):
            raise ValueError("low must be below high (and above 0 for log, whole for int)")
        return cls(cast(Kind, kind), tuple(values))

    def to_yaml(self) -> dict[str, list[Any]]:
        """Return the form that `from_yaml` reads."""
        return {self.kind: list(self.values)}

    @property
    def edges(self) -> tuple[Any, ...]:
        """The values to check before a search starts: both ends of a range, or every choice."""
        return self.values


def _is_range(kind: Kind, values: list[Any]) -> bool:
    numeric = int if kind == "int" else int | float
    if not all(isinstance(value, numeric) and not isinstance(value, bool) for value in values):
        return False
    low, high = values
    return bool(low < high and (kind != "log" or low > 0))
