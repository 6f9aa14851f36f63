"""One experiment, one spec: a short YAML file becomes frozen, typed objects, or an error that says how to fix it.

Each section is the frozen dataclass of the room that owns it. A file with a `base` is that experiment with the file's own
keys laid over it (overrides.py); a `space` makes it a search (space.py).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from starlab.experiments.catalog import SpecError, parse_value
from starlab.experiments.credentials import without_password
from starlab.experiments.identity import run_id
from starlab.experiments.overrides import flatten, read_layers, resolve_paths, set_key
from starlab.experiments.search_rules import check_search
from starlab.experiments.sections import ResourcesConfig, SearchConfig, TrackingConfig, TrainConfig
from starlab.experiments.space import Distribution, in_order
from starlab.experiments.strict import read_section, refuse_unknown_keys
from starlab.models.config import StarConfig
from starlab.pipelines.sources import DataConfig

__all__ = ["SearchSpec", "Spec", "SpecError", "flatten", "load_search", "load_spec", "override_spec", "spec_from_dict"]


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
        if self.resources.max_workers > self.train.global_batch:
            raise ValueError(
                f"resources.workers is {self.resources.max_workers}, above train.global_batch, {self.train.global_batch}: "
                "each worker needs a clip per step; use fewer workers or a larger batch"
            )
        if self.train.accumulate > self.train.global_batch // self.resources.max_workers:
            raise ValueError(
                f"train.accumulate is {self.train.accumulate}, but a worker has only "
                f"{self.train.global_batch // self.resources.max_workers} clips per step (train.global_batch "
                f"{self.train.global_batch} over {self.resources.max_workers} resources.workers); use a smaller one"
            )
        if self.model.modality != "rgb" and not self.data.has_joints():
            raise ValueError(
                f"model.modality is {self.model.modality}, but {self.data.store} has no joints: use model.modality=rgb, which "
                "needs none, or give joints (data.estimated_joints and data.estimated_skeleton, or joints in data.yaml)"
            )
        if self.model.pose == "estimated" and self.data.estimated_joints is None:
            raise ValueError(
                "model.pose is estimated, but there are no joints of an estimator: name their file with data.estimated_joints "
                "and data.estimated_skeleton (starlab data pose writes one), or use model.pose=learned"
            )
        if self.model.pose == "learned" and self.train.mixup:
            raise ValueError(
                f"train.mixup is {self.train.mixup}, but the joints of two blended people are in two places, of which "
                "model.pose=learned would learn the middle; use train.mixup=0"
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

    def fixed_by_data(self) -> dict[str, int]:
        """The keys of `model` that the data decide."""
        return _fixed_by(self.data)

    def without_password(self) -> Spec:
        """The spec that the workers get: they never talk to the tracking server."""
        return spec_from_dict(self.to_dict(), self.name)

    def run_id(self, fingerprint: str) -> str:
        """Name + 8 hex digits over data, model and train; where the data are and where it computes do not matter."""
        return run_id(self.name, self.to_dict(), fingerprint)


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpec:
    """A base experiment and the space to search around it."""

    base: Spec
    space: Mapping[str, Distribution]
    """By dotted key, each behind the keys that its condition names."""
    search: SearchConfig

    def to_dict(self) -> dict[str, Any]:
        """Base, space and search in plain JSON types, in the form of the YAML file."""
        space = {key: distribution.to_yaml() for key, distribution in self.space.items()}
        plain: dict[str, Any] = json.loads(json.dumps({"space": space, "search": asdict(self.search)}))
        if self.search.storage is not None:
            plain["search"]["storage"] = without_password(self.search.storage)
        return self.base.to_dict() | plain

    def without_password(self) -> SearchSpec:
        """The same search without the passwords of the tracking server and of the storage."""
        storage = self.search.storage and without_password(self.search.storage)
        return replace(self, base=self.base.without_password(), search=replace(self.search, storage=storage))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of each point's runs, the base's own first."""
        return tuple(self.base.train.seed + index for index in range(self.search.seeds))

    @property
    def start_points(self) -> list[dict[str, Any]]:
        """The points to try first.

        Raises:
            ValueError: one is not in the space; says which key and why.
        """
        if self.search.start is None:
            own = self.point_of(self.base.to_dict())
            return [own] if own is not None else []
        return [self._start_point(start) for start in self.search.start]

    def point_of(self, resolved: Mapping[str, Any]) -> dict[str, Any] | None:
        """The point of the space at which a resolved spec stands, by its keys of the space; None where it is outside."""
        flat, point = flatten(resolved), dict[str, Any]()
        for key, distribution in self.space.items():
            if distribution.is_on(point):
                try:
                    point[key] = distribution.find(flat[key])
                except (KeyError, ValueError):
                    return None
        return point

    def edges(self) -> list[dict[str, Any]]:
        """The points to check before a search starts: each edge of each key, with what its condition needs."""
        return [self._with_parents({key: value}) for key, kind in self.space.items() for value in kind.edges]

    @property
    def longest_epochs(self) -> float:
        """Epochs of the longest trial."""
        epochs = self.space.get("train.epochs")
        return float(max(epochs.edges) if epochs else self.base.train.epochs)

    def spec_of(self, values: Mapping[str, Any]) -> Spec:
        """The experiment at one point of the space.

        Raises:
            SpecError: the point is not a valid experiment.
        """
        raw = self.base.to_dict()
        for key in self.base.fixed_by_data():  # decided again, because the space may vary data.frames
            del raw["model"][key]
        for key, value in values.items():
            set_key(raw, key, value)
        spec = spec_from_dict(raw, f"{self.base.name} at {dict(values)}")
        return replace(spec, tracking=self.base.tracking)  # with its password, which `to_dict` left out

    def _start_point(self, start: Mapping[str, Any]) -> dict[str, Any]:
        point, own = dict[str, Any](), flatten(self.base.to_dict())
        for key in start:
            if key not in self.space:
                raise ValueError(f"{key} is not a key of the space: {', '.join(self.space)}")
        for key, distribution in self.space.items():
            if distribution.is_on(point):
                try:
                    point[key] = distribution.find(start.get(key, own.get(key)))
                except ValueError as error:
                    raise ValueError(f"{key}{'' if key in start else ', which has the value of the base'}: {error}") from None
            elif key in start:
                raise ValueError(f"{key} has no value there: its condition does not hold")
        return point

    def _with_parents(self, values: dict[str, Any]) -> dict[str, Any]:
        for key in list(values):
            for parent, allowed in self.space[key].when.items():
                values = self._with_parents({parent: self.space[parent].find(allowed[0])}) | values
        return values


def load_spec(experiment: str, overrides: Sequence[str] = ()) -> Spec:
    """Read a packaged experiment by name or a YAML file by path, then lay dotted overrides over it.

    Args:
        experiment: "demo", or a path that ends in .yaml.
        overrides: e.g. ["train.epochs=2", "model.encoder=FF"]; values are YAML.

    Raises:
        SpecError: unknown experiment, unknown key, wrong type or a value out of its range.
    """
    raw, where = read_layers(experiment, overrides)
    if "rows" in raw:
        raise SpecError(f"{where}: 'rows' makes it an ablation; run it with: starlab ablate {experiment}")
    for key in ("space", "search"):
        if key in raw:
            raise SpecError(f"{where}: '{key}' makes it a search; run it with: starlab search {shlex.quote(experiment)}")
    return spec_from_dict(raw, where)


def load_search(experiment: str, overrides: Sequence[str] = ()) -> SearchSpec:
    """Read a search: a base experiment, a `space` and the `search` section.

    Raises:
        SpecError: as `load_spec`; also a space that names an unknown key or an unknown distribution.
    """
    raw, where = read_layers(experiment, overrides)
    space, search = raw.pop("space", None), raw.pop("search", {})
    if not isinstance(space, dict) or not space:
        raise SpecError(
            f"{where}: no 'space', so there is nothing to search; run it with: starlab train {shlex.quote(experiment)}"
        )
    distributions = {key: _distribution(key, form, where) for key, form in space.items()}
    try:
        keys = in_order(distributions)
    except ValueError as error:
        raise SpecError(f"{where}: {error}") from None
    spec = SearchSpec(
        base=spec_from_dict(raw, where),
        space={key: distributions[key] for key in keys},
        search=read_section(SearchConfig, search, "search", where),
    )
    check_search(spec, where)
    return spec


def spec_from_dict(raw: Mapping[str, Any], where: str) -> Spec:
    """Check a mapping of sections and make it a `Spec`; what the data fix (classes, joints, frames) may be left out.

    Raises:
        SpecError: see `load_spec`.
    """
    refuse_unknown_keys(Spec, raw, "", where)
    merged = {section: dict(value) if isinstance(value, Mapping) else value for section, value in raw.items()}
    if "data" not in merged or "model" not in merged:
        missing = [section for section in ("data", "model") if section not in merged]
        raise SpecError(f"{where}: section '{missing[0]}' is missing")
    data = read_section(DataConfig, merged["data"], "data", where)
    if not isinstance(merged["model"], dict):
        raise SpecError(f"{where}: 'model' must be a mapping of keys, not {merged['model']!r}")
    for key, value in _fixed_by(data).items():
        if merged["model"].setdefault(key, value) != value:
            raise SpecError(f"{where}: model.{key} is {merged['model'][key]!r}, but the data fix it at {value}; remove the key")
    if data.estimated_joints is not None and merged["model"].get("pose", "annotated") == "annotated":
        merged["model"]["pose"] = "estimated"  # the resolved spec says where the joints come from
    return read_section(Spec, merged, "", where)


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
            raise SpecError(f"{where}: override {override!r}: only {', '.join(allowed)} can be changed for an existing run")
        set_key(raw, key, parse_value(value, override))
    resolve_paths(raw)
    return replace(spec_from_dict(raw, where), tracking=spec.tracking)


def _fixed_by(data: DataConfig) -> dict[str, int]:
    facts = data.facts()
    return {
        "num_classes": len(facts.classes),
        "num_joints": len(facts.skeleton.joints),
        "max_bodies": facts.max_bodies,
        "frames": data.frames,
    }


def _distribution(key: str, form: object, where: str) -> Distribution:
    try:
        return Distribution.from_yaml(form)
    except ValueError as error:
        raise SpecError(f"{where}: space.{key} is {form!r}; {error}") from None
