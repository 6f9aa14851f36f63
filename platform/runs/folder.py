"""What a run leaves on disk; everything else (MLflow, tables, figures) can be made from it again.

runs/demo-1a2b3c4d/
  spec.json  run.json        what was asked, and by which code and machine
  journal.jsonl              every metric; journal.differences.jsonl: values that a replay computed differently
  journal.system.jsonl       CPU, memory and GPUs of the driver's machine; journal.system.node-N.jsonl: of a worker's
  events.jsonl               what happened besides, by the driver; events.rank-N.jsonl: by a rank (see events.py)
  provenance.jsonl           code, libraries and device of each start that differ from those of the start before
  checkpoints/               see checkpoint.py
  result.json                the end: test metrics, confusion matrix
  outcome.json               how the last attempt ended: finished, stopped or preempted
  unreadable.json            clips that could not be read
  end_early.json             a search asks this trial to end itself
  artifacts/                 figures and tables of this run, its model, the predictions, evaluations by hand
  mlflow.json                what MLflow has of it already

The JSON files are the typed records of records.py; `spec.json` is the resolved spec.
"""

from __future__ import annotations

import glob
import json
import os
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlab.pipelines.storage import Folder, below
from starlab.platform.errors import UserError
from starlab.platform.runs.locking import file_lock
from starlab.platform.runs.records import DamagedRecordError, EarlyEnd, R, Result, RunInfo, parse, parse_json, plain

SPEC = "spec.json"
MODEL = "model"
"""Name of the model's folder among a run's artifacts (see serving/registry.py)."""
_SET_ASIDE = ".until-"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run."""

    path: Path

    # ------------------------------------------------------------------ records

    def read(self, kind: type[R]) -> R | None:
        """A record of this run; None where it has none.

        Raises:
            DamagedRecordError: the file is there and cannot be read as such a record.
        """
        path = self.path / kind.FILE
        try:
            return parse(kind, path.read_text(), path)
        except FileNotFoundError:
            return None

    def require(self, kind: type[R]) -> R:
        """A record that must be there.

        Raises:
            DamagedRecordError: it is missing or cannot be read.
        """
        record = self.read(kind)
        if record is None:
            raise DamagedRecordError(f"{self.path / kind.FILE} is missing, so {self.path} is not a whole run")
        return record

    def write(self, record: Any) -> None:
        """Replace a record in one step."""
        self.write_json(record.FILE, plain(record))

    def update(self, kind: type[R], change: Callable[[R], R]) -> R:
        """Change a record that several processes change: read, change and write under a lock. Returns the new record.

        Keys that this version does not know are kept.
        """
        with file_lock(self.path / f".{kind.FILE}.lock"):
            record = change(self.require(kind))
            self.write_json(kind.FILE, self.read_json(kind.FILE) | plain(record))
        return record

    def remove(self, kind: type[R]) -> None:
        """Delete a record, if it is there."""
        (self.path / kind.FILE).unlink(missing_ok=True)

    @property
    def info(self) -> RunInfo:
        """`run.json`, which every run has."""
        return self.require(RunInfo)

    @property
    def result(self) -> Result | None:
        """`result.json`; None while the run has not reached its end."""
        return self.read(Result)

    def write_json(self, name: str, value: Any) -> None:
        """Replace a JSON file of this run in one step: a reader sees the old or the new, never half."""
        self.path.mkdir(parents=True, exist_ok=True)
        draft = self.path / f".{name}.{uuid.uuid4().hex[:8]}"
        try:
            with draft.open("w") as file:
                file.write(json.dumps(value, indent=1, sort_keys=True))
                file.flush()
                os.fsync(file.fileno())  # an empty file after a power failure would be worse than none
            draft.replace(self.path / name)
        except OSError:
            draft.unlink(missing_ok=True)
            raise

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of this run as it is; empty when there is none.

        Raises:
            DamagedRecordError: it cannot be read.
        """
        try:
            return parse_json((self.path / name).read_text(), self.path / name)
        except FileNotFoundError:
            return {}

    # ------------------------------------------------------------------ checkpoints

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go, unless the spec says otherwise."""
        return self.path / "checkpoints"

    @property
    def stored_checkpoints(self) -> Folder:
        """The storage of this run's checkpoints, here or where its spec said when it was new."""
        info = self.read(RunInfo)
        return Folder((info.checkpoints if info else None) or self.checkpoints)

    def place_checkpoints(self, wanted: str | None, key: str) -> str | None:
        """A new run's own folder for checkpoints under `wanted`, which no other run shares; None for the run's folder.

        Raises:
            UserError: `wanted` is an address that nothing here can open.
        """
        if wanted is None:
            return None
        place = wanted if "://" in wanted else str(Path(wanted).expanduser().resolve())
        try:
            Folder(place)
        except (ValueError, OSError) as error:
            raise UserError(f"resources.checkpoints is {wanted!r}, which cannot be opened: {error}") from None
        return below(place, f"{self.path.name}-{key[:8]}")

    # ------------------------------------------------------------------ trials and evaluations

    @property
    def artifacts(self) -> Path:
        """Where figures and tables go."""
        return self.path / "artifacts"

    def ask_to_end(self, reason: str) -> None:
        """Ask the run that trains here to end at its next point of the curve; only a trial of a search obeys."""
        self.write(EarlyEnd(reason=reason))

    @property
    def asked_to_end(self) -> bool:
        """Whether `ask_to_end` was called."""
        return (self.path / EarlyEnd.FILE).exists()

    @property
    def ended_early(self) -> bool:
        """Whether the run ended because it was asked to, before its last step."""
        result = self.result
        return result is not None and result.ended_early

    def looks_at_test(self) -> int:
        """How often this run's test part was evaluated, by the run itself or by hand."""
        result = self.result
        own = result is not None and result.test is not None
        return own + len(list((self.artifacts / "evaluations").glob("test-*/metrics.json")))

    def trials(self) -> list[RunFolder]:
        """The runs of a search's trials; none for any other run."""
        return [RunFolder(path.parent) for path in sorted(self.path.glob(f"trials/*/{RunInfo.FILE}"))]

    def set_aside(self) -> Path:
        """Rename the folder so that a fresh run can take its name; nothing is deleted."""
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
        return self.path.rename(self.path.with_name(f"{self.path.name}{_SET_ASIDE}{stamp}"))


def runs_folder(runs: str | Path | None = None) -> Path:
    """Where runs are kept: the argument, else STARLAB_RUNS, else ./runs; absolute."""
    return Path(runs or os.environ.get("STARLAB_RUNS") or "runs").expanduser().resolve()


def read_infos(folders: Iterable[RunFolder]) -> tuple[dict[RunFolder, RunInfo], list[DamagedRecordError]]:
    """The `run.json` of each run, in order, and the complaints about those that cannot be read."""
    infos: dict[RunFolder, RunInfo] = {}
    damaged: list[DamagedRecordError] = []
    for folder in folders:
        try:
            infos[folder] = folder.info
        except DamagedRecordError as error:
            damaged.append(error)
    return infos, damaged


def find_runs(runs: Path, name: str, complain: Callable[[str], None] = lambda _: None) -> list[RunFolder]:
    """The run or the trial called `name`, or else every run of the experiment `name`, oldest first.

    Args:
        complain: gets a line for each other run whose `run.json` cannot be read; it is skipped.

    Raises:
        UserError: there is none.
        DamagedRecordError: the run called `name` cannot be read.
    """
    if (runs / name / RunInfo.FILE).is_file():
        named = RunFolder(runs / name)
        named.require(RunInfo)
        return [named]
    trials = sorted(runs.glob(f"*/trials/{glob.escape(name)}/{RunInfo.FILE}"))
    if trials:
        return [RunFolder(path.parent) for path in trials]
    folders = [RunFolder(path.parent) for path in sorted(runs.glob(f"*/{RunInfo.FILE}"))]
    infos, damaged = read_infos(folders)
    for error in damaged:
        complain(f"skipped  {error}")
    current = [folder for folder in infos if _SET_ASIDE not in folder.path.name]  # the others count when they are named
    chosen = [folder for folder in current if infos[folder].experiment == name]
    if not chosen:
        known = sorted(folder.path.name for folder in folders)
        listed = ", ".join(known[-8:]) if known else "none yet; start one with: starlab demo"
        raise UserError(f"no run or experiment '{name}' under {runs}. Runs there: {listed}")
    return sorted(chosen, key=lambda folder: infos[folder].created)
