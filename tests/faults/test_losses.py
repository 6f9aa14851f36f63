"""Tests runs with NaN losses. Row 16 of docs/reliability.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from starlab.platform import attempt
from starlab.platform.cluster.connect import Cluster
from starlab.platform.errors import RunFailedError
from starlab.platform.runs.checkpoint import newest_checkpoint
from starlab.platform.runs.journal import read_points
from starlab.platform.trainer import RunResult
from starlab.platform.worker.tasks import TrainTask

pytestmark = pytest.mark.timeout(900)  # a hang guard for a busy machine; a quiet one needs a tenth of it


@pytest.fixture(params=[0, 1], ids=["judged at once", "judged a step later"])
def poison(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that makes the loss and the batch-norm statistics of some steps NaN, on one rank."""
    ahead = request.param

    def plan(steps: set[int], rank: int = 1) -> None:
        def loop(config: dict[str, TrainTask]) -> None:
            from starlab.platform.recipe import train_step
            from starlab.platform.recipe.train_step import TrainStep
            from starlab.platform.worker import train_loop

            train_loop.STEPS_AHEAD["cpu"] = ahead  # 1 as on a GPU
            original, entropy = TrainStep.gradients, train_step.cross_entropy

            def gradients(self: TrainStep, batch: object) -> torch.Tensor:
                bad = self._state.step in steps and self._ranks.rank == rank
                train_step.cross_entropy = (lambda *a, **b: entropy(*a, **b) * float("nan")) if bad else entropy
                sums = original(self, batch)  # type: ignore[arg-type]
                if bad:
                    for buffer in self._state.model.buffers():
                        if buffer.is_floating_point():
                            buffer.fill_(float("nan"))
                return sums

            TrainStep.gradients = gradients  # type: ignore[method-assign, assignment]
            train_loop.train_loop(config)

        monkeypatch.setattr(attempt, "train_loop", loop)

    return plan


@pytest.mark.slow_fault
def test_a_step_with_a_bad_loss_on_one_rank_is_skipped_on_all_ranks_and_the_run_finishes(
    training, local_ray: Cluster, poison: Callable[..., None], events_of, tmp_path: Path
) -> None:
    poison({4, 8})
    result = training.run(tmp_path, "resources.max_failures=0")
    assert [event.step for event in events_of(result.folder, "bad_loss")] == [4, 8]
    assert _points(result, "train/bad_steps") == {5: 1.0, 9: 1.0}
    assert _points(result, "train/loss").keys() == set(range(1, 14)) - {5, 9}
    checkpoint, _ = newest_checkpoint(result.folder / "checkpoints")
    assert checkpoint is not None
    assert all(bool(value.isfinite().all()) for value in checkpoint.tensors.values())
    [first, _] = events_of(result.folder, "bad_loss")
    next_step = next(p for p in read_points(result.folder / "journal.jsonl") if p.key == "train/loss" and p.step == 6)
    training.note("16 skip", "NaN loss on rank 1 at step 4, left out", next_step.time_ms / 1000 - first.time, 0)


@pytest.mark.slow_fault
def test_bad_losses_in_a_row_roll_the_run_back_and_the_replay_skips_them(
    training, local_ray: Cluster, poison: Callable[..., None], events_of, tmp_path: Path
) -> None:
    poison({5, 6})  # the checkpoint due between the two is not written
    result = training.run(tmp_path, "resources.max_failures=0", "train.max_bad_steps=1")
    assert [(event.step, event.says.split("; ")[1]) for event in events_of(result.folder, "bad_loss")] == [
        (5, "left out"),
        (6, "rolled back"),
    ]
    assert [event.step for event in events_of(result.folder, "resumed")] == [3]
    assert max(_points(result, "train/loss")) == 13
    rolled_back = events_of(result.folder, "bad_loss")[-1]
    training.measure("16 roll back", "NaN losses on rank 1 at steps 5 and 6, rolled back", result.folder, rolled_back.time)


@pytest.mark.slow_fault
def test_losses_that_stay_bad_stop_the_run_with_the_reason_and_leave_its_last_good_checkpoint(
    training, local_ray: Cluster, poison: Callable[..., None], tmp_path: Path
) -> None:
    poison(set(range(4, 100)))
    with pytest.raises(RunFailedError, match=r"not finite at step .* after 1 roll-backs .*train.clip_norm=1.0"):
        training.run(tmp_path, "resources.max_failures=0", "train.max_bad_steps=1", "train.max_rollbacks=1")
    [checkpoints] = tmp_path.glob("demo-*/checkpoints")
    checkpoint, _ = newest_checkpoint(checkpoints)
    assert checkpoint is not None
    assert all(bool(value.isfinite().all()) for value in checkpoint.tensors.values())


def _points(result: RunResult, key: str) -> dict[int, float]:
    return {p.step: p.value for p in read_points(result.folder / "journal.jsonl") if p.key == key}
