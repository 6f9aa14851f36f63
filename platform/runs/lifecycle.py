"""A run's record from its start to its end: opened, closed, or closed by others when its driver is gone."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from starlab.experiments.credentials import without_password
from starlab.experiments.spec import Spec
from starlab.pipelines.clip import ClipSource
from starlab.platform.errors import UserError
from starlab.platform.runs.folder import SPEC, RunFolder, read_infos
from starlab.platform.runs.locking import file_lock
from starlab.platform.runs.process import is_dead, this_machine, this_process
from starlab.platform.runs.provenance import DEVICE, note_start, provenance
from starlab.platform.runs.records import DamagedRecordError, LeaseState, ProcessId, RunInfo, Status, plain

_BEFORE_OUTCOME = ("preempted.json", "stopped.json")
"""What earlier versions wrote instead of `outcome.json`; stale once the run goes on."""
_CLOCKS_DIFFER_SECONDS = 600.0
"""The clocks of two machines surely differ by less."""


def open_run(
    folder: RunFolder,
    spec: Spec,
    source: ClipSource,
    runs: Path,
    parent: RunFolder | None,
    resolved: Mapping[str, Any] | None = None,
) -> RunInfo:
    """Write down what is about to run, or that it goes on.

    Args:
        runs: the folder of runs.
        parent: the search that the run belongs to.
        resolved: what to store as its spec, if not `spec` itself.

    Raises:
        UserError: a run that goes on keeps its checkpoints elsewhere than the spec says now.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    with file_lock(folder.path / f".{RunInfo.FILE}.lock"):
        earlier = folder.read(RunInfo)
        key = earlier.key if earlier else uuid.uuid4().hex
        checkpoints = folder.place_checkpoints(spec.resources.checkpoints, key)
        if earlier and checkpoints not in (None, earlier.checkpoints):
            raise UserError(
                f"run {folder.path.name} keeps its checkpoints in {earlier.checkpoints or folder.checkpoints}, and "
                f"resources.checkpoints is {spec.resources.checkpoints!r}; leave it out to go on, or start again with --fresh"
            )
        for name in _BEFORE_OUTCOME:
            (folder.path / name).unlink(missing_ok=True)
        if not earlier:
            folder.write_json(SPEC, resolved or spec.to_dict())
            folder.write_json("skipped.json", {clip.clip_id: clip.reason for clip in source.skipped})
        made_by = provenance()
        # The driver's device is a guess until rank 0 names the one that trains; a later start does not guess again.
        note_start(folder, {key: value for key, value in made_by.items() if key != DEVICE})
        tags = {
            **made_by,
            "starlab.spec_hash": folder.path.name.rpartition("-")[2],
            "starlab.data_fingerprint": source.fingerprint,
            "starlab.selected_by": "test (optimistic)" if spec.data.select == "test" else "validation",
        }
        info = RunInfo(
            run_id=folder.path.name,
            key=key,
            created=earlier.created if earlier else datetime.now(UTC).isoformat(),
            tags=earlier.tags if earlier else tags,
            checkpoints=earlier.checkpoints if earlier else checkpoints,
            experiment=spec.name,
            mlflow_experiment=spec.tracking.experiment or spec.name,
            tracking_uri=without_password(spec.tracking.address(runs)),
            runs=str(runs),
            parent=str(parent.path) if parent else None,
            status="RUNNING",
            driver=this_process(),
        )
        folder.write_json(RunInfo.FILE, folder.read_json(RunInfo.FILE) | plain(info))  # keeps what a newer starlab knows
    return info


def close_run(folder: RunFolder, status: Status, tags: Mapping[str, str] = MappingProxyType({})) -> RunInfo:
    """Write down how a run ended, and further tags."""
    more = {"starlab.ended_early": "true"} if folder.ended_early else {}
    if (looks := folder.looks_at_test()) > 1:  # by hand, before the run had ended
        more["starlab.test_looks"] = str(looks)
    return folder.update(RunInfo, lambda run: replace(run, status=status, tags={**run.tags, **more, **tags}))


def close_abandoned(runs: Path) -> list[RunFolder]:
    """Mark the runs under `runs`, trials of searches included, whose driver died as KILLED. Returns them.

    A driver on this machine that is not there any more is known to be dead. One on another machine cannot be seen from here
    and counts as dead long after its lease has run out. A run whose record cannot be read is left alone.
    """
    closed = []
    found = sorted([*runs.glob(f"*/{RunInfo.FILE}"), *runs.glob(f"*/trials/*/{RunInfo.FILE}")])
    infos, _ = read_infos(RunFolder(path.parent) for path in found)
    for folder, run in infos.items():
        driver = run.driver
        if run.status == "RUNNING" and driver and (is_dead(driver) or _lease_is_over(folder, driver)):
            now = datetime.now(UTC).isoformat(timespec="seconds")
            tag = {"starlab.interrupted": f"process {driver.pid} on {driver.host} was gone at {now}"}
            folder.update(RunInfo, lambda run, tag=tag: replace(run, status="KILLED", tags={**run.tags, **tag}))  # type: ignore[misc]
            closed.append(folder)
    return closed


def _lease_is_over(folder: RunFolder, driver: ProcessId) -> bool:
    """Whether a driver on another machine has not renewed its lease for longer than any difference of clocks explains."""
    if driver.machine == this_machine():
        return False
    try:
        lease = folder.read(LeaseState)
    except DamagedRecordError:
        return False
    return lease is not None and time.time() > lease.renewed + lease.seconds + _CLOCKS_DIFFER_SECONDS
