"""How a spec is put together before it is checked: a base, the file's keys over it, and dotted overrides over both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlab.experiments.catalog import SpecError, parse_value, read_experiment
from starlab.experiments.paths import PATH_KEYS, absolute


def read_layers(experiment: str, overrides: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Merge an experiment with its base and the overrides. Returns the mapping, and the file's name for messages.

    Raises:
        SpecError: no such experiment, not valid YAML, a base with a base, or an override without "=".
    """
    raw = read_experiment(experiment)
    where = experiment if experiment.endswith(".yaml") else f"{experiment}.yaml"
    if "base" in raw:
        base = read_experiment(str(raw.pop("base")))
        if "base" in base:
            raise SpecError(f"{where}: its base has a base too, and one level is the limit; copy the keys that you need")
        raw = _merge(base, raw)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise SpecError(f"override {override!r}: write section.key=value, e.g. train.epochs=2")
        section, _, dimension = key.partition(".")
        if section == "space" and dimension:  # a dimension's own name has dots
            raw["space"] = {**(raw.get("space") or {}), dimension: parse_value(value, override)}
        else:
            set_key(raw, key, parse_value(value, override))
    resolve_paths(raw)
    return raw, where


def resolve_paths(raw: dict[str, Any]) -> None:
    """Make the paths of a spec's mapping absolute in place: they mean folders seen from where they were typed."""
    for dotted in PATH_KEYS:
        section, _, key = dotted.partition(".")
        below = raw.get(section)
        if isinstance(below, Mapping) and isinstance(value := below.get(key), str) and value:
            set_key(raw, dotted, absolute(value))


def set_key(raw: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a dotted key of nested mappings in place; copies the mappings on its way, and makes those that are missing."""
    *sections, key = dotted.split(".")
    for section in sections:
        below = raw.get(section)
        raw[section] = dict(below) if isinstance(below, Mapping) else {}
        raw = raw[section]
    raw[key] = value


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys: {"a": {"b": 1}} → {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
