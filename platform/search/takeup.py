"""What earlier calls of a search left in its folder: runs of points that are in its space now, finished or not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlab.experiments.spec import SpecError
from starlab.platform.runs.folder import SPEC, RunFolder
from starlab.platform.runs.records import DamagedRecordError
from starlab.platform.search.objectives import Objective, Outcome, curve_of, outcome_of
from starlab.platform.search.space import point_text
from starlab.platform.search.trial_folders import TrialFolders

CODE = "starlab.code"
"""Tag of a run with the hash of the code that started it."""


@dataclass(frozen=True, slots=True)
class EarlierPoint:
    """A point of the space that has runs in the search's folder."""

    values: dict[str, Any]
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    """Of its finished runs, by seed."""
    curves: dict[int, dict[int, float]] = field(default_factory=dict)
    """The first objective's value by epoch, by seed."""


def earlier_points(
    folders: TrialFolders, objectives: Sequence[Objective], known: Collection[str], complain: Callable[[str], None]
) -> Iterable[EarlierPoint]:
    """Each point of the space that has a run in the search's folder.

    Args:
        known: names of points (`point_text`) to leave out.
        complain: gets a line for each run whose records cannot be read.
    """
    found: dict[str, EarlierPoint] = {}
    for run in folders.search.trials():
        try:
            place = _place(run, folders)
            if place is None or point_text(place[0]) in known:
                continue
            values, seed = place
            point = found.setdefault(point_text(values), EarlierPoint(values))
            spec = folders.spec.spec_of(folders.seeded(values, seed))
            point.curves[seed] = curve_of(run, objectives[0])
            if outcome := outcome_of(run, spec, objectives):
                point.outcomes[seed] = outcome
        except (DamagedRecordError, OSError) as error:
            complain(f"skipped  {error}")
    return found.values()


def runs_of_other_code(runs: Iterable[RunFolder], code: str) -> dict[str, int]:
    """Number of runs by the version of the code that started them, without those of `code`."""
    counts: dict[str, int] = {}
    for run in runs:
        try:
            other = run.info.tags.get(CODE, "unknown")
        except (DamagedRecordError, OSError):
            continue
        if other != code:
            counts[other] = counts.get(other, 0) + 1
    return counts


def _place(run: RunFolder, folders: TrialFolders) -> tuple[dict[str, Any], int] | None:
    """The point and the seed of a run; None where the space does not hold it, or its base is another."""
    resolved = run.read_json(SPEC)
    values, seed = folders.spec.point_of(resolved), resolved.get("train", {}).get("seed")
    if values is None or (len(folders.spec.seeds) > 1 and seed not in folders.spec.seeds):
        return None
    seed = seed if len(folders.spec.seeds) > 1 else folders.spec.seeds[0]
    try:
        fits = folders.run_id(folders.seeded(values, seed)) == run.path.name
    except SpecError:
        return None
    return (values, seed) if fits else None
