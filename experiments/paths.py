"""Makes the paths of a spec absolute where they are typed: on a worker's machine "data" and "~/data" are other folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

PATH_KEYS = ("data.store", "data.estimated_joints", "resources.checkpoints")
"""Keys of a spec that hold a path or an address, and are no part of a run's identity."""
_TYPED_KEYS = (*PATH_KEYS, "model.weights_path")


def absolute(path: str) -> str:
    """The absolute form of a path that may be relative or begin with "~"; an address such as s3://bucket/x stays as it is."""
    return path if "://" in path else os.path.normpath(Path(path).expanduser().absolute())


def resolve_overrides(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command with the paths in overrides such as data.store=~/data made absolute."""
    resolved = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        is_path = key in _TYPED_KEYS and value not in ("", "null", "~")
        resolved.append(f"{key}={absolute(value)}" if equals and is_path else argument)
    return resolved
