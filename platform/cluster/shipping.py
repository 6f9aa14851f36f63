"""Copies the files that a command names into a job's working folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from starlab.experiments.catalog import read_experiment
from starlab.platform.errors import UserError


def ship_files(arguments: Sequence[str], files: Sequence[Path], folder: Path) -> list[str]:
    """Copy the files, and the experiments that the arguments name by path, below `folder`.

    Returns:
        The arguments with the paths that the files have there.

    Raises:
        UserError: a file is missing, or two have one name.
        SpecError: an experiment file cannot be read.
    """
    for file in files:
        if not file.is_file():
            raise UserError(f"no file {file} to ship")
        _ship(str(file.absolute()), folder)
    shipped = []
    for argument in arguments:
        if argument.endswith((".yaml", ".yml")) and "=" not in argument:
            base = str(read_experiment(argument).get("base", ""))
            if base.endswith((".yaml", ".yml")) and _ship(base, folder) != base:
                raise UserError(f"{argument}: its base {base} can be shipped only from below this folder; copy it here")
            argument = _ship(argument, folder)
        shipped.append(argument)
    return shipped


def _ship(name: str, folder: Path) -> str:
    """Copy a file to the same relative path below `folder`, or to its top if it is outside this folder. Returns the path."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        name = path.name
    target = folder / name
    if target.exists() and target.read_bytes() != path.read_bytes():
        raise UserError(f"{path}: another file to ship has that name; rename one of them")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    return name
