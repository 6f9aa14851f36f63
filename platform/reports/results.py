"""Results of runs as typed rows and as one table: single runs, the trials of searches, the cells of ablations.

from starlab.platform.reports.results import read_results, results_table
from starlab.platform.runs.folder import find_runs, runs_folder

results = read_results(find_runs(runs_folder(), "table4", print))
results_table(results).to_pandas()
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from starlab.experiments.overrides import flatten
from starlab.experiments.sections import TrainConfig
from starlab.models.config import StarConfig
from starlab.pipelines.sources import DataConfig
from starlab.platform.reports.costs import RunCost, run_cost
from starlab.platform.runs.folder import SPEC, RunFolder
from starlab.platform.runs.records import FINGERPRINT, DamagedRecordError, Result, RunInfo, Status
from starlab.platform.runs.search_records import AblationRecord, AblationRow, SearchSummary
from starlab.platform.worker.predictions import read_predictions

CODE = "starlab.code"
_PREDICTIONS = "predictions.parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRow:
    """One run."""

    run: str
    """Run id."""
    folder: Path
    kind: Literal["run", "trial", "cell"]
    """Whether it is a single run, a trial of a search or a cell of an ablation."""
    group: str | None = None
    """Name of the search or ablation that it belongs to."""
    row: str | None = None
    """Name of its row in the ablation."""
    experiment: str
    status: Status
    created: str
    """Time of creation, ISO 8601, UTC."""
    code: str
    """Version of the code that made it: the hash of starlab's files."""
    data: str = ""
    """Fingerprint of its data, empty if it is not recorded."""
    seed: int | None
    """`train.seed`, None if the spec lacks it."""
    spec: dict[str, Any]
    """The resolved spec by dotted key. A key that the run's version of starlab did not have yet has its default."""
    val: dict[str, float] = field(default_factory=dict)
    """Metrics of the selection part; empty while the run has not finished."""
    test: dict[str, float] = field(default_factory=dict)
    """Metrics of the test part; empty if it was not evaluated."""
    selected_by: str = ""
    """Part that selected the best checkpoint."""
    ended_early: bool = False
    looks: int = 0
    """Evaluations of the test part."""
    test_clips: int | None = None
    """Number of test clips that were predicted. None if it is not recorded."""
    unreadable: int = 0
    """Number of clips that could not be read."""
    predictions: Path | None = None
    """File of the predictions for the test part, None if there is none."""
    cost: RunCost = RunCost()


@dataclass(frozen=True, kw_only=True, slots=True)
class Ablation:
    """An ablation that the rows belong to."""

    name: str
    record: AblationRecord

    def row(self, name: str) -> AblationRow:
        """Return the row of this name."""
        return next(row for row in self.record.rows if row.name == name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """A search that some rows are trials of."""

    name: str
    runs: int
    """Number of its runs whose records can be read: one per trial and seed."""
    looks: int
    """Evaluations of the test part, over all of its trials."""
    best: str | None
    """Run id of its best trial, with several seeds of the first one's run. None while the search has not ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """Runs, and the searches and ablations that they belong to."""

    runs: tuple[RunRow, ...]
    ablations: tuple[Ablation, ...] = ()
    searches: tuple[Search, ...] = ()


def read_results(
    folders: Iterable[RunFolder], complain: Callable[[str], None] = lambda _: None, *, costs: bool = True
) -> Results:
    """Read the results of runs. A search is read as its trials, an ablation as its cells, each folder once.

    Args:
        folders: Folders of runs, searches and ablations.
        complain: Called with a line for each run that is left out because a record is damaged, and for missing cells.
        costs: Whether to read the costs too, which takes the longest.
    """
    found: dict[tuple[Path, str | None, str | None], RunRow] = {}
    ablations: list[Ablation] = []
    searches: list[Search] = []
    for folder in folders:
        try:
            record = folder.read(AblationRecord)
            summary = folder.read(SearchSummary)
        except (DamagedRecordError, OSError) as error:
            complain(f"skipped  {error}")
            continue
        if record is not None:
            ablations.append(Ablation(name=folder.path.name, record=record))
            rows = _cells(folder, record, complain, costs)
        elif trials := folder.trials():
            rows = [row for trial in trials if (row := _read(trial, "trial", folder.path.name, complain, costs))]
            looks, best = sum(row.looks for row in rows), summary.best if summary else None
            searches.append(Search(name=folder.path.name, runs=len(rows), looks=looks, best=best))
        else:
            rows = [row for row in [_read(folder, "run", None, complain, costs)] if row]
        for row in rows:
            found[row.folder, row.group, row.row] = row  # two rows of ablations may share a cell
    cells = {row.folder for row in found.values() if row.row is not None}
    runs = tuple(row for row in found.values() if row.row is not None or row.folder not in cells)
    return Results(runs=runs, ablations=tuple(ablations), searches=tuple(searches))


def results_table(results: Results) -> pa.Table:
    """Return a table with one row per run, for notebooks: `results_table(results).to_pandas()`.

    The columns are those of `RunRow`, with "val/NAME" and "test/NAME" for metrics in [0, 1], "cost/NAME" for costs and
    "spec/KEY" for the spec. A key of the spec whose values have several types is a column of texts.
    """
    rows = [_flat(row) for row in results.runs]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def _flat(row: RunRow) -> dict[str, Any]:
    nested = {"val": row.val, "test": row.test, "cost": asdict(row.cost), "spec": row.spec}
    plain = {name: value for name in RunRow.__slots__ if name not in nested for value in [getattr(row, name)]}
    plain |= {"folder": str(row.folder), "predictions": str(row.predictions) if row.predictions else None}
    return plain | {f"{part}/{name}": value for part, values in nested.items() for name, value in values.items()}


def _column(values: Sequence[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values])


def _cells(folder: RunFolder, record: AblationRecord, complain: Callable[[str], None], costs: bool) -> list[RunRow]:
    rows, missing = [], []
    for cell in record.cells:
        at = RunFolder(folder.path.parent / cell.folder)
        if not (at.path / RunInfo.FILE).is_file():
            missing.append(f"{cell.row} at seed {cell.seed}")
        elif row := _read(at, "cell", folder.path.name, complain, costs):
            rows.append(replace(row, row=cell.row, seed=cell.seed))
    if missing:
        complain(f"missing  {folder.path.name} has not started: {', '.join(missing)}")
    return rows


def _read(
    folder: RunFolder, kind: Literal["run", "trial", "cell"], group: str | None, complain: Callable[[str], None], costs: bool
) -> RunRow | None:
    """Read one run; None where a record is damaged."""
    try:
        info, result, nested = folder.info, folder.result, folder.read_json(SPEC)
        looks = folder.looks_at_test()
    except (DamagedRecordError, OSError) as error:
        complain(f"skipped  {error}")
        return None
    spec = _defaults() | flatten(nested)
    predictions = folder.artifacts / _PREDICTIONS
    test = result.test if result else None
    if result is None and info.status == "FINISHED" and predictions.is_file():  # a run of a tracking server without result.json
        test = read_predictions(predictions)[1].metrics()
    result = result or _UNFINISHED
    return RunRow(
        run=folder.path.name,
        folder=folder.path,
        kind=kind,
        group=group,
        experiment=info.experiment,
        status=info.status,
        created=info.created,
        code=info.tags.get(CODE, "unknown"),
        data=info.tags.get(FINGERPRINT, ""),
        seed=spec.get("train.seed"),
        spec=spec,
        val=result.val,
        test=test or {},
        selected_by=result.selected_by,
        ended_early=result.ended_early,
        looks=looks,
        test_clips=result.test_clips,
        unreadable=len(result.unreadable),
        predictions=predictions if predictions.is_file() else None,
        cost=run_cost(folder.path, nested, None if result is _UNFINISHED else result) if costs else RunCost(),
    )


@cache
def _defaults() -> dict[str, Any]:
    """Return the default of each key of the spec, so that runs of an earlier version do not seem to differ in new keys."""
    nested = {
        section: {one.name: one.default for one in fields(config) if one.default is not MISSING}
        for section, config in {"data": DataConfig, "model": StarConfig, "train": TrainConfig}.items()
    }
    return flatten(json.loads(json.dumps(nested, default=asdict)))


_UNFINISHED = Result(steps=0, total_steps=0, best_step=0, selected_by="", classes=(), val={})
