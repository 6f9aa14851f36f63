"""Describes a run for people who look at it in MLflow: its name, the command that makes it again, its source and its data."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlab.experiments.catalog import SpecError, experiment_names, parse_value
from starlab.experiments.credentials import HIDDEN
from starlab.experiments.spec import flatten, load_search, load_spec
from starlab.platform.runs.folder import SPEC, RunFolder
from starlab.platform.runs.records import FINGERPRINT, RunInfo
from starlab.platform.runs.search_records import AblationRecord

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

_FIXED_BY_DATA = ("model.num_classes", "model.num_joints", "model.max_bodies", "model.frames")
_PLACES = ("data.store", "data.source", "data.decode", "resources", "tracking", "train.profile")
"""Keys that do not change what a run learns. They are in its command and not in its name."""
_NAME_CHARACTERS = 120
_DIGESTS = ("train.init_digest", "train.extends")
_MAIN_PARTS = ("train", "validation", "test")


def run_name(folder: RunFolder) -> str:
    """Name a run by what makes it different.

    A trial is named by its point of the space, a cell of an ablation by its row and seed, any other run by its experiment and
    the settings that differ from the packaged experiment.
    """
    info, spec = folder.info, folder.read_json(SPEC)
    if info.parent:
        parent = RunFolder(Path(info.parent))
        cell = _cell(parent, info.run_id)
        if cell:
            return cell
        if space := parent.read_json(SPEC).get("space"):
            return _short({key: _at(spec, key) for key in space}) or info.run_id
    changes = _changes(spec)
    if changes is None:
        return info.run_id
    unnamed = ("space.", *_DIGESTS)
    named = {key: value for key, value in changes.items() if not _is_place(key) and not key.startswith(unnamed)}
    sections = sorted(named, key=lambda key: key.startswith("data."))  # what is compared most often stands first
    name = " ".join(filter(None, [info.experiment, _short({key: named[key] for key in sections})]))
    return name if len(name) <= _NAME_CHARACTERS else f"{name[: _NAME_CHARACTERS - 2]} …"


def command(folder: RunFolder) -> str:
    """Return the command line that makes this run again, quoted for a shell.

    It is given as the packaged experiment with overrides. For an experiment of the user's own, or a trial, it names the run's
    resolved spec.
    """
    info, spec = folder.info, folder.read_json(SPEC)
    verb = "search" if "space" in spec else "train"
    changes = None if info.parent else _changes(spec)
    if changes is None:
        return shlex.join(["starlab", verb, str(folder.artifacts / "spec.yaml")])
    changes.pop("train.extends", None)  # set by the option
    extend = ["--extend", info.tags["starlab.extends"]] if "starlab.extends" in info.tags else []
    overrides = [f"{key}={_yaml(value)}" for key, value in changes.items()]
    return shlex.join(["starlab", verb, info.experiment, *overrides, *extend])


def description_tags(folder: RunFolder) -> dict[str, str]:
    """Return the tags that MLflow shows as a run's name, description, source and commit."""
    info, again = folder.info, command(folder)
    note = [f"    {again}", "", f"Run `{info.run_id}` in `{info.runs}`."]
    if info.parent:
        note.append(f"It belongs to `{Path(info.parent).name}`; its spec.yaml is written when it ends.")
    tags = {
        "mlflow.runName": run_name(folder),
        "mlflow.note.content": "\n".join(note),
        "mlflow.source.name": " ".join(again.split()[:3]) if not info.parent else f"starlab search {Path(info.parent).name}",
        "mlflow.source.type": "LOCAL",
    }
    commit = info.tags.get("starlab.git_commit", "")
    if commit and " " not in commit:  # "not a git checkout"
        tags["mlflow.source.git.commit"] = commit
        tags["mlflow.source.git.dirty"] = info.tags.get("starlab.git_dirty", "unknown")
    return tags


def dataset_inputs(folder: RunFolder) -> list[DatasetInput]:
    """Return the parts of the data that a run uses, each with its context: "train", "validation" or "test".

    The digest of a part changes with the data and with what decides the part's clips. It is empty for a folder without a spec.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    info, data = folder.info, folder.read_json(SPEC).get("data")
    fingerprint = info.tags.get(FINGERPRINT)
    if not data or not fingerprint:
        return []
    source = {"uri": data.get("store") or "generated", "fingerprint": fingerprint}
    inputs = []
    for part in _MAIN_PARTS:
        if part == "validation" and not data.get("validation_fraction"):
            continue
        dataset = Dataset(data["dataset"], part_digest(info, data, part), "starlab", json.dumps(source))
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", part)]))
    return inputs


def part_digest(info: RunInfo, data: Mapping[str, Any], part: str) -> str:
    """Return 12 hex digits for one part of a run's data."""
    deciding: tuple[str, ...] = (
        ("protocol", "limit") if part == "test" else ("protocol", "limit", "validation_fraction", "split_seed")
    )
    deciding += ("train_fraction",) if part == "train" else ()
    text = json.dumps([info.tags[FINGERPRINT], part, *(data.get(key) for key in deciding)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _cell(parent: RunFolder, run_id: str) -> str | None:
    ablation = parent.read(AblationRecord)
    cells = ablation.cells if ablation else ()
    return next((f"{cell.row}, seed {cell.seed}" for cell in cells if cell.run == run_id), None)


def _changes(spec: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the values that differ from the packaged experiment of the spec's name, or None if there is none."""
    name = spec.get("name")
    if name not in experiment_names():
        return None
    try:
        packaged = (load_search(name) if "space" in spec else load_spec(name)).to_dict()
    except SpecError:
        return None
    before, now = dict(_leaves(packaged)), dict(_leaves(spec))
    if any(key.startswith("space.") for key in before.keys() - now.keys()):
        return None  # no override removes a dimension
    return {
        key: value
        for key, value in now.items()
        if key not in _FIXED_BY_DATA and HIDDEN not in str(value) and (key not in before or before[key] != value)
    }


def _leaves(spec: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the values of a spec by dotted key. A dimension of a space is one value."""
    yield from flatten({key: value for key, value in spec.items() if key != "space"}).items()
    for key, form in spec.get("space", {}).items():
        yield f"space.{key}", form


def _is_place(key: str) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in _PLACES)


def _at(spec: Mapping[str, Any], key: str) -> Any:
    value: Any = spec
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _short(values: Mapping[str, Any]) -> str:
    """Format values as "encoder=FF lr=0.001". A key keeps its section where two keys end in the same word."""
    words = [key.rpartition(".")[2] for key in values]
    return " ".join(
        f"{word if words.count(word) == 1 else key}={_rounded(value)}"
        for word, (key, value) in zip(words, values.items(), strict=True)
    )


def _rounded(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else _yaml(value)


def _yaml(value: Any) -> str:
    """Format a value so that an override reads it back."""
    if not isinstance(value, str):
        return json.dumps(value)
    try:
        return value if parse_value(value, value) == value else json.dumps(value)
    except SpecError:
        return json.dumps(value)
