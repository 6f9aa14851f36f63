"""Tests ranks that die, sleep or are stopped, and a second process. Rows 1, 5, 6, 19 and 20 of docs/reliability.md."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from starlab.platform.errors import RunFailedError
from starlab.platform.runs.journal import read_points
from starlab.platform.runs.lease import Lease, RunTakenError
from starlab.platform.trainer import RunResult

pytestmark = pytest.mark.timeout(900)  # a hang guard for a busy machine; a quiet one needs a tenth of it


@pytest.mark.slow_fault
def test_a_rank_killed_in_mid_epoch_costs_only_the_steps_since_the_checkpoint(
    training, undisturbed: RunResult, sabotage: Callable[..., Path], same_as, events_of, tmp_path: Path
) -> None:
    injected = sabotage(lambda: os.kill(os.getpid(), signal.SIGKILL), at_step=5, rank=1)
    result = training.run(tmp_path / "runs")
    same_as(result, undisturbed)
    [resumed] = events_of(result.folder, "resumed")
    assert 5 - resumed.step <= training.spec().train.checkpoint_every_steps + 1
    training.measure("01", "SIGKILL of rank 1 at step 5", result.folder, injected.stat().st_mtime)


@pytest.mark.slow_fault
def test_a_rank_that_sleeps_forever_is_detected_and_its_group_restarts(
    training, undisturbed: RunResult, sabotage: Callable[..., Path], same_as, events_of, tmp_path: Path
) -> None:
    injected = sabotage(lambda: time.sleep(10_000), at_step=5, rank=1)
    result = training.run(tmp_path / "runs", "resources.stuck_after_seconds=30")
    same_as(result, undisturbed)
    stuck = {event.rank for event in events_of(result.folder, "stuck")}
    assert 1 in stuck
    assert "in gradients" in (result.folder / "stacks" / "rank-1.txt").read_text()  # the stack where it sleeps
    assert "no forward pass" in (result.folder / "stacks" / "rank-0.txt").read_text()  # rank 0 waits for rank 1
    training.measure("06", "rank 1 sleeps forever at step 5 (stuck_after_seconds=30)", result.folder, _at(injected))


@pytest.mark.slow_fault
def test_a_rank_that_is_stopped_by_a_signal_is_replaced(
    training, undisturbed: RunResult, sabotage: Callable[..., Path], same_as, events_of, tmp_path: Path
) -> None:
    injected = sabotage(lambda: os.kill(os.getpid(), signal.SIGSTOP), at_step=5, rank=1)
    result = training.run(tmp_path / "runs", "resources.stuck_after_seconds=30")
    same_as(result, undisturbed)
    assert "stopped by a signal" in (result.folder / "stacks" / "rank-1.txt").read_text()
    training.measure("05", "SIGSTOP of rank 1 at step 5 (stuck_after_seconds=30)", result.folder, _at(injected))


@pytest.mark.slow_fault
def test_a_rank_that_dies_repeatedly_fails_the_run_after_the_allowed_restarts(
    training, undisturbed: RunResult, sabotage: Callable[..., Path], same_as, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die_without_a_trace() -> None:
        for trace in tmp_path.glob("injected"):
            trace.unlink()
        os.kill(os.getpid(), signal.SIGKILL)

    sabotage(die_without_a_trace, at_step=5, rank=1)
    with pytest.raises(RunFailedError, match="goes on from its newest checkpoint"):
        training.run(tmp_path / "runs", "resources.max_failures=1")
    monkeypatch.undo()
    same_as(training.run(tmp_path / "runs"), undisturbed)


@pytest.mark.slow_fault
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_continues_with_another_number_of_workers_to_the_same_metrics_up_to_rounding(
    training, sabotage: Callable[..., Path], tmp_path: Path, before: int, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each worker has its own batch-norm statistics, so they are frozen. The demo has no dropout.
    fixed = ["model.batch_norm=frozen", "resources.max_failures=0"]
    whole = training.run(tmp_path / "whole", *fixed, f"resources.workers={before}")
    injected = sabotage(lambda: os.kill(os.getpid(), signal.SIGKILL), at_step=7, rank=before - 1)
    with pytest.raises(RunFailedError):
        training.run(tmp_path / "runs", *fixed, f"resources.workers={before}")
    monkeypatch.undo()
    other = training.run(tmp_path / "runs", *fixed, f"resources.workers={after}")
    assert other.run_id == whole.run_id
    mine, theirs = _losses(other), _losses(whole)
    assert mine.keys() == theirs.keys()
    assert mine == pytest.approx(theirs, rel=1e-4)
    assert other.metrics == pytest.approx(whole.metrics, rel=1e-3)
    row = f"19 {before} to {after}"
    training.measure(row, f"SIGKILL at step 7 of {before}, the same command with {after}", other.folder, _at(injected))


@pytest.mark.usefixtures("local_ray")
def test_a_second_process_that_trains_a_run_is_refused_before_it_changes_anything(training, tmp_path: Path) -> None:
    spec = training.spec()
    from starlab.platform.preflight import open_data

    source, _ = open_data(spec, tmp_path, lambda _: None)
    folder = tmp_path / spec.run_id(source.fingerprint)
    with Lease.claim(folder):
        before = sorted(tmp_path.rglob("*"))
        began = time.time()
        with pytest.raises(RunTakenError, match=f"process {os.getpid()} on"):
            training.run(tmp_path)
        training.note("20", "a second process trains the run: seconds until it is refused", time.time() - began, 0)
        assert sorted(tmp_path.rglob("*")) == before


def _losses(result: RunResult) -> dict[int, float]:
    return {p.step: p.value for p in read_points(result.folder / "journal.jsonl") if p.key == "train/loss"}


def _at(injected: Path) -> float:
    return injected.stat().st_mtime
