"""The typed records of a run's folder: what crosses a process or survives on disk, one JSON file each.

A record is a frozen dataclass that names its file. Readers ignore keys that they do not know, so the folder of an older or
a newer starlab opens; a record that cannot be read is named with its file and what is wrong.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from starlab.platform.errors import UserError

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
"""How a run stands, in MLflow's words; KILLED is a run that was asked to end, or whose driver died."""


class DamagedRecordError(UserError):
    """A record of a run cannot be read; the message names its file."""


class Record(Protocol):
    """A dataclass that is stored as one JSON file of a run's folder."""

    FILE: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]


R = TypeVar("R", bound=Record)


def _absent() -> Any:
    """A field that is left out of the file while it is None."""
    return field(default=None, metadata={"omit_none": True})


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessId:
    """Identifies a process for ever: a later process with the same number started at another tick."""

    host: str
    pid: int
    started: int | None
    """Clock ticks from boot to the process's start."""
    machine: str = ""
    """Boot id and process-number space. Containers of one host may share its name, but not its processes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInfo:
    """What a run is, who drives it and how it stands."""

    FILE: ClassVar[str] = "run.json"
    run_id: str
    key: str
    """A random name that no other run has; MLflow's run is found by it."""
    experiment: str
    mlflow_experiment: str
    tracking_uri: str
    """Without its password."""
    runs: str
    """The folder of runs."""
    status: Status
    tags: dict[str, str]
    created: str = ""
    """ISO 8601, UTC."""
    parent: str | None = None
    """The folder of the search that the run belongs to."""
    checkpoints: str | None = None
    """Where its checkpoints are, if not in its own folder."""
    driver: ProcessId | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """How a run ended that reached its end: the metrics of its best checkpoint."""

    FILE: ClassVar[str] = "result.json"
    steps: int
    """Optimizer steps done; fewer than `total_steps` where a search ended the trial early."""
    total_steps: int
    best_step: int
    selected_by: str
    """The part that picked the best checkpoint: "validation" or "test"."""
    classes: tuple[str, ...]
    val: dict[str, float]
    """Metrics of the selection part at `best_step`."""
    precision: str | None = None
    test: dict[str, float] | None = _absent()
    """Metrics of the test part; None where the run did not evaluate it."""
    test_clips: int | None = _absent()
    confusion: list[list[int]] | None = _absent()
    """Test clips by true class (rows) and predicted class (columns)."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Reason by clip id."""

    @property
    def ended_early(self) -> bool:
        """Whether the run was asked to end before its last step."""
        return self.steps < self.total_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How one attempt ended, as rank 0 tells the driver. Without one, the workers failed or do not share the folder."""

    FILE: ClassVar[str] = "outcome.json"
    kind: Literal["finished", "stopped", "preempted"]
    """"finished": `result.json` is written. "stopped": training again would end the same way. "preempted": it was asked to."""
    step: int
    reason: str = ""
    kept: str = ""
    """For "preempted": which checkpoint the run goes on from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EndRequest:
    """Asks a training to write a checkpoint and end."""

    FILE: ClassVar[str] = "preempt.json"
    reason: str
    signal: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyEnd:
    """Asks a trial of a search to end at its next point of the curve, with a result."""

    FILE: ClassVar[str] = "end_early.json"
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseState:
    """Which process may write to a run's folder (see lease.py)."""

    FILE: ClassVar[str] = "lease.json"
    fence: int
    """Grows by one with every lease."""
    owner: ProcessId
    renewed: float
    """Seconds since 1970."""
    seconds: float
    """How long it holds without being renewed."""
    released: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class BadSteps:
    """Steps that a restarted run skips because their loss was not finite before a roll-back."""

    FILE: ClassVar[str] = "bad_steps.json"
    left_out: tuple[int, ...] = ()
    rollbacks: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """What "auto" in the spec became for this run; a resumed run keeps it."""

    FILE: ClassVar[str] = "choices.json"
    precision: str


@dataclass(kw_only=True, slots=True)
class MlflowState:
    """What MLflow has of a run already."""

    FILE: ClassVar[str] = "mlflow.json"
    uri: str
    """Without its password."""
    run_id: str
    status: str = "RUNNING"
    offsets: dict[str, int] = field(default_factory=dict)
    """Bytes sent of each journal, by file name."""
    artifacts: dict[str, int] = field(default_factory=dict)
    """Modification time of each artifact when it was sent, in ns."""
    tags: dict[str, str] = field(default_factory=dict)
    model_version: str | None = _absent()


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A finished trial of a search."""

    run: str
    values: dict[str, Any]
    """Its point of the space, by dotted key."""
    val_top1: float
    epochs: int
    """Epochs reached."""
    whole: bool
    """Whether it reached its last epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSummary:
    """The end of a search."""

    FILE: ClassVar[str] = "search.json"
    trials: tuple[Trial, ...]
    """Best first."""
    best: str
    """Run id of the best trial."""
    test_top1: float


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRecord:
    """One evaluation by hand, in a folder of its own under `artifacts/evaluations`."""

    FILE: ClassVar[str] = "metrics.json"
    part: str
    step: int
    look_at_test: int
    """The number of this evaluation among all of the run's test part; 0 for the validation part."""
    time: str
    """ISO 8601, UTC."""
    clips: int
    unreadable: dict[str, str]
    metrics: dict[str, float]
    per_class: dict[str, float]
    confusion: list[list[int]]
    classes: tuple[str, ...]


def plain(record: Record) -> dict[str, Any]:
    """The record in plain JSON types."""
    values = dataclasses.asdict(record)
    omitted = {f.name for f in fields(record) if f.metadata.get("omit_none") and values[f.name] is None}
    return {name: value for name, value in values.items() if name not in omitted}


def parse(kind: type[R], text: str, path: Path) -> R:
    """The record in a file's text.

    Raises:
        DamagedRecordError: it is not JSON, or a value is missing or of the wrong type.
    """
    try:
        record: R = _adapter(kind).validate_python(parse_json(text, path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DamagedRecordError(_damage(path, f"{place}: {first['msg']}" if place else first["msg"])) from None
    return record


def parse_json(text: str, path: Path) -> dict[str, Any]:
    """The mapping in a JSON file's text.

    Raises:
        DamagedRecordError: it is none.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        says = "it is empty" if not text.strip() else f"it is not whole JSON ({error})"
        raise DamagedRecordError(_damage(path, says)) from None
    if not isinstance(value, dict):
        raise DamagedRecordError(_damage(path, "it holds no mapping"))
    return value


@functools.cache  # making one takes a thousand times as long as using it
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _damage(path: Path, says: str) -> str:
    return f"{path} is damaged: {says}; restore it, or move its folder {path.parent.name} out of the runs folder"
