"""What a run leaves on disk; everything else (MLflow, tables, figures) can be made from it again.

runs/demo-1a2b3c4d/
  spec.json  run.json        what was asked, and by which code and machine
  journal.jsonl              every metric; journal.differences.jsonl: values that a replay computed otherwise
  journal.system.jsonl       CPU, memory and GPUs of the driver's machine; journal.system.node-N.jsonl: of a worker's
  checkpoints/               see checkpoint.py
  result.json                the end: test metrics, confusion matrix  (or stopped.json: why there is none)
  unreadable.json            clips that could not be read
  end_early.json             a search asks this trial to end itself
  artifacts/                 figures and tables of this run, its model, the predictions, evaluations by hand
  mlflow.json                what of this MLflow has got already
"""

from __future__ import annotations

import glob
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlab.pipelines.storage import Folder, below
from starlab.platform.errors import UserError

_SET_ASIDE = ".until-"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go, unless the spec says otherwise."""
        return self.path / "checkpoints"

    @property
    def stored_checkpoints(self) -> Folder:
        """The place of this run's checkpoints, here or where its spec said when it was new."""
        return Folder(self.read_json("run.json").get("checkpoints") or self.checkpoints)

    def place_checkpoints(self, wanted: str | None, key: str) -> str | None:
        """A new run's folder for checkpoints under `wanted`: no other run's, whatever its name; None for the run's own.

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

    @property
    def artifacts(self) -> Path:
        """Where figures and tables go."""
        return self.path / "artifacts"

    def write_json(self, name: str, value: Any) -> None:
        """Replace a file of this run in one step: a reader sees the old or the new, never half."""
        self.path.mkdir(parents=True, exist_ok=True)
        draft = self.path / f".{name}.{os.getpid()}"
        with draft.open("w") as file:
            file.write(json.dumps(value, indent=1, sort_keys=True))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path / name)

    def read_json(self, name: str) -> dict[str, Any]:
        """A file of this run; empty when there is none."""
        try:
            value: dict[str, Any] = json.loads((self.path / name).read_text())
        except FileNotFoundError:
            return {}
        return value

    def ask_to_end(self, reason: str) -> None:
        """Ask the run that trains here to end at its next point of the curve; only a trial of a search listens."""
        self.write_json("end_early.json", {"reason": reason})

    @property
    def asked_to_end(self) -> bool:
        """Whether somebody has asked."""
        return (self.path / "end_early.json").exists()

    @property
    def ended_early(self) -> bool:
        """Whether the run ended because it was asked to, before its last step."""
        result = self.read_json("result.json")
        return bool(result) and result["steps"] < result["total_steps"]

    def looks_at_test(self) -> int:
        """How often this run's test part was looked at, by the run itself or by hand."""
        own = "test" in self.read_json("result.json")
        return own + len(list((self.artifacts / "evaluations").glob("test-*/metrics.json")))

    def trials(self) -> list[RunFolder]:
        """The runs of a search's trials; none in any other run."""
        return [RunFolder(path.parent) for path in sorted(self.path.glob("trials/*/run.json"))]

    def set_aside(self) -> Path:
        """Rename the folder so that a fresh run can take its name; nothing is deleted."""
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
        return self.path.rename(self.path.with_name(f"{self.path.name}{_SET_ASIDE}{stamp}"))


def runs_folder(runs: str | Path | None = None) -> Path:
    """Where runs live: the argument, else STARLAB_RUNS, else ./runs; absolute."""
    return Path(runs or os.environ.get("STARLAB_RUNS") or "runs").expanduser().resolve()


def find_runs(runs: Path, name: str) -> list[RunFolder]:
    """The run or the trial called `name`, or else every run of the experiment `name`, oldest first.

    Raises:
        UserError: there is none.
    """
    if (runs / name / "run.json").is_file():
        return [RunFolder(runs / name)]
    trials = sorted(runs.glob(f"*/trials/{glob.escape(name)}/run.json"))
    if trials:
        return [RunFolder(path.parent) for path in trials]
    folders = [RunFolder(path.parent) for path in runs.glob("*/run.json")]
    current = [folder for folder in folders if _SET_ASIDE not in folder.path.name]  # the others count when they are named
    chosen = [folder for folder in current if folder.read_json("run.json").get("experiment") == name]
    if not chosen:
        known = sorted(folder.path.name for folder in folders)
        listed = ", ".join(known[-8:]) if known else "none yet; start one with: starlab demo"
        raise UserError(f"no run or experiment '{name}' under {runs}. Runs there: {listed}")
    return sorted(chosen, key=lambda folder: str(folder.read_json("run.json")["created"]))
