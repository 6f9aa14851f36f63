"""Runs cells of an ablation, as many at once as the cluster holds, each in a thread of the driver.

A thread waits while its cell's workers compute, so it needs no process of its own: a driver process per cell would import
everything again. Ray Tune is not used, because nothing here is proposed or stopped early.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ray.util.placement_group import placement_group, remove_placement_group

from starlab.experiments.spec import Spec
from starlab.platform.cluster.connect import Cluster, describe_cluster
from starlab.platform.cluster.placement import demand_of
from starlab.platform.cluster.room import groups_that_fit
from starlab.platform.preemption import RunPreemptedError, end_on_signal
from starlab.platform.runs.end_request import read_request, request_end
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.lease import RunTakenError
from starlab.platform.runs.records import Outcome, Result
from starlab.platform.runs.search_records import ROW, SEED
from starlab.platform.search.cells import PlannedCell, state_of
from starlab.platform.trainer import RunRequest, run_training

ATTEMPTS = 2
"""How often a call starts a cell that fails. Each time its workers restart up to resources.max_failures times."""
_LOOK_SECONDS = 0.5
_TAKEN_SECONDS = 2.0
_ASK_AGAIN_SECONDS = 10.0


@dataclass(slots=True)
class Ended:
    """What a call did with its cells."""

    failed: dict[str, str] = field(default_factory=dict)
    """Why a cell failed, by run id."""
    trained: list[PlannedCell] = field(default_factory=list)
    waited_for: list[PlannedCell] = field(default_factory=list)
    """Cells that another process finished in the meantime."""


def run_cells(
    cells: Sequence[PlannedCell],
    ablation: RunFolder,
    runs: Path,
    grace_seconds: float,
    say: Callable[[str], None],
    look_again: Callable[[PlannedCell], PlannedCell] = lambda cell: cell,
) -> Ended:
    """Run every cell to its end, or until the ablation is asked to end. A cell that fails does not stop the others.

    Args:
        cells: Those that were not finished when they were planned, in the order in which they start.
        ablation: Folder of the ablation; SIGTERM and Ctrl-C leave their request there.
        runs: Folder of runs.
        grace_seconds: Time for all cells together to write checkpoints after a signal.
        look_again: Called with each cell just before it starts. Returns it as it is now: hours after it was planned, `train`
            or another ablation may have run it.

    Raises:
        RunPreemptedError: It was asked to end. Cells that were under way have written checkpoints.
    """
    waiting, running, ended = deque((cell, 1) for cell in cells), list[_Running](), Ended()
    is_local = describe_cluster().local
    with end_on_signal(ablation, grace_seconds), _DemandForMore() as more:
        while waiting or running:
            request = read_request(ablation)
            for one in running if request else ():
                # Again at every round: a cell that was just starting has cleared the first request.
                if request and read_request(one.cell.folder) is None:
                    request_end(one.cell.folder, replace(request, reason=f"its ablation was asked to end: {request.reason}"))
            if request and not running:
                break
            while waiting and not request:
                computing = sum(not one.waits for one in running)
                fits = groups_that_fit(demand_of(waiting[0][0].spec))
                if computing >= max(1, fits):
                    break
                cell, attempt = waiting.popleft()
                cell = look_again(cell)
                if cell.state == "finished":
                    ended.waited_for.append(cell)
                    say(f"cell     {cell.label} was finished by another process: {cell.folder.path}")
                    continue
                running.append(_Running(cell, attempt, runs, 1 / max(1, fits), describe_cluster(), ablation, say))
            more.ask_for(waiting[0][0].spec if waiting and not request and not is_local else None)
            time.sleep(_LOOK_SECONDS)
            for one in [one for one in running if not one.thread.is_alive()]:
                running.remove(one)
                if again := _settle(one, ended, len(cells), bool(request), say):
                    waiting.append(again)
    if request := read_request(ablation):
        done = len(ended.trained) + len(ended.waited_for)
        raise RunPreemptedError(
            f"ablation {ablation.path.name} ended because {request.reason}; {done} of the {len(cells)} cells that were missing "
            "are finished, and the same command goes on with the others from their checkpoints",
            by=request.signal,
        )
    return ended


def cells_at_once(spec: Spec) -> int:
    """Number of cells like this one that the connected cluster holds if nothing else runs on it, and at least 1."""
    return max(1, groups_that_fit(demand_of(spec)))


class _Running:
    """A cell that a thread of this process runs."""

    def __init__(
        self,
        cell: PlannedCell,
        attempt: int,
        runs: Path,
        share: float,
        cluster: Cluster,
        ablation: RunFolder,
        say: Callable[[str], None],
    ) -> None:
        self.cell, self.attempt = cell, attempt
        self.waits = False
        """Whether another process runs the cell, so that this one uses no room."""
        self.error: BaseException | None = None
        self.by_others = False
        self.began = time.monotonic()
        self._ablation, self._say = ablation, say
        self._request = RunRequest(
            spec=cell.spec,
            source=cell.data.source,
            parts=cell.data.parts,
            runs=runs,
            cluster=cluster,
            share=share,
            parent=cell.parent,
            queues=True,
            tags={ROW: cell.row, SEED: str(cell.seed)},
        )
        # Not waited for when the process ends: the grace time after a signal must end it.
        self.thread = threading.Thread(target=self._run, name=f"starlab-cell-{cell.folder.path.name}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            while state_of(self.cell.folder) != "finished":
                try:
                    run_training(self._request, say=self._forward)
                except RunTakenError as error:
                    if not self.waits:
                        self._say(f"waiting  {self.cell.label}: {error}")
                    self.waits = self.by_others = True
                    if request := read_request(self._ablation):
                        raise RunPreemptedError(request.reason, by=request.signal) from None
                    time.sleep(_TAKEN_SECONDS)
                else:
                    self.waits = self.by_others = False
                    return
        except BaseException as error:
            self.error = error

    def _forward(self, line: str) -> None:
        if line.startswith("notice"):
            self._say(f"notice   {self.cell.label}: {line.removeprefix('notice').strip()}")


def _settle(
    one: _Running, ended: Ended, total: int, is_ending: bool, say: Callable[[str], None]
) -> tuple[PlannedCell, int] | None:
    """Note how a cell ended. Returns the cell and the number of its next attempt if it should start again."""
    cell, error = one.cell, one.error
    name = f"{cell.label} ({cell.folder.path.name})"
    if error is None:
        (ended.waited_for if one.by_others else ended.trained).append(cell)
        result, done = cell.folder.require(Result), len(ended.trained) + len(ended.waited_for) + len(ended.failed)
        top1 = (result.test or {}).get("top1", float("nan"))
        seconds = "by another process" if one.by_others else f"{time.monotonic() - one.began:.0f} s"
        validation = f", validation {result.val['top1']:.3f}" if "top1" in result.val else ""
        say(f"cell     {name} ends: test top-1 {top1:.3f}{validation} ({seconds}; {done}/{total})")
        return None
    if is_ending:
        return None
    reason = " ".join((str(error) or type(error).__name__).split())
    if one.attempt < ATTEMPTS and not _would_fail_again(cell.folder):
        say(f"cell     {name} failed and starts again after the others: {reason}")
        return cell, one.attempt + 1
    ended.failed[cell.folder.path.name] = reason
    say(f"cell     {name} failed: {reason}")
    return None


def _would_fail_again(folder: RunFolder) -> bool:
    outcome = folder.read(Outcome)
    return outcome is not None and outcome.kind == "stopped"


class _DemandForMore:
    """Asks a cluster that scales by itself for room for one more cell, with a placement group that is given back at once.

    Ray removes the group if this process dies; `request_resources` of Ray's autoscaler would keep idle machines.
    """

    def __init__(self) -> None:
        self._group: object | None = None
        self._given_back = 0.0

    def ask_for(self, spec: Spec | None) -> None:
        """Keep asking for the workers of this spec; None asks for nothing."""
        if self._group is not None and (spec is None or self._group.wait(0.01)):  # type: ignore[attr-defined]
            self._give_back()
        elif self._group is None and spec is not None and time.monotonic() > self._given_back + _ASK_AGAIN_SECONDS:
            demand = demand_of(spec)
            self._group = placement_group([demand.bundle] * demand.workers)

    def _give_back(self) -> None:
        if self._group is not None:
            remove_placement_group(self._group)
            self._group, self._given_back = None, time.monotonic()

    def __enter__(self) -> _DemandForMore:
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()
