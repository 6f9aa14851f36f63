"""The files of a run on disk. Everything else (MLflow, tables, figures) can be rebuilt from them.

runs/demo-1a2b3c4d/
  spec.json  run.json        the resolved spec; the run's status, code version and driver process
  journal.jsonl              every metric; journal.differences.jsonl: values that a replay computed differently
  journal.system.jsonl       CPU, memory and GPUs of the driver's machine; journal.system.node-N.jsonl: of a worker's
  events.jsonl               notable events, by the driver; events.rank-N.jsonl: by a rank (see events.py)
  provenance.jsonl           code, libraries and device of each start that differ from those of the start before
  checkpoints/               see checkpoint.py
  result.json                final result: test metrics, confusion matrix
  outcome.json               how the last attempt ended: finished, stopped or preempted
  unreadable.json            clips that could not be read
  preempt.json               the driver's request to end; end_early.json: a search's (see end_request.py)
  artifacts/                 figures, tables, the model, predictions, and later evaluations
  mlflow.json                what was already sent to MLflow

The JSON files hold the typed records of records.py; `spec.json` holds the resolved spec.
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
from starlab.platform.runs.records import DamagedRecordError, R, Result, RunInfo, parse, parse_json, plain

SPEC = "spec.json"
MODEL = "model"
"""Name of the model's folder inside a run's artifacts (see serving/registry.py)."""
_SET_ASIDE = ".until-"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run."""

    path: Path

    # ------------------------------------------------------------------ records

    def read(self, kind: type[R]) -> R | None:
        """Read a record of this run. Returns None if its file does not exist.

        Raises:
            DamagedRecordError: The file exists and does not hold a valid record of this kind.
        """
        path = self.path / kind.FILE
        try:
            return parse(kind, path.read_bytes(), path)
        except FileNotFoundError:
            return None

    def require(self, kind: type[R]) -> R:
        """Read a record that must exist.

        Raises:
            DamagedRecordError: The record is missing or damaged.
        """
        record = self.read(kind)
        if record is None:
            raise DamagedRecordError(f"{self.path / kind.FILE} is missing, so {self.path} is not a whole run")
        return record

    def write(self, record: Any) -> None:
        """Replace a record atomically."""
        self.write_json(record.FILE, plain(record))

    def update(self, kind: type[R], change: Callable[[R], R]) -> R:
        """Read a record, apply `change` and write it back, under a lock between processes. Returns the new record.

        Keys of the file that this version does not know are kept.
        """
        with file_lock(self.path / f".{kind.FILE}.lock"):
            record = change(self.require(kind))
            self.write_json(kind.FILE, self.read_json(kind.FILE) | plain(record))
        return record

    def remove(self, kind: type[R]) -> None:
        """Delete a record if it exists."""
        (self.path / kind.FILE).unlink(missing_ok=True)

    @property
    def info(self) -> RunInfo:
        """The record in `run.json`, which every run has."""
        return self.require(RunInfo)

    @property
    def result(self) -> Result | None:
        """The record in `result.json`, or None while the run has not finished."""
        return self.read(Result)

    def write_json(self, name: str, value: Any) -> None:
        """Replace a JSON file of this run atomically: a reader sees the old or the new content, never a part."""
        self.path.mkdir(parents=True, exist_ok=True)
        draft = self.path / f".{name}.{uuid.uuid4().hex[:8]}"
        try:
            with draft.open("w") as file:
                file.write(json.dumps(value, indent=1, sort_keys=True))
                file.flush()
                os.fsync(file.fileno())  # an empty file after a power failure would be worse than none
            draft.replace(self.path / name)
        except BaseException:  # Ctrl-C included
            draft.unlink(missing_ok=True)
            raise

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of this run as a plain dict. Returns an empty dict if it does not exist.

        Raises:
            DamagedRecordError: The file is not a JSON object.
        """
        try:
            return parse_json((self.path / name).read_bytes(), self.path / name)
        except FileNotFoundError:
            return {}

    # ------------------------------------------------------------------ checkpoints

    @property
    def checkpoints(self) -> Path:
        """Default folder of the checkpoints, used unless the spec sets `resources.checkpoints`."""
        return self.path / "checkpoints"

    @property
    def stored_checkpoints(self) -> Folder:
        """The storage that holds this run's checkpoints, as fixed when the run was created."""
        info = self.read(RunInfo)
        return Folder((info.checkpoints if info else None) or self.checkpoints)

    def place_checkpoints(self, wanted: str | None, key: str) -> str | None:
        """Return a folder under `wanted` that only this run uses for its checkpoints, or None to use the run's own folder.

        Args:
            wanted: Value of `resources.checkpoints`: a path, a URI or None.
            key: The run's key. It tells apart runs of the same name.

        Raises:
            UserError: `wanted` cannot be opened, for example because its URI scheme is unknown.
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
        """Folder of the run's figures, tables, model and predictions."""
        return self.path / "artifacts"

    @property
    def ended_early(self) -> bool:
        """Whether the run was asked to end and ended before its last step."""
        result = self.result
        return result is not None and result.ended_early

    def looks_at_test(self) -> int:
        """Return how often this run's test part was evaluated, by the run itself and by `starlab evaluate`."""
        result = self.result
        own = result is not None and result.test is not None
        return own + len(list((self.artifacts / "evaluations").glob("test-*/metrics.json")))

    def trials(self) -> list[RunFolder]:
        """Return the runs of a search's trials. The list is empty for any other run."""
        return [RunFolder(path.parent) for path in sorted(self.path.glob(f"trials/*/{RunInfo.FILE}"))]

    def set_aside(self) -> Path:
        """Rename the folder so that a new run can take its name, and return the new path. Nothing is deleted."""
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
        return self.path.rename(self.path.with_name(f"{self.path.name}{_SET_ASIDE}{stamp}"))


def runs_folder(runs: str | Path | None = None) -> Path:
    """Return the absolute path of the runs folder: the argument, else STARLAB_RUNS, else ./runs."""
    return Path(runs or os.environ.get("STARLAB_RUNS") or "runs").expanduser().resolve()


def read_infos(folders: Iterable[RunFolder]) -> tuple[dict[RunFolder, RunInfo], list[DamagedRecordError]]:
    """Read the `run.json` of each run, in order. Returns the records, and an error for each that cannot be read."""
    infos: dict[RunFolder, RunInfo] = {}
    damaged: list[DamagedRecordError] = []
    for folder in folders:
        try:
            infos[folder] = folder.info
        except DamagedRecordError as error:
            damaged.append(error)
        except OSError as error:
            damaged.append(DamagedRecordError(f"{folder.path / RunInfo.FILE} cannot be read: {error}"))
    return infos, damaged


def find_run(runs: Path, name: str, complain: Callable[[str], None]) -> RunFolder:
    """Find the one run, search or ablation that `name` means.

    Raises:
        UserError, DamagedRecordError: As `find_runs`; also if there are several.
    """
    folders = find_runs(runs, name, complain)
    if len(folders) > 1:
        listed = ", ".join(folder.path.name for folder in folders[-8:])
        raise UserError(f"'{name}' means {len(folders)} runs; name one of them: {listed}")
    return folders[0]


def find_runs(runs: Path, name: str, complain: Callable[[str], None]) -> list[RunFolder]:
    """Find the run or trial called `name`, or else all runs of the experiment `name`, oldest first.

    Args:
        complain: Called with a line for each other run that is skipped because its `run.json` cannot be read.

    Raises:
        UserError: No run, trial or experiment has this name.
        DamagedRecordError: The run called `name` cannot be read.
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
    current = [
        folder for folder in infos if _SET_ASIDE not in folder.path.name
    ]  # set-aside runs are found only by their own name
    chosen = [folder for folder in current if infos[folder].experiment == name]
    if not chosen:
        known = sorted(folder.path.name for folder in folders)
        listed = ", ".join(known[-8:]) if known else "none yet; start one with: starlab demo"
        raise UserError(f"no run or experiment '{name}' under {runs}. Runs there: {listed}")
    return sorted(chosen, key=lambda folder: infos[folder].created)
