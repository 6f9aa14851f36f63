"""The packaged experiments, and the strict reading of their YAML: numbers as in YAML 1.2, and no key twice."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import yaml


class SpecError(ValueError):
    """A spec cannot be used; the message names the file, the key, the value and the fix."""


def experiment_names() -> list[str]:
    """The packaged experiments, sorted."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.yaml"))


def describe(name: str) -> str:
    """The first comment line of a packaged experiment."""
    first = (Path(__file__).parent / f"{name}.yaml").read_text().partition("\n")[0]
    return first.removeprefix("#").strip()


def read_experiment(experiment: str) -> dict[str, Any]:
    """The mapping in a packaged experiment (by name) or in a YAML file (a path that ends in .yaml or .yml).

    A file without a `name` takes its file name.

    Raises:
        SpecError: no such experiment or file, or not a mapping.
    """
    if experiment.endswith((".yaml", ".yml")):
        path = Path(experiment)
        if not path.is_file():
            raise SpecError(f"no file {experiment}; packaged experiments go by name: {', '.join(experiment_names())}")
    else:
        names = experiment_names()
        if experiment not in names:
            near = difflib.get_close_matches(experiment, names, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise SpecError(
                f"unknown experiment '{experiment}'; {hint}Packaged: {', '.join(names)}. Your own: a path that ends in .yaml"
            )
        path = Path(__file__).parent / f"{experiment}.yaml"
    try:
        raw = yaml.load(path.read_text(), Loader=_StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{experiment}: not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise SpecError(f"{experiment}: must be a mapping of sections, not {type(raw).__name__}")
    raw.setdefault("name", path.stem)
    return raw


def parse_value(text: str, where: str) -> Any:
    """Read the value of an override as YAML, so that 2, 1e-3, null, [1, 2] and FF are what they look like.

    Raises:
        SpecError: not YAML.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise SpecError(f"override {where!r}: the value is not valid YAML: {error}") from None


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number, only true/false as booleans, and refuses a key given twice."""

    # A copy: the parent's table is shared by every YAML reader of the process.
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [
            (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key given twice: one of the two values would be lost silently."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false|True|False)$"), list("tTfF"))
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\.\d[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)
