"""The cells of an ablation, and the runs that exist of them, made by `train`, a search or any ablation.

A cell is a run. It is found by its identity, the 8 hex digits at the end of a run's id, under any name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from starlab.experiments.ablation import AblationSpec, Row
from starlab.experiments.spec import Spec
from starlab.pipelines.clip import ClipSource
from starlab.pipelines.splits import Parts
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.jsonl import read_lines
from starlab.platform.runs.provenance import CODE
from starlab.platform.runs.provenance import FILE as PROVENANCE
from starlab.platform.runs.records import DamagedRecordError, RunInfo

State = Literal["finished", "untested", "started", "new"]
"""How far a cell's run is: finished with test predictions, trained whole without the test part, started, or not there."""
_BEST_FIRST: tuple[State, ...] = ("finished", "untested", "started", "new")
_PREDICTIONS = "predictions.parquet"
TRIALS = "trials"
"""Folder of the runs that a search or an ablation makes, in its own."""


@dataclass(frozen=True, slots=True)
class OpenData:
    """A data set that is open, and its parts."""

    source: ClipSource
    parts: Parts


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """A row at one seed, and where its run is or will be."""

    row: str
    seed: int
    spec: Spec
    """Its name is that of the folder."""
    data: OpenData
    folder: RunFolder
    state: State
    codes: frozenset[str] = frozenset()
    """Every version of the code that has trained it so far."""

    @property
    def label(self) -> str:
        """The cell for the user."""
        return f"{self.row}, seed {self.seed}"

    @property
    def parent(self) -> RunFolder | None:
        """The search or ablation in whose folder the run is."""
        return RunFolder(self.folder.path.parent.parent) if self.folder.path.parent.name == TRIALS else None


class FoundRuns:
    """Every run below a folder of runs, by its identity. Made once per plan, because it reads the names of all runs."""

    def __init__(self, runs: Path, complain: Callable[[str], None] = lambda _: None) -> None:
        self._complain = complain
        self._folders: dict[str, list[RunFolder]] = {}
        for path in _run_paths(runs):
            self._folders.setdefault(path.name.rpartition("-")[2], []).append(RunFolder(path))

    def plan(self, spec: AblationSpec, row: Row, seed: int, data: OpenData, ablation: RunFolder, code: str) -> PlannedCell:
        """Find the run of a cell, the furthest one where there are several, or plan a new one in the ablation's folder.

        Args:
            ablation: Folder of the ablation.
            code: Version of the code. Runs that it alone has trained come before others.
        """
        wanted = spec.spec_of(row, seed)
        run_id = wanted.run_id(data.source.fingerprint)
        own = RunFolder(ablation.path / TRIALS / run_id)
        found: list[PlannedCell] = []
        for folder in self._folders.get(run_id.rpartition("-")[2], []):
            try:
                state, codes = state_of(folder), codes_of(folder)
                placed = _as_in(folder, wanted)
            except (DamagedRecordError, OSError) as error:
                self._complain(f"skipped  {error}")
                continue
            found.append(PlannedCell(row.name, seed, placed, data, folder, state, codes))

        def preference(cell: PlannedCell) -> tuple[bool, int, bool, str]:
            # A new one here is an empty folder that an ablation has chosen for the cell.
            return cell.codes != {code}, _BEST_FIRST.index(cell.state), cell.folder != own, str(cell.folder.path)

        return min(found, key=preference, default=PlannedCell(row.name, seed, wanted, data, own, "new"))


def state_of(folder: RunFolder) -> State:
    """How far the run in a folder is.

    Raises:
        DamagedRecordError: A record of it is damaged, or it was tested and its predictions are missing.
    """
    result = folder.result
    if result is None or result.ended_early:
        return "started" if (folder.path / RunInfo.FILE).exists() else "new"
    if result.test is None:
        return "untested"
    if not (folder.artifacts / _PREDICTIONS).is_file():
        raise DamagedRecordError(f"{folder.artifacts / _PREDICTIONS} is missing, so {folder.path.name} cannot be compared")
    # A driver that died after the test left figures, the model and MLflow undone. The next call does those alone.
    return "finished" if folder.info.status == "FINISHED" else "started"


def codes_of(folder: RunFolder) -> frozenset[str]:
    """Every version of the code that has started this run, by its hash."""
    starts = {str(line["tags"][CODE]) for line, _ in read_lines(folder.path / PROVENANCE) if CODE in line["tags"]}
    info = folder.read(RunInfo)
    return frozenset(starts | ({info.tags[CODE]} if info and CODE in info.tags else set()))


def rows_and_seeds(rows: Sequence[Row], seeds: Sequence[int]) -> Iterator[tuple[Row, int]]:
    """Every cell: all rows at the first seed, then all at the second, so that an early look compares whole seeds."""
    for seed in seeds:
        for row in rows:
            yield row, seed


def count_states(cells: Sequence[PlannedCell]) -> Mapping[State, int]:
    """Number of cells in each state."""
    return {state: sum(cell.state == state for cell in cells) for state in _BEST_FIRST}


def _run_paths(runs: Path) -> Iterator[Path]:
    """Folders of runs and of trials, also those of which nothing but the folder exists. None that was set aside."""
    for pattern in ("*-????????", f"*/{TRIALS}/*-????????"):
        for path in sorted(runs.glob(pattern)):
            ids = (path.name, path.parent.parent.name if path.parent.name == TRIALS else "")
            if not any(".until-" in name for name in ids) and path.is_dir():
                yield path


def _as_in(folder: RunFolder, spec: Spec) -> Spec:
    """The spec under the name and MLflow experiment of the run that exists; its checkpoints stay where they are."""
    info = folder.read(RunInfo)
    spec = replace(spec, name=folder.path.name.rpartition("-")[0])
    if info is None:
        return spec
    resources = replace(spec.resources, checkpoints=None)
    return replace(spec, resources=resources, tracking=replace(spec.tracking, experiment=info.mlflow_experiment))
