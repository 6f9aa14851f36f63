"""Tests that bad steps are skipped, then rolled back, then stop the run, within the limits of the spec."""

import pytest
import torch

from starlab.experiments.sections import TrainConfig
from starlab.platform.recipe.loss_guard import LossGuard, Verdict


def test_bad_steps_are_skipped_then_rolled_back_then_stop_the_run() -> None:
    guard = LossGuard(TrainConfig(on_bad_loss="skip", max_bad_steps=2, max_rollbacks=1))
    verdicts = [guard.judge(step, True) for step in (10, 11, 12)]
    assert verdicts == [Verdict.SKIP, Verdict.SKIP, Verdict.ROLL_BACK]
    guard.give_up_on_streak()
    guard.streak = []  # as restored from the checkpoint
    assert guard.left_out == {10, 11, 12}
    verdicts = [guard.judge(step, True) for step in (13, 14, 15)]
    assert verdicts == [Verdict.SKIP, Verdict.SKIP, Verdict.STOP]


def test_a_good_step_ends_a_streak() -> None:
    guard = LossGuard(TrainConfig(on_bad_loss="skip", max_bad_steps=1))
    assert [guard.judge(step, step % 2 == 0) for step in range(6)] == [Verdict.SKIP, Verdict.GOOD] * 3


@pytest.mark.parametrize(("policy", "verdict"), [("rollback", Verdict.ROLL_BACK), ("stop", Verdict.STOP)])
def test_the_other_policies_roll_back_or_stop_at_the_first_bad_step(policy: str, verdict: Verdict) -> None:
    assert LossGuard(TrainConfig(on_bad_loss=policy)).judge(3, True) is verdict  # type: ignore[arg-type]


def test_a_skipped_step_leaves_batch_norm_as_it_was() -> None:
    model = torch.nn.BatchNorm1d(2)
    guard = LossGuard(TrainConfig(on_bad_loss="skip"))
    model(torch.randn(4, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    guard.keep_buffers(model)
    model(torch.full((4, 2), float("nan")))
    assert model.running_mean is not None
    assert model.running_mean.isnan().all()
    guard.restore_buffers(torch.tensor(True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_good_step_keeps_the_new_statistics() -> None:
    model, other = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    guard, data = LossGuard(TrainConfig(on_bad_loss="skip")), torch.randn(4, 2)
    guard.keep_buffers(model)
    model(data)
    other(data)
    guard.restore_buffers(torch.tensor(False))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_noted_steps_are_judged_in_order_up_to_the_last_few_and_forgotten_by_a_roll_back() -> None:
    guard = LossGuard(TrainConfig(on_bad_loss="skip", max_bad_steps=1))
    for step in range(3):
        guard.note(step, torch.tensor(step > 0))
    assert list(guard.verdicts(except_last=1)) == [(0, Verdict.GOOD), (1, Verdict.SKIP)]
    guard.note(3, torch.tensor(True))
    judged = []
    for step, verdict in guard.verdicts():
        judged.append((step, verdict))
        guard.give_up_on_streak()
    assert judged == [(2, Verdict.ROLL_BACK)]
    assert guard.left_out == {1, 2}
