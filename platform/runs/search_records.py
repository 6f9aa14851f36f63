"""Typed records of many runs that belong together: a search with its trials, an ablation with its cells.

They are stored as records.py says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

ROW, SEED = "starlab.row", "starlab.seed"
"""Tags of a run that an ablation made: the name of its row, and its seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A finished trial of a search: a point of its space with one run per seed."""

    run: str
    """Run id; with several seeds, of the first one's run."""
    values: dict[str, Any]
    """Sampled values of the search space, by dotted key. A key whose condition does not hold is missing."""
    val_top1: float
    """Mean over the seeds."""
    epochs: int
    """Number of epochs reached; with several seeds, the smallest."""
    whole: bool
    """Whether every run of the trial reached its last epoch."""
    objectives: dict[str, float] = field(default_factory=dict)
    """Value of each objective of the search, by name: the mean over the seeds. Empty in searches of earlier versions."""
    runs: tuple[str, ...] = ()
    """Run ids of all seeds, in the order of the seeds. Empty in searches of earlier versions."""

    def value_of(self, objective: str) -> float:
        """Return the value of an objective, or NaN if the trial does not have it."""
        return self.objectives.get(objective, self.val_top1 if objective == "val/top1" else math.nan)


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSummary:
    """Result of a finished search."""

    FILE: ClassVar[str] = "search.json"
    trials: tuple[Trial, ...]
    """Finished trials, best first."""
    best: str
    """Run id of the best trial."""
    test_top1: float
    objectives: dict[str, str] = field(default_factory=lambda: {"val/top1": "maximize"})
    """Direction of each objective, by name, the one that decides about the best trial first: "maximize" or "minimize"."""
    pareto_front: tuple[str, ...] = ()
    """Run ids of the whole trials that no other one beats in every objective, best first. Empty with one objective."""
    seeds: tuple[int, ...] = ()
    """Seeds of each trial's runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchUsage:
    """What a search has used of its budget, over all of its calls."""

    FILE: ClassVar[str] = "usage.json"
    seconds: float = 0.0
    """Time in which trials ran."""
    gpu_seconds: float = 0.0
    """The sum over its runs of their time, times their GPUs."""


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
