"""Opens and closes a run's record, and closes the records of runs whose driver died."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
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
from starlab.platform.runs.records import FINGERPRINT, DamagedRecordError, LeaseState, ProcessId, RunInfo, Status, plain

_BEFORE_OUTCOME = ("preempted.json", "stopped.json")
"""Files that earlier versions wrote instead of `outcome.json`. They are outdated once the run continues."""
_CLOCKS_DIFFER_SECONDS = 600.0
"""An upper bound for the difference between the clocks of two machines."""


def open_run(
    folder: RunFolder,
    spec: Spec,
    source: ClipSource,
    runs: Path,
    parent: RunFolder | None,
    resolved: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] = MappingProxyType({}),
) -> RunInfo:
    """Create the record of a new run, or mark an existing run as running again.

    Args:
        runs: The folder of runs.
        parent: The search that the run belongs to, if any.
        resolved: The dict to store as the run's spec; None stores `spec`.
        tags: Tags besides those that every run has.

    Raises:
        UserError: `resources.checkpoints` names another place than the one that an existing run uses.
    """
    made_by = provenance()  # takes a while, so before the lock
    folder.path.mkdir(parents=True, exist_ok=True)
    with file_lock(folder.path / f".{RunInfo.FILE}.lock"):
        earlier = folder.read(RunInfo)
        key = earlier.key if earlier else uuid.uuid4().hex
        checkpoints = folder.place_checkpoints(spec.resources.checkpoints, key)
        if earlier and checkpoints not in (None, earlier.checkpoints):
            raise UserError(
                f"run {folder.path.name} keeps its checkpoints in {earlier.checkpoints or folder.checkpoints}, and "
                f"resources.checkpoints is {spec.resources.checkpoints!r}; leave it out to continue the run, or start again "
                "with --fresh"
            )
        for name in _BEFORE_OUTCOME:
            (folder.path / name).unlink(missing_ok=True)
        if not earlier:
            folder.write_json(SPEC, resolved or spec.to_dict())
            folder.write_json("skipped.json", {clip.clip_id: clip.reason for clip in source.skipped})
        # The driver's device is a guess until rank 0 names the one that trains; a later start does not guess again.
        note_start(folder, {key: value for key, value in made_by.items() if key != DEVICE})
        first_tags = {
            **made_by,
            "starlab.spec_hash": folder.path.name.rpartition("-")[2],
            FINGERPRINT: source.fingerprint,
            "starlab.selected_by": "test (optimistic)" if spec.data.select == "test" else spec.data.select,
        }
        info = RunInfo(
            run_id=folder.path.name,
            key=key,
            created=earlier.created if earlier else datetime.now(UTC).isoformat(),
            tags={**(earlier.tags if earlier else first_tags), **tags},
            checkpoints=earlier.checkpoints if earlier else checkpoints,
            experiment=spec.name,
            mlflow_experiment=spec.tracking.experiment or spec.name,
            tracking_uri=without_password(spec.tracking.address(runs)),
            runs=str(runs),
            parent=str(parent.path) if parent else None,
            status="RUNNING",
            driver=this_process(),
        )
        folder.write_json(RunInfo.FILE, folder.read_json(RunInfo.FILE) | plain(info))  # keeps the keys of a newer starlab
    return info


def close_run(folder: RunFolder, status: Status, tags: Mapping[str, str] = MappingProxyType({})) -> RunInfo:
    """Record how a run ended, and add `tags` to it. Returns the new record."""

    def close(run: RunInfo) -> RunInfo:
        if run.driver is not None and run.driver != this_process():
            return run  # another process has taken the run over, and says itself how it ends
        more = {"starlab.ended_early": "true"} if folder.ended_early else {}
        if (looks := folder.looks_at_test()) > 1:  # evaluated by hand before the run ended
            more["starlab.test_looks"] = str(looks)
        return replace(run, status=status, tags={**run.tags, **more, **tags})

    return folder.update(RunInfo, close)


def close_abandoned(runs: Path) -> list[RunFolder]:
    """Mark the runs and trials under `runs` whose driver died as KILLED, and return them.

    A driver on this machine is dead if its process has ended. A driver on another machine cannot be observed; it counts as
    dead ten minutes after its lease has expired. A run whose record cannot be read is left unchanged.
    """
    closed = []
    found = sorted([*runs.glob(f"*/{RunInfo.FILE}"), *runs.glob(f"*/trials/*/{RunInfo.FILE}")])
    infos, _ = read_infos(RunFolder(path.parent) for path in found)
    for folder, run in infos.items():
        if _is_abandoned(folder, run):
            with suppress(OSError, DamagedRecordError):  # set aside, read-only or damaged in the meantime
                if folder.update(RunInfo, partial(_close_if_abandoned, folder)).status == "KILLED":
                    closed.append(folder)
    return closed


def _close_if_abandoned(folder: RunFolder, run: RunInfo) -> RunInfo:
    """Look again under the lock: the run may have ended, or another process may have taken it up."""
    if run.driver is None or not _is_abandoned(folder, run):
        return run
    now = datetime.now(UTC).isoformat(timespec="seconds")
    tag = {"starlab.interrupted": f"process {run.driver.pid} on {run.driver.host} was gone at {now}"}
    return replace(run, status="KILLED", tags={**run.tags, **tag})


def _is_abandoned(folder: RunFolder, run: RunInfo) -> bool:
    driver = run.driver
    return run.status == "RUNNING" and driver is not None and (is_dead(driver) or _lease_is_over(folder, driver))


def _lease_is_over(folder: RunFolder, driver: ProcessId) -> bool:
    """Return whether the lease of a driver on another machine expired longer ago than clock differences could explain."""
    if driver.machine == this_machine():
        return False
    try:
        lease = folder.read(LeaseState)
    except DamagedRecordError:
        return False
    return lease is not None and time.time() > lease.renewed + lease.seconds + _CLOCKS_DIFFER_SECONDS
