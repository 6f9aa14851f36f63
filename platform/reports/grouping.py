"""Rows of a comparison: runs that differ only in their seed are one row, and so are the cells of one row of an ablation.

Runs of one spec on other data are other rows: the spec holds where the data are, and not what they are.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from starlab.experiments.paths import PATH_KEYS
from starlab.platform.errors import UserError
from starlab.platform.reports.blocks import Key
from starlab.platform.reports.results import Ablation, Results, RunRow

SEED = "train.seed"
_NOT_COMPARED = (
    "name",
    *(f"train.{key}" for key in ("profile", "log_every_steps", "checkpoint_every_epochs", "checkpoint_every_steps")),
    *(f"data.{key}" for key in ("source", "decode")),
    *(f"model.{key}" for key in ("num_classes", "num_joints", "max_bodies", "frames")),
    *PATH_KEYS,
)
_NOT_COMPARED_SECTIONS = ("resources.", "tracking.", "space.", "search.")
"""Keys that do not change what is trained, or that the data decide."""

_MOST_IN_A_NAME = 4
"""A row that differs in more keys is named after its first run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """The runs of one row."""

    name: str
    values: dict[str, Any]
    """Value of each key that differs between the rows."""
    replicates: dict[Key, RunRow]
    """The runs by seed, and by the values of the keys that `by` leaves open, if any (`blocks.Key`)."""
    ablation: Ablation | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Grouping:
    """All rows of a comparison."""

    groups: tuple[Group, ...]
    keys: tuple[str, ...]
    """Keys of the spec that differ between the rows."""
    open_keys: tuple[str, ...] = ()
    """Keys that differ between the runs and that `by` does not name."""
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Draft:
    identity: Key
    runs: list[RunRow] = field(default_factory=list)
    ablation: Ablation | None = None


def group_runs(results: Results, by: Sequence[str] = ()) -> Grouping:
    """Group runs into rows.

    Args:
        results: The runs.
        by: Keys of the spec. Every combination of their values is a row. Empty: the rows of the ablations, and for other runs
            everything in the spec but the seed.

    Raises:
        UserError: There are no runs, a key of `by` is unknown, or an ablation names a row twice.
    """
    runs = [run for run in results.runs if run.seed is not None]
    notes = []
    if seedless := [run.run for run in results.runs if run.seed is None]:
        notes.append(f"left out, because the spec has no {SEED}: {', '.join(seedless)}")
    if not runs:
        raise UserError("there are no runs to compare")
    for ablation in results.ablations:
        _refuse_rows_named_twice(ablation)
    known = sorted({key for run in runs for key in run.spec})
    for key in by:
        if key not in known:
            near = difflib.get_close_matches(key, known, 3, 0.4)
            raise UserError(f"--by {key}: no run has this key in its spec. Close to it: {', '.join(near) or 'nothing'}")
    differing = [key for key in known if is_compared(key) and len({repr(run.spec.get(key)) for run in runs}) > 1]
    drafts = _by_values(runs, by) if by else _by_row(runs, differing, results.ablations)
    open_keys = [key for key in differing if key not in by] if by else []
    open_data = any(len({run.data for run in draft.runs}) > 1 for draft in drafts)
    if open_keys or open_data:
        left = ", ".join([*open_keys, *(["the data"] if open_data else [])])
        notes.append(
            f"runs of a row also differ in {left}: its value at a seed is the mean over these settings, and a difference is "
            "between equal seeds and settings. It says nothing about a single setting, for which --by must name these keys too"
        )
    specs = Counter(draft.identity[:-1] for draft in drafts if draft.ablation is None)
    if not by and (other := [draft.runs[0].run for draft in drafts if specs[draft.identity[:-1]] > 1]):
        notes.append(f"these rows have the same spec and other data, so they are rows of their own: {', '.join(other)}")
    return _named(drafts, list(by) or differing, open_keys, notes, open_data=open_data)


def is_compared(key: str) -> bool:
    """Return whether runs that differ in this key of the spec are different rows."""
    return key != SEED and key not in _NOT_COMPARED and not key.startswith(_NOT_COMPARED_SECTIONS)


def _refuse_rows_named_twice(ablation: Ablation) -> None:
    twice = [name for name, count in Counter(row.name for row in ablation.record.rows).items() if count > 1]
    if twice:
        raise UserError(f"{ablation.name} has two rows called {', '.join(map(repr, twice))}; give every row its own name")


def _by_values(runs: Sequence[RunRow], by: Sequence[str]) -> list[_Draft]:
    drafts: dict[Key, _Draft] = {}
    for run in runs:
        identity = tuple(repr(run.spec.get(key)) for key in by)
        drafts.setdefault(identity, _Draft(identity)).runs.append(run)
    return list(drafts.values())


def _by_row(runs: Sequence[RunRow], differing: Sequence[str], ablations: Sequence[Ablation]) -> list[_Draft]:
    drafts: dict[Key, _Draft] = {}
    by_name = {ablation.name: ablation for ablation in ablations}
    for run in runs:
        ablation = by_name.get(run.group or "") if run.row is not None else None
        identity: Key = (run.experiment, *(repr(run.spec.get(key)) for key in differing), run.data)
        if ablation is not None:
            identity = (ablation.name, run.row)
        drafts.setdefault(identity, _Draft(identity, ablation=ablation)).runs.append(run)
    return list(drafts.values())


def _named(
    drafts: Sequence[_Draft], keys: Sequence[str], open_keys: Sequence[str], notes: list[str], *, open_data: bool
) -> Grouping:
    groups = []
    for draft in drafts:
        first = draft.runs[0]
        replicates: dict[Key, RunRow] = {}
        for run in sorted(draft.runs, key=lambda run: run.created):
            key = (run.seed, *(repr(run.spec.get(name)) for name in open_keys), *([run.data] if open_data else []))
            if key in replicates:
                notes.append(f"{replicates[key].run} and {run.run} are the same row at seed {run.seed}; the newer one counts")
            replicates[key] = run
        values = {key: first.spec.get(key) for key in keys}
        name = first.row if first.row is not None else _name(first, values, len(replicates))
        replicates = dict(sorted(replicates.items(), key=lambda item: (item[0][0], repr(item[0]))))
        groups.append(Group(name=name, values=values, replicates=replicates, ablation=draft.ablation))
    return Grouping(groups=tuple(_unique(groups)), keys=tuple(keys), open_keys=tuple(open_keys), notes=tuple(notes))


def _name(run: RunRow, values: dict[str, Any], runs: int) -> str:
    if runs == 1:
        return run.run
    if len(values) > _MOST_IN_A_NAME:
        return f"{run.run} + {runs - 1} seeds"
    return ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in values.items()) or run.experiment


def _unique(groups: Sequence[Group]) -> list[Group]:
    """Add the ablation's name, or a run's id, to names that several rows have."""
    count = Counter(group.name for group in groups)
    found = []
    for group in groups:
        name = group.name
        if count[name] > 1:
            owner = group.ablation.name if group.ablation else next(iter(group.replicates.values())).run
            name = f"{name} ({owner})"
        found.append(Group(name=name, values=group.values, replicates=group.replicates, ablation=group.ablation))
    return found


def find_base(grouping: Grouping, name: str | None) -> Group | None:
    """Return the row that the others are compared with.

    Args:
        grouping: The rows.
        name: Name of a row, or id of a run. None takes the reference of the first ablation, else the first row, provided that
            there are only two rows or some row has several seeds.

    Raises:
        UserError: No row has this name.
    """
    groups = grouping.groups
    if name is not None:
        for group in groups:
            if name == group.name or name in {run.run for run in group.replicates.values()}:
                return group
        names = [group.name for group in groups]
        near = difflib.get_close_matches(name, names, 3, 0.4)
        listed = ", ".join(map(repr, [*near, *(other for other in names if other not in near)][:8]))
        raise UserError(f"--base {name}: no row has this name. Rows: {listed}{', …' if len(names) > 8 else ''}")
    for group in groups:
        if group.ablation and group.ablation.record.reference == next(iter(group.replicates.values())).row:
            return group
    if len(groups) == 2 or (len(groups) > 2 and any(len(group.replicates) > 1 for group in groups)):
        return groups[0]
    return None
