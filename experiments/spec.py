"""One experiment, one spec: a short YAML file becomes frozen, typed objects, or an error that says how to mend it.

Each section is the frozen dataclass of the room that owns it. A file with a `base` is that experiment with the file's own
keys laid over it; a `space` makes it a search.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from starlab.experiments.catalog import SpecError, parse_value, read_experiment
from starlab.experiments.credentials import without_password
from starlab.experiments.paths import PATH_KEYS, absolute
from starlab.experiments.sections import ResourcesConfig, SearchConfig, TrackingConfig, TrainConfig
from starlab.models.star import StarConfig
from starlab.pipelines.sources import DataConfig

__all__ = ["SearchSpec", "Spec", "SpecError", "flatten", "load_search", "load_spec", "override_spec", "spec_from_dict"]

T = TypeVar("T")
_DISTRIBUTIONS = ("int", "float", "log", "choice")
_ADDED_LATER: tuple[tuple[str, str, object], ...] = (("train", "select_by", "top1"),)
"""Keys (section, key, default) that are no part of a run's identity at their default: the runs of before keep their ids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """Everything a run needs."""

    name: str
    data: DataConfig
    model: StarConfig
    train: TrainConfig = TrainConfig()
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()

    def __post_init__(self) -> None:
        fine = all(c.isascii() and (c.isalnum() or c in "_.-") for c in self.name) and self.name[:1].isalnum()
        if not fine:
            raise ValueError(f"name is {self.name!r}; it names folders, so use letters, digits, '_', '.' and '-'")
        if self.resources.workers > self.train.global_batch:
            raise ValueError(
                f"resources.workers is {self.resources.workers}, above train.global_batch, {self.train.global_batch}: "
                "each worker needs a clip per step; use fewer workers or a larger batch"
            )
        if self.train.accumulate > self.train.global_batch // self.resources.workers:
            raise ValueError(
                f"train.accumulate is {self.train.accumulate}, but a worker has only "
                f"{self.train.global_batch // self.resources.workers} clips per step (train.global_batch "
                f"{self.train.global_batch} over {self.resources.workers} resources.workers); use a smaller one"
            )
        if self.model.batch_norm == "sync" and not self.resources.gpus_per_worker:
            raise ValueError(
                "model.batch_norm is 'sync', which needs GPUs, and resources.gpus_per_worker is 0; "
                "use model.batch_norm=frozen or train, or resources.gpus_per_worker=1"
            )

    def to_dict(self) -> dict[str, Any]:
        """The resolved spec in plain JSON types, without passwords; `spec_from_dict` reads it back."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        if self.tracking.uri is not None:
            plain["tracking"]["uri"] = without_password(self.tracking.uri)
        return plain

    def without_password(self) -> Spec:
        """The spec as the workers get it: they never talk to the tracking server."""
        return spec_from_dict(self.to_dict(), self.name)

    def run_id(self, fingerprint: str) -> str:
        """Name + 8 hex digits over data, model and train: where the data lie and where it computes do not matter."""
        resolved = self.to_dict()
        for place in ("store", "source", "decode", "estimated_joints"):
            del resolved["data"][place]
        del resolved["train"]["profile"]
        resolved["data"]["fingerprint"] = fingerprint
        identity = {section: resolved[section] for section in ("data", "model", "train")}
        for section, key, default in _ADDED_LATER:
            if identity[section].get(key) == default:
                del identity[section][key]
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpec:
    """A base experiment and the space to search around it."""

    base: Spec
    space: Mapping[str, Mapping[str, Any]]
    """Dotted key → one of {int: [low, high]}, {float: [low, high]}, {log: [low, high]}, {choice: [values]}."""
    search: SearchConfig

    def to_dict(self) -> dict[str, Any]:
        """Base, space and search in plain JSON types, in the form of the YAML file."""
        plain: dict[str, Any] = json.loads(json.dumps({"space": dict(self.space), "search": asdict(self.search)}))
        return self.base.to_dict() | plain

    def spec_of(self, values: Mapping[str, Any]) -> Spec:
        """The experiment at one point of the space.

        Raises:
            SpecError: the point is not a valid experiment.
        """
        raw = self.base.to_dict()
        for key, value in values.items():
            _put(raw, key, value)
        spec = spec_from_dict(raw, f"{self.base.name} at {dict(values)}")
        return replace(spec, tracking=self.base.tracking)  # with its password, which `to_dict` left out


def load_spec(experiment: str, overrides: Sequence[str] = ()) -> Spec:
    """Read a packaged experiment by name or a YAML file by path, then lay dotted overrides over it.

    Args:
        experiment: "demo", or a path that ends in .yaml.
        overrides: e.g. ["train.epochs=2", "model.encoder=FF"]; values are YAML.

    Raises:
        SpecError: unknown experiment, unknown key, wrong type or a value out of its range.
    """
    raw, where = _gather(experiment, overrides)
    for key in ("space", "search"):
        if key in raw:
            raise SpecError(f"{where}: '{key}' makes it a search; run it with: starlab search {experiment}")
    return spec_from_dict(raw, where)


def load_search(experiment: str, overrides: Sequence[str] = ()) -> SearchSpec:
    """Read a search: a base experiment, a `space` and the `search` section.

    Raises:
        SpecError: as `load_spec`; also a space that names an unknown key or an unknown distribution.
    """
    raw, where = _gather(experiment, overrides)
    space, search = raw.pop("space", None), raw.pop("search", {})
    if not isinstance(space, dict) or not space:
        raise SpecError(f"{where}: no 'space', so there is nothing to search; run it with: starlab train {experiment}")
    base = spec_from_dict(raw, where)
    spec = SearchSpec(base=base, space=space, search=_section(SearchConfig, search, "search", where))
    for key, distribution in space.items():
        for value in _probe(key, distribution, where):
            try:
                spec.spec_of({key: value})
            except SpecError as error:
                raise SpecError(f"{where}: space.{key} reaches {value!r}, which is no experiment: {error}") from None
    return spec


def spec_from_dict(raw: Mapping[str, Any], where: str) -> Spec:
    """Check a mapping of sections and make it a `Spec`; what the data fix (classes, joints, frames) need not be said.

    Raises:
        SpecError: see `load_spec`.
    """
    _refuse_unknown(Spec, raw, "", where)
    merged = {section: dict(value) if isinstance(value, Mapping) else value for section, value in raw.items()}
    if "data" not in merged or "model" not in merged:
        missing = [section for section in ("data", "model") if section not in merged]
        raise SpecError(f"{where}: section '{missing[0]}' is missing")
    data = _section(DataConfig, merged["data"], "data", where)
    facts = data.facts()
    fixed = {
        "num_classes": len(facts.classes),
        "num_joints": len(facts.skeleton.joints),
        "max_bodies": facts.max_bodies,
        "frames": data.frames,
    }
    if not isinstance(merged["model"], dict):
        raise SpecError(f"{where}: 'model' must be a mapping of keys, not {merged['model']!r}")
    for key, value in fixed.items():
        if merged["model"].setdefault(key, value) != value:
            raise SpecError(f"{where}: model.{key} is {merged['model'][key]!r}, but the data fix it at {value}; remove the key")
    return _section(Spec, merged, "", where)


def override_spec(spec: Spec, overrides: Sequence[str], allowed: Sequence[str], where: str) -> Spec:
    """Lay dotted overrides over a spec that is resolved already, e.g. a run's stored one.

    Args:
        allowed: the keys, or sections, that may be changed: ["data.store", "resources"].

    Raises:
        SpecError: as `load_spec`; also another key.
    """
    raw = spec.to_dict()
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not any(key == name or key.startswith(f"{name}.") for name in allowed):
            raise SpecError(f"{where}: override {override!r}: only {', '.join(allowed)} can be changed of a run that is there")
        _put(raw, key, parse_value(value, override))
    _resolve_paths(raw)
    return replace(spec_from_dict(raw, where), tracking=spec.tracking)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys: {"a": {"b": 1}} → {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _gather(experiment: str, overrides: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The file's mapping over its base's, with the overrides laid on."""
    raw = read_experiment(experiment)
    where = experiment if experiment.endswith(".yaml") else f"{experiment}.yaml"
    if "base" in raw:
        base = read_experiment(str(raw.pop("base")))
        if "base" in base:
            raise SpecError(f"{where}: its base has a base of its own; one level is the limit")
        raw = _merge(base, raw)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise SpecError(f"override {override!r}: write section.key=value, e.g. train.epochs=2")
        section, _, dimension = key.partition(".")
        if section == "space" and dimension:  # a dimension's own name has dots
            raw["space"] = {**(raw.get("space") or {}), dimension: parse_value(value, override)}
        else:
            _put(raw, key, parse_value(value, override))
    _resolve_paths(raw)
    return raw, where


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _put(raw: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        below = raw.get(section)
        raw[section] = dict(below) if isinstance(below, Mapping) else {}
        raw = raw[section]
    raw[key] = value


def _resolve_paths(raw: dict[str, Any]) -> None:
    for dotted in PATH_KEYS:
        section, _, key = dotted.partition(".")
        below = raw.get(section)
        if isinstance(below, Mapping) and isinstance(value := below.get(key), str) and value:
            _put(raw, dotted, absolute(value))


def _section(kind: type[T], raw: object, path: str, where: str) -> T:
    """`raw` as a `kind`, strictly: no unknown key, no silent conversion."""
    _refuse_unknown(kind, raw, path, where)
    try:
        # Through JSON, where strict mode still lets a list be a tuple.
        return TypeAdapter(kind).validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        # Where a value may be of several kinds, pydantic puts the kind it tried into the place: literal['balanced'], dict[…].
        place = [str(part) for part in (*path.split("."), *first["loc"]) if part != "" and "[" not in str(part)]
        key = ".".join(place)
        if first["type"] == "value_error":  # a config's own check: it names the key itself
            said = str(first["ctx"]["error"])
            said = said.replace("StarConfig.frames", "data.frames").replace("StarConfig.", "model.")  # the data fix the frames
            raise SpecError(f"{where}: {said}") from None
        if first["type"] == "missing":
            raise SpecError(f"{where}: {key} is missing") from None
        said = first["msg"].replace("Input should be", "must be")
        raise SpecError(f"{where}: {key} is {first['input']!r}; it {said}") from None
    except TypeError as error:
        raise SpecError(f"{where}: {path or 'the spec'} holds a value that is no plain YAML: {error}") from None


def _refuse_unknown(kind: type, raw: object, path: str, where: str) -> None:
    if not isinstance(raw, Mapping):
        raise SpecError(f"{where}: '{path or 'the spec'}' must be a mapping of keys, not {raw!r}")
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind)]
    for key, value in raw.items():
        dotted = f"{path}.{key}" if path else str(key)
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            prefix = f"{path}." if path else ""
            hint = f"did you mean '{prefix}{near[0]}'?" if near else f"known keys: {', '.join(known)}"
            raise SpecError(f"{where}: unknown key '{dotted}'; {hint}")
        if is_dataclass(hints[key]) and isinstance(hints[key], type):
            _refuse_unknown(hints[key], value, dotted, where)


def _probe(key: str, distribution: object, where: str) -> list[Any]:
    """The values at the edges of a distribution, after checking its form."""
    form = "write {int: [low, high]}, {float: [low, high]}, {log: [low, high]} or {choice: [values]}"
    if not isinstance(distribution, Mapping) or len(distribution) != 1 or next(iter(distribution)) not in _DISTRIBUTIONS:
        raise SpecError(f"{where}: space.{key} is {distribution!r}; {form}")
    kind, values = next(iter(distribution.items()))
    if not isinstance(values, list) or not values or (kind != "choice" and len(values) != 2):
        raise SpecError(f"{where}: space.{key} is {distribution!r}; {form}")
    if kind == "choice":
        return values
    low, high = values
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if (
        not numbers
        or not low < high
        or (kind == "log" and low <= 0)
        or (kind == "int" and not all(isinstance(v, int) for v in values))
    ):
        raise SpecError(
            f"{where}: space.{key} is {distribution!r}; low must be below high (and above 0 for log, whole for int)"
        )
    return [low, high]
