"""Fixtures for small trainings with an injected fault, and for measuring the recovery."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from tiny import TINY

from starlab.experiments.spec import Spec, load_spec
from starlab.pipelines.generated.penn_action import write_penn_action
from starlab.platform import attempt
from starlab.platform.cluster.connect import Cluster
from starlab.platform.runs.checkpoint import Checkpoint, newest_checkpoint
from starlab.platform.runs.events import Event, read_events
from starlab.platform.runs.journal import read_points
from starlab.platform.runs.metric_names import SYSTEM
from starlab.platform.trainer import RunResult, train
from starlab.platform.worker.tasks import TrainTask

SYNTHETIC = dataclasses.replace(load_spec("demo").data.synthetic, train_clips_per_class=6, test_clips_per_class=3, size_px=48)
SHORT = [
    *TINY,
    "data.synthetic.train_clips_per_class=6",
    "data.synthetic.test_clips_per_class=3",
    "train.epochs=2",
    "train.log_every_steps=1",
    "train.checkpoint_every_steps=3",
    "train.ema=0.9",  # so that there is an average to lose
]


@dataclass
class Training:
    """Trains one small spec in separate folders, and measures recovery from faults."""

    store: Path
    folder: Path
    overrides: tuple[str, ...] = tuple(SHORT)

    def spec(self, *overrides: str) -> Spec:
        return load_spec("demo", [*SHORT, f"data.store={self.store}", *overrides])

    def run(self, runs: Path, *overrides: str, say: Callable[[str], None] = lambda _: None) -> RunResult:
        return train(self.spec(*overrides), runs=runs, say=say)

    def start(
        self, runs: Path, *overrides: str, script: str | None = None, words: tuple[str, str] = ("train", "demo")
    ) -> subprocess.Popen[str]:
        """Start the command line in a separate process. `script` is Python code that runs before it."""
        code = f"{script or ''}\nfrom starlab.platform.cli import main\nmain()"
        command = [sys.executable, "-c", code, *words, *SHORT, f"data.store={self.store}", *overrides]
        environment = os.environ | {"STARLAB_RUNS": str(runs), "OMP_NUM_THREADS": "1"}
        environment.pop("RAY_ADDRESS", None)
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def measure(self, row: str, fault: str, folder: Path, injected: float) -> None:
        """Note the seconds from the fault to the first new step, and the steps done twice. Reported, never asserted.

        The steps done are those in the journal when the run resumed, because workers of a killed driver write for a while.
        """
        resumed = next(event for event in read_events(folder) if event.kind == "resumed" and event.time >= injected)
        points = [(p.step, p.time_ms / 1000) for p in read_points(folder / "journal.jsonl") if p.key == "train/lr"]
        done = max(step for step, written in points if written < resumed.time)
        seconds = min((written - injected for step, written in points if step > done), default=None)
        self.note(row, fault, seconds, done - (resumed.step or 0))

    def note(self, row: str, fault: str, recovery_seconds: float | None, steps_done_again: int) -> None:
        """Write a row to runs/faults.json."""
        seconds = None if recovery_seconds is None else round(recovery_seconds, 1)
        _add_to_table({row: {"fault": fault, "recovery_seconds": seconds, "steps_done_again": steps_done_again}})


@pytest.fixture(scope="session")
def add_to_table() -> Callable[[dict[str, dict[str, object]]], None]:
    """Return a function that adds rows to runs/faults.json."""
    return _add_to_table


@pytest.fixture(scope="session")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    root = tmp_path_factory.mktemp("faults")
    write_penn_action(root / "people", SYNTHETIC, workers=1)
    return Training(root / "people", root)


@pytest.fixture(scope="session")
def undisturbed(local_ray: Cluster, training: Training) -> RunResult:
    """The undisturbed run, which every disturbed run must equal."""
    return training.run(training.folder / "undisturbed")


@pytest.fixture
def sabotage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes a rank call `act` once before a step. The file that it returns is touched then."""

    def plan(act: Callable[[], None], at_step: int, rank: int = 1) -> Path:
        done = tmp_path / "injected"

        def loop(config: dict[str, TrainTask]) -> None:  # sent to the workers by value
            from starlab.platform.recipe.train_step import TrainStep
            from starlab.platform.worker import train_loop

            original = TrainStep.gradients

            def gradients(self: TrainStep, batch: object) -> torch.Tensor:
                if self._state.step == at_step and self._ranks.rank == rank and not done.exists():
                    done.touch()
                    act()
                return original(self, batch)  # type: ignore[arg-type]

            TrainStep.gradients = gradients  # type: ignore[method-assign, assignment]
            train_loop.train_loop(config)

        monkeypatch.setattr(attempt, "train_loop", loop)
        return done

    return plan


@pytest.fixture
def same_as() -> Callable[[RunResult, RunResult], None]:
    """Return a function that asserts that two runs are equal: every tensor bit for bit, every point, every result."""

    def check(mine: RunResult, theirs: RunResult) -> None:
        ours, other = _last(mine), _last(theirs)
        assert ours.step == other.step
        different = [name for name in other.tensors if not torch.equal(ours.tensors[name], other.tensors[name])]
        assert different == []
        assert mine.metrics == theirs.metrics
        assert _curve(mine.folder) == _curve(theirs.folder)

    return check


@pytest.fixture
def events_of() -> Callable[[Path, str], list[Event]]:
    return lambda folder, kind: [event for event in read_events(folder) if event.kind == kind]


@pytest.fixture
def until() -> Callable[..., None]:
    """Return a function that waits until `holds()` is true while a process runs. It fails after ten minutes."""

    def wait(holds: Callable[[], object], process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 600
        while not holds():
            assert time.monotonic() < deadline, "the condition was not met in ten minutes"
            if process.poll() is not None and not holds():
                pytest.fail(f"it ended with {process.returncode}: {process.stdout.read() if process.stdout else ''}")
            time.sleep(0.01)

    return wait


@pytest.fixture
def kill_family() -> Iterator[Callable[[subprocess.Popen[str]], None]]:
    """Return a function that kills a driver. At the end of the test, wait for its remaining processes, such as Ray's."""
    left: list[psutil.Process] = []

    def kill(process: subprocess.Popen[str]) -> None:
        left.extend(psutil.Process(process.pid).children(recursive=True))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    yield kill
    psutil.wait_procs(left, timeout=60)


def _last(result: RunResult) -> Checkpoint:
    checkpoint, _ = newest_checkpoint(result.folder / "checkpoints")
    assert checkpoint is not None
    return checkpoint


def _curve(folder: Path) -> list[tuple[str, int, float]]:
    return sorted((p.key, p.step, p.value) for p in read_points(folder / "journal.jsonl") if not p.key.startswith(SYSTEM))


def _add_to_table(rows: dict[str, dict[str, object]]) -> None:
    """Add rows to runs/faults.json under a lock, because with `pytest -n` two processes may write at once."""
    target = Path("runs") / "faults.json"
    target.parent.mkdir(exist_ok=True)
    with target.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        table = json.loads(file.read() or "{}") | rows
        file.truncate(0)
        file.write(json.dumps(dict(sorted(table.items())), indent=1))
