"""Ablate: every row of an experiment at every seed, each a run of the trainer, nested under one MLflow parent.

    runs/demo_table4-5e6f7a8b/
      spec.json  run.json      the ablation as asked (the MLflow parent run)
      ablation.json            its rows, seeds and cells, and where the run of each cell is
      trials/demo_table4-…/    a run folder per cell, except those of cells that exist elsewhere

A cell that exists is not trained again, whether `train`, a search or another ablation made it. An interrupted ablation goes
on: finished cells are found, and a cell that was under way continues from its own checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from starlab.experiments.ablation import AblationSpec, select_rows
from starlab.platform.cluster.connect import connect
from starlab.platform.cluster.placement import demand_of, place
from starlab.platform.cluster.room import wait_for_room
from starlab.platform.errors import UserError
from starlab.platform.package import code_hash, package_root
from starlab.platform.preemption import close_unfinished
from starlab.platform.preflight import check_spec, open_data
from starlab.platform.recipe.metrics import METRICS
from starlab.platform.reports.report import report_at_end
from starlab.platform.runs.folder import RunFolder, runs_folder
from starlab.platform.runs.lease import Lease
from starlab.platform.runs.lifecycle import close_run, open_run
from starlab.platform.runs.locking import file_lock
from starlab.platform.runs.records import MlflowState
from starlab.platform.runs.search_records import AblationRecord, AblationRow, Cell
from starlab.platform.search.cell_runs import Ended, cells_at_once, run_cells
from starlab.platform.search.cells import FoundRuns, OpenData, PlannedCell, count_states, rows_and_seeds
from starlab.platform.serving.initial_weights import with_digests
from starlab.platform.tracking.abandoned import close_abandoned_everywhere
from starlab.platform.tracking.sender import Sender
from starlab.platform.tracking.unsent import send_rest_of_trials

_PLACES_LOCK = ".cells.lock"
"""Lock in the folder of runs, held while an ablation chooses where its cells are."""


@dataclass(frozen=True, slots=True)
class AblationPlan:
    """The cells of an ablation, and what exists of them."""

    spec: AblationSpec
    folder: RunFolder
    cells: tuple[PlannedCell, ...]
    """Of every row at every seed."""
    code: str
    """Version of the code that would train."""

    @property
    def of_other_code(self) -> tuple[PlannedCell, ...]:
        """Cells that exist and were trained, in part or whole, by another version of the code."""
        return tuple(cell for cell in self.cells if cell.codes - {self.code})


@dataclass(frozen=True, slots=True)
class AblationResult:
    """An ablation after a call, with the cells that failed."""

    folder: Path
    record: AblationRecord
    runs: Path
    trained: int
    """Cells that this call trained or completed."""
    looks_at_test: int
    """Evaluations of the test part that this call added to trials of searches."""
    failed: dict[str, str]
    """Why a cell failed, by run id."""
    seconds: float
    """Of this call."""
    tracking_uri: str
    mlflow_run_id: str | None
    """The parent of the cells' runs; None while MLflow has not been reached."""
    tracking_problem: str | None


def ablate(
    spec: AblationSpec,
    *,
    rows: Sequence[str] = (),
    runs: str | Path | None = None,
    accept_code: bool = False,
    fresh: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> AblationResult:
    """Run every cell that is not finished yet, as many at once as the cluster holds.

    Args:
        rows: Names of the rows to run; empty runs all.
        accept_code: Use cells of another version of the code, and continue those that it left unfinished.
        fresh: Set cells of another version of the code aside, and train them again.

    Raises:
        SpecError: A name in `rows` is not a row.
        DataError, UserError: As `trainer.train`; also a metric that does not exist, and cells of another version of the code
            without `accept_code` or `fresh`.
        RunPreemptedError: It was asked to end; the same call goes on.
    """
    began, root = time.monotonic(), runs_folder(runs)
    if accept_code and fresh:
        raise UserError("--accept-code uses the cells of another version of the code and --fresh trains them again; give one")
    wanted = {row.name for row in select_rows(spec, rows)}
    check_ablation(spec)
    spec = with_digests(spec, root)
    data = open_all_data(spec, root, say)
    first = plan_cells(spec, data, root, say)
    _refuse_other_code(first, wanted, accept_code or fresh)
    close_abandoned_everywhere(root)
    with Lease.claim(first.folder.path, wait=say) as lease:  # one process per ablation, also while it waits for the cluster
        _join(first, wanted, say)
        plan = _choose_places(spec, data, root, wanted if fresh else set(), say)
        folder = plan.folder
        source = next(iter(data.values())).source
        open_run(folder, spec.base, source, root, parent=None, resolved=spec.to_dict())
        _write_record(plan, root)
        with Sender(folder, spec.base.tracking.address(root)) as sender:
            sender.send_now()  # the parent run must be there before its children
            try:
                ended = _run(plan, wanted, root, say)
            except BaseException as error:
                if lease.holds():
                    close_unfinished(folder, error)
                raise
            report_at_end(folder, say)
            close_run(folder, "FAILED" if ended.failed else "FINISHED")
    problem = sender.problem or send_rest_of_trials(folder)
    tracked = folder.read(MlflowState)
    return AblationResult(
        folder=folder.path,
        record=folder.require(AblationRecord),
        runs=root,
        trained=len(ended.trained),
        looks_at_test=sum(cell.state == "untested" for cell in ended.trained),
        failed=ended.failed,
        seconds=time.monotonic() - began,
        tracking_uri=folder.info.tracking_uri,
        mlflow_run_id=tracked.run_id if tracked else None,
        tracking_problem=problem,
    )


def check_ablation(spec: AblationSpec) -> None:
    """Check the metric, and each row as `check_spec` checks a run.

    Raises:
        UserError: The metric does not exist, or as `check_spec`.
    """
    if spec.metric not in METRICS:
        raise UserError(f"{spec.name}: metric is {spec.metric!r}, which no run has; there are: {', '.join(METRICS)}")
    for row in spec.rows:
        check_spec(spec.spec_of(row, spec.seeds[0]))


def open_all_data(spec: AblationSpec, root: Path, say: Callable[[str], None]) -> dict[str, OpenData]:
    """Open the data of every row, each data set once. Returns them by the row's name.

    Raises:
        DataError: A data set cannot be used.
    """
    opened: dict[str, OpenData] = {}
    by_row: dict[str, OpenData] = {}
    for row in spec.rows:
        cell = spec.spec_of(row, spec.seeds[0])
        key = json.dumps(cell.to_dict()["data"], sort_keys=True)
        if key not in opened:
            opened[key] = OpenData(*open_data(cell, root, say))
        by_row[row.name] = opened[key]
    return by_row


def plan_cells(
    spec: AblationSpec, data: dict[str, OpenData], root: Path, complain: Callable[[str], None] = lambda _: None
) -> AblationPlan:
    """Find every cell of an ablation below the folder of runs. Changes nothing."""
    folder, code = RunFolder(root / ablation_id(spec, data)), code_hash(package_root())
    found = FoundRuns(root, complain)
    cells = [found.plan(spec, row, seed, data[row.name], folder, code) for row, seed in rows_and_seeds(spec.rows, spec.seeds)]
    return AblationPlan(spec, folder, tuple(cells), code)


def ablation_id(spec: AblationSpec, data: dict[str, OpenData]) -> str:
    """Name + 8 hex digits over the rows, their names and their data; more seeds are the same ablation."""
    identity = [
        [row.name, spec.spec_of(row, 0).run_id(data[row.name].source.fingerprint).rpartition("-")[2]] for row in spec.rows
    ]
    return f"{spec.name}-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]}"


def _refuse_other_code(plan: AblationPlan, rows: set[str], decided: bool) -> None:
    others = [cell for cell in plan.of_other_code if cell.row in rows]
    if others and not decided:
        listed = "\n".join(
            f"  {cell.label}: {cell.folder.path} ({cell.state}, code {', '.join(sorted(cell.codes))})" for cell in others
        )
        raise UserError(
            f"{len(others)} of {len(plan.cells)} cells were trained by another version of the code, which may give other "
            f"results (the code now is {plan.code}):\n{listed}\n"
            "use them as they are with --accept-code, or train them again with --fresh, which keeps the old ones aside"
        )


def _join(plan: AblationPlan, rows: set[str], say: Callable[[str], None]) -> None:
    """Join or start the cluster, wait until it has room for the first cell, and check that every row fits."""
    cluster = connect()
    if all(cell.state == "finished" for cell in plan.cells if cell.row in rows):
        return
    base = plan.spec.base
    if not cluster.local:
        timeout = base.resources.wait_for_room_seconds
        cluster = wait_for_room(demand_of(base), timeout_seconds=timeout, say=say, queue=True)
    for row in plan.spec.rows:
        place(plan.spec.spec_of(row, 0), cluster, 1 / cells_at_once(base))


def _choose_places(
    spec: AblationSpec, data: dict[str, OpenData], root: Path, fresh_rows: set[str], say: Callable[[str], None]
) -> AblationPlan:
    """Plan again, and make the folder of every new cell, so that another ablation with the same cell uses that folder."""
    with file_lock(root / _PLACES_LOCK):
        plan = plan_cells(spec, data, root, say)
        others = [cell for cell in plan.of_other_code if cell.row in fresh_rows]
        for cell in others:
            with Lease.claim(cell.folder.path):  # not while another process trains it
                kept = cell.folder.set_aside()
            say(f"fresh    {cell.label}: the earlier run is kept as {kept}")
        if others:
            plan = plan_cells(spec, data, root, say)
        for cell in plan.cells:
            cell.folder.path.mkdir(parents=True, exist_ok=True)
    return plan


def _write_record(plan: AblationPlan, root: Path) -> None:
    spec = plan.spec
    record = AblationRecord(
        claim=spec.claim,
        metric=spec.metric,
        reference=spec.reference,
        rows=tuple(AblationRow(name=row.name, changes=dict(row.set), paper=row.paper) for row in spec.rows),
        seeds=spec.seeds,
        cells=tuple(_recorded(cell, root) for cell in plan.cells),
    )
    plan.folder.write(record)


def _recorded(cell: PlannedCell, root: Path) -> Cell:
    return Cell(row=cell.row, seed=cell.seed, run=cell.folder.path.name, folder=str(cell.folder.path.relative_to(root)))


def _look_again(plan: AblationPlan, root: Path, cell: PlannedCell) -> PlannedCell:
    """Find a cell again just before it starts, and note in the ablation's record where its run is now.

    A run that another version of the code has made in the meantime is left alone.
    """
    row = next(row for row in plan.spec.rows if row.name == cell.row)
    with file_lock(root / _PLACES_LOCK):
        now = FoundRuns(root).plan(plan.spec, row, cell.seed, cell.data, plan.folder, plan.code)
        if now.folder != cell.folder:
            if now.codes - {plan.code}:
                return cell
            cells = plan.folder.require(AblationRecord).cells
            moved = tuple(_recorded(now, root) if (one.row, one.seed) == (now.row, now.seed) else one for one in cells)
            plan.folder.update(AblationRecord, lambda record: replace(record, cells=moved))
    return now


def _run(plan: AblationPlan, rows: set[str], root: Path, say: Callable[[str], None]) -> Ended:
    wanted = [cell for cell in plan.cells if cell.row in rows]
    left = [cell for cell in wanted if cell.state != "finished"]
    counts = count_states(wanted)
    say(
        f"ablation {plan.folder.path}: {len(wanted)} cells, {counts['finished']} finished before"
        + (f", {counts['started']} started before" if counts["started"] else "")
    )
    if counts["untested"]:
        names = ", ".join(cell.label for cell in wanted if cell.state == "untested")
        say(f"note     {counts['untested']} cells are trials of a search; this is their first look at the test part: {names}")
    if not left:
        return Ended()
    say(f"ablation {len(left)} cells to run, {cells_at_once(plan.spec.base)} at once")
    seconds = plan.spec.base.resources.grace_seconds
    return run_cells(left, plan.folder, root, seconds, say, lambda cell: _look_again(plan, root, cell))
