"""Distributions: which values a search may give a key of a spec, and which keys it may vary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

Kind: TypeAlias = Literal["int", "float", "log", "choice"]
_FORM = "write {int: [low, high]}, {float: [low, high]}, {log: [low, high]} or {choice: [values]}"

_DATA_KEYS = frozenset({"frames", "size", "augment", "crop_area", "crop_aspect", "flip", "color_jitter", "oversample"})
"""Keys of `data` that a trial varies: how a clip becomes a batch."""
_WHY_NOT = {
    "data.store": "it says where the data are, which changes no result",
    "data.source": "it says where the data are, which changes no result",
    "data.decode": "it says where clips are decoded, which changes no result",
    "data.select": "trials are compared on the validation part",
    "data.test_views": "only the test part is seen through it, and trials are compared on the validation part",
    "data.test_crop": "only the test part is seen through it, and trials are compared on the validation part",
    "data.max_unreadable_fraction": "it says when a run stops, which changes no result",
    "train.profile": "it is not part of a run's identity, so all of its trials would be one run",
    "model.weights_path": "it says where a file is, which changes no result",
}


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
        for index, value in enumerate(values):
            if value in values[:index]:  # 1, 1.0 and true are equal, and a sampler takes them for one
                raise ValueError(f"{values[values.index(value)]!r} and {value!r} are one value; remove one of them")
        return cls(cast(Kind, kind), tuple(values))

    def to_yaml(self) -> dict[str, list[Any]]:
        """Return the form that `from_yaml` reads."""
        return {self.kind: list(self.values)}

    @property
    def size(self) -> int | None:
        """The number of values; None for "float" and "log"."""
        if self.kind == "choice":
            return len(self.values)
        return int(self.values[1] - self.values[0] + 1) if self.kind == "int" else None

    @property
    def edges(self) -> tuple[Any, ...]:
        """The values to check before a search starts: both ends of a range, or every choice."""
        return self.values


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
    numeric = int if kind == "int" else int | float
    if not all(isinstance(value, numeric) and not isinstance(value, bool) for value in values):
        return False
    low, high = values
    return bool(low < high and (kind != "log" or low > 0))
