"""Tests what a rank writes to the run's folder, and that it writes nothing once another process owns the run."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from starlab.experiments.sections import TrainConfig
from starlab.platform.recipe.loss_guard import LossGuard
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.journal import FILE, read_points
from starlab.platform.runs.lease import Lease
from starlab.platform.runs.records import BadSteps, Outcome, Result
from starlab.platform.worker.run_writer import RunWriter

RESULT = Result(
    steps=3, total_steps=3, best_step=2, selected_by="validation", classes=("a", "b"), val={"top1": 1.0}, precision="fp32"
)


def writer(folder: RunFolder, fence: int, rank: int = 0) -> RunWriter:
    return RunWriter(SimpleNamespace(folder=folder, fence=fence), rank)  # type: ignore[arg-type]


def test_the_steps_that_a_restarted_run_skips_are_stored(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    guard = LossGuard(TrainConfig(on_bad_loss="rollback"))
    guard.judge(7, True)
    guard.give_up_on_streak()
    with Lease.claim(tmp_path) as lease:
        ours = writer(folder, lease.fence)
        ours.skip_from_now_on(guard)
        ours.close()
    assert folder.read(BadSteps) == BadSteps(left_out=(7,), rollbacks=1)


@pytest.mark.parametrize("rank", [0, 1])
def test_only_rank_0_writes_metrics_result_and_outcome(tmp_path: Path, rank: int) -> None:
    folder = RunFolder(tmp_path)
    with Lease.claim(tmp_path) as lease:
        ours = writer(folder, lease.fence, rank)
        ours.points(1, {"train/loss": 2.0})
        ours.finished(RESULT)
        ours.close()
    assert [point.value for point in read_points(tmp_path / FILE)] == ([2.0] if rank == 0 else [])
    assert folder.result == (RESULT if rank == 0 else None)
    assert folder.read(Outcome) == (Outcome(kind="finished", step=3) if rank == 0 else None)


def test_a_rank_whose_run_was_taken_over_writes_nothing_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(tmp_path)
    Lease.claim(tmp_path).release()
    ours = writer(folder, fence=1)
    with Lease.claim(tmp_path):
        ours.points(1, {"train/loss": 2.0})
        ours.finished(RESULT)
        ours.stopped(1, "a reason")
        ours.preempted(1, "a reason")
        ours.close()
    assert ours.lost
    assert "lease 2, ours was 1" in capsys.readouterr().out
    assert list(read_points(tmp_path / FILE)) == []
    assert (folder.result, folder.read(Outcome)) == (None, None)
