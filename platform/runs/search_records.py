"""Typed records of many runs that belong together: a search with its trials, an ablation with its cells.

They are stored as records.py says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

ROW, SEED = "starlab.row", "starlab.seed"
"""Tags of a run that an ablation made: the name of its row, and its seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A finished trial of a search."""

    run: str
    values: dict[str, Any]
    """Sampled values of the search space, by dotted key."""
    val_top1: float
    epochs: int
    """Number of epochs reached."""
    whole: bool
    """Whether the trial reached its last epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSummary:
    """Result of a finished search."""

    FILE: ClassVar[str] = "search.json"
    trials: tuple[Trial, ...]
    """Finished trials, best first."""
    best: str
    """Run id of the best trial."""
    test_top1: float


@dataclass(frozen=True, kw_only=True, slots=True)
class AblationRow:
    """One row of an ablation."""

    name: str
    changes: dict[str, Any]
    """Values over the base, by dotted key."""
    paper: float | None = None
    """The paper's number for `AblationRecord.metric`, in percent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One row of an ablation at one seed: a run."""

    row: str
    seed: int
    run: str
    """Run id."""
    folder: str
    """Folder of the run, relative to the folder of runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AblationRecord:
    """What an ablation compares, and the run of each of its cells."""

    FILE: ClassVar[str] = "ablation.json"
    claim: str
    """What the rows are to show, in one sentence."""
    metric: str
    """Test metric of the comparison, by its name in METRICS."""
    reference: str
    """Name of the row that the others are compared with."""
    rows: tuple[AblationRow, ...]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    """Every row at every seed, rows first, those that are not trained yet included."""
