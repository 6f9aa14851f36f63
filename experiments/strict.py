"""Strict reading: a mapping becomes a frozen dataclass, or an error that names the key, the value and the fix."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, cast, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from starlab.experiments.catalog import SpecError

T = TypeVar("T")


def read_section(kind: type[T], raw: object, path: str, where: str) -> T:
    """Read `raw` as a `kind`: no unknown key, no silent conversion.

    Args:
        path: dotted name of the section; "" is the whole spec.
        where: what the error names as the source, usually the file.

    Raises:
        SpecError: an unknown key, a wrong type or a value out of its range.
    """
    refuse_unknown_keys(kind, raw, path, where)
    try:
        # Through JSON, where strict mode still lets a list be a tuple.
        value: T = _adapter(cast("type", kind)).validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        # Where a value may be of several kinds, pydantic puts the kind it tried into the place: literal['balanced'], dict[…].
        place = [str(part) for part in (*path.split("."), *first["loc"]) if part not in ("", "int") and "[" not in str(part)]
        key = ".".join(place)
        if first["type"] == "value_error":  # a config's own check: it names the key itself
            message = str(first["ctx"]["error"])
            message = message.replace("StarConfig.frames", "data.frames").replace("StarConfig.", "model.")  # fixed by the data
            raise SpecError(f"{where}: {message}") from None
        if first["type"] == "missing":
            raise SpecError(f"{where}: {key} is missing") from None
        message = first["msg"].replace("Input should be", "must be")
        raise SpecError(f"{where}: {key} is {first['input']!r}; it {message}") from None
    except TypeError as error:
        raise SpecError(f"{where}: {path or 'the spec'} holds a value that is not plain YAML: {error}") from None
    return value


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    """Make the reader of a kind of section, once: it takes 5 ms, and a search reads the specs of its trials many times."""
    return TypeAdapter(kind)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def refuse_unknown_keys(kind: type, raw: object, path: str, where: str) -> None:
    """Check that every key of `raw`, nested sections included, is a field of `kind`.

    Raises:
        SpecError: `raw` is not a mapping, or has an unknown key; names the nearest known one.
    """
    if not isinstance(raw, Mapping):
        raise SpecError(f"{where}: '{path or 'the spec'}' must be a mapping of keys, not {raw!r}")
    hints = _hints(kind)
    known = [field.name for field in fields(kind)]
    for key, value in raw.items():
        dotted = f"{path}.{key}" if path else str(key)
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            prefix = f"{path}." if path else ""
            hint = f"did you mean '{prefix}{near[0]}'?" if near else f"known keys: {', '.join(known)}"
            raise SpecError(f"{where}: unknown key '{dotted}'; {hint}")
        if is_dataclass(hints[key]) and isinstance(hints[key], type):
            refuse_unknown_keys(hints[key], value, dotted, where)
        elif isinstance(value, Mapping):  # of a key that takes a number or a mapping, such as resources.workers
            for part in get_args(hints[key]):
                if isinstance(part, type) and is_dataclass(part):
                    read_section(part, value, dotted, where)
