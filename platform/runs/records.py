"""Typed records of a run's folder: data that processes exchange or that stays on disk, one JSON file each.

A record is a dataclass that names its file. Readers ignore unknown keys, so the folder of an older or newer starlab can be
read. The error for a damaged record names the file and the damage.
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
from starlab.platform.runs.calibration import Calibration

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
"""Status of a run, in MLflow's terms. KILLED means that the run was asked to end or that its driver died."""


class DamagedRecordError(UserError):
    """A record of a run is missing or cannot be read. The message names the file."""


class Record(Protocol):
    """A dataclass that is stored as one JSON file in a run's folder."""

    FILE: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]


R = TypeVar("R", bound=Record)


def _absent() -> Any:
    """Declare a field that is omitted from the file while it is None."""
    return field(default=None, metadata={"omit_none": True})


FINGERPRINT = "starlab.data_fingerprint"
"""Tag of a run that holds the fingerprint of its data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessId:
    """Unique identity of a process. A later process with the same PID has another start time."""

    host: str
    pid: int
    started: int | None
    """Clock ticks from boot to the process's start."""
    machine: str = ""
    """Boot id and PID namespace. Containers of one host may share its name but not its processes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInfo:
    """Identity, driver and status of a run."""

    FILE: ClassVar[str] = "run.json"
    run_id: str
    key: str
    """A random unique name, by which the MLflow run is found."""
    experiment: str
    mlflow_experiment: str
    tracking_uri: str
    """Address of the tracking server, without its password."""
    runs: str
    """The folder of runs."""
    status: Status
    tags: dict[str, str]
    created: str = ""
    """Time of creation, ISO 8601, UTC."""
    parent: str | None = None
    """Folder of the search that the run belongs to."""
    checkpoints: str | None = None
    """Folder or URI of the checkpoints if they are not in the run's own folder."""
    driver: ProcessId | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """Result of a run that reached its end: the metrics of its best checkpoint."""

    FILE: ClassVar[str] = "result.json"
    steps: int
    """Optimizer steps done; fewer than `total_steps` if a search ended the trial early."""
    total_steps: int
    best_step: int
    selected_by: str
    """The part that selected the best checkpoint: "validation" or "test"; "last" if the weights of the last step count."""
    classes: tuple[str, ...]
    val: dict[str, float]
    """Metrics of the selection part at `best_step`; empty if nothing was held out."""
    precision: str | None = None
    epochs: int | None = _absent()
    """Last epoch that was evaluated."""
    test: dict[str, float] | None = _absent()
    """Metrics of the test part; None if the run did not evaluate it."""
    test_clips: int | None = _absent()
    confusion: list[list[int]] | None = _absent()
    """Number of test clips by true class (row) and predicted class (column)."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Why a clip could not be read, by clip id."""
    not_official: str | None = _absent()
    """How the number of clips differs from the official one; None if it does not, or if nobody published any."""
    clip_frames: int | None = _absent()
    """Median number of frames of a training clip, which is how much of a video one prediction should cover."""
    calibration: Calibration | None = _absent()
    """None if no validation part was held out."""

    @property
    def ended_early(self) -> bool:
        """Whether the run was asked to end before its last step."""
        return self.steps < self.total_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How one attempt ended, reported by rank 0 to the driver. If missing, the workers failed or do not share the folder."""

    FILE: ClassVar[str] = "outcome.json"
    kind: Literal["finished", "stopped", "preempted"]
    """"finished": `result.json` is written. "stopped": another attempt would fail the same way. "preempted": asked to end."""
    step: int
    reason: str = ""
    kept: str = ""
    """For "preempted": the checkpoint from which the run continues."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerNodes:
    """Where the workers of a training run, written by rank 0 when all have started."""

    FILE: ClassVar[str] = "workers.json"
    nodes: tuple[str, ...]
    """Ray's id of the node of each rank."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EndRequest:
    """Request that a training write a checkpoint and end."""

    FILE: ClassVar[str] = "preempt.json"
    reason: str
    signal: int
    resize: bool = False
    """Whether the driver itself asks, to go on from that checkpoint with another number of workers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyEnd:
    """Request that a trial of a search end at its next point of the curve, with a result."""

    FILE: ClassVar[str] = "end_early.json"
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseState:
    """The process that may write to a run's folder (see lease.py)."""

    FILE: ClassVar[str] = "lease.json"
    fence: int
    """Number of the lease; it grows by one with every lease."""
    owner: ProcessId
    renewed: float
    """Time of the last renewal, in seconds since 1970."""
    seconds: float
    """Seconds after which the lease expires unless it is renewed."""
    released: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class BadSteps:
    """Steps that a restarted run skips because their loss was not finite before a roll-back."""

    FILE: ClassVar[str] = "bad_steps.json"
    left_out: tuple[int, ...] = ()
    rollbacks: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """Values chosen for "auto" settings of the spec. A resumed run keeps them."""

    FILE: ClassVar[str] = "choices.json"
    precision: str


@dataclass(frozen=True, kw_only=True, slots=True)
class InitialWeights:
    """The weights of another model that a run started from. They are kept in the run's folder, as `initial.safetensors`."""

    FILE: ClassVar[str] = "initial.json"
    origin: str
    """Name of the model, as `train.init_from` gave it."""
    digest: str
    taken: tuple[str, ...]
    """Names of the weights that the run started from."""
    new: dict[str, str]
    """Why a weight of the run's model started new, by name."""
    unused: tuple[str, ...]
    """Names of the other model's weights that this model does not have."""


@dataclass(kw_only=True, slots=True)
class MlflowState:
    """The parts of a run that were already sent to MLflow."""

    FILE: ClassVar[str] = "mlflow.json"
    uri: str
    """Address of the tracking server, without its password."""
    run_id: str
    status: str = "RUNNING"
    offsets: dict[str, int] = field(default_factory=dict)
    """Number of bytes sent of each journal, by file name."""
    artifacts: dict[str, int] = field(default_factory=dict)
    """Modification time in ns of each artifact when it was sent, by path."""
    tags: dict[str, str] = field(default_factory=dict)
    model_id: str | None = _absent()
    """Id of the logged model that holds the best weights."""
    model_version: str | None = _absent()


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRecord:
    """One evaluation by `starlab evaluate`, in its own folder under `artifacts/evaluations`."""

    FILE: ClassVar[str] = "metrics.json"
    part: str
    step: int
    look_at_test: int
    """Position of this evaluation among all evaluations of the run's test part, from 1; 0 for the validation part."""
    time: str
    """Time of the evaluation, ISO 8601, UTC."""
    clips: int
    unreadable: dict[str, str]
    metrics: dict[str, float]
    per_class: dict[str, float]
    confusion: list[list[int]]
    classes: tuple[str, ...]
    joint_noise: tuple[float, float] | None = _absent()
    """`data.joint_jitter_px` and `data.joint_drop` of the evaluation; None in older files."""


def plain(record: Record) -> dict[str, Any]:
    """Convert a record to plain JSON types."""
    values = dataclasses.asdict(record)
    omitted = {f.name for f in fields(record) if f.metadata.get("omit_none") and values[f.name] is None}
    return {name: value for name, value in values.items() if name not in omitted}


def parse(kind: type[R], text: bytes, path: Path) -> R:
    """Parse the text of a file as a record.

    Args:
        kind: Class of the record.
        path: The file, for the error message.

    Raises:
        DamagedRecordError: The text is not JSON, or a value is missing or has the wrong type.
    """
    try:
        record: R = _adapter(kind).validate_python(parse_json(text, path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DamagedRecordError(_damage(path, f"{place}: {first['msg']}" if place else first["msg"])) from None
    return record


def parse_json(text: bytes, path: Path) -> dict[str, Any]:
    """Parse the text of a file as a JSON object.

    Raises:
        DamagedRecordError: The text is not a JSON object.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        says = "it is empty" if not text.strip() else f"it is not whole JSON ({error})"
        raise DamagedRecordError(_damage(path, says)) from None
    if not isinstance(value, dict):
        raise DamagedRecordError(_damage(path, "it does not hold a JSON object"))
    return value


@functools.cache  # creating an adapter takes a thousand times as long as using it
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _damage(path: Path, says: str) -> str:
    return f"{path} is damaged: {says}; restore it, or move its folder {path.parent.name} out of the runs folder"
