from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from starlab.experiments.sections import TrainConfig
from starlab.platform.recipe.step_plan import StepPlan

plans = st.builds(
    lambda epochs, batch, every, checkpoints, clips: StepPlan(
        TrainConfig(epochs=epochs, global_batch=batch, evaluate_every_epochs=every, checkpoint_every_steps=checkpoints), clips
    ),
    st.one_of(st.integers(1, 9), st.floats(0.1, 9)),
    st.integers(1, 16),
    st.integers(1, 4),
    st.none() | st.integers(1, 50),
    st.integers(16, 200),
)


@given(plans)
def test_the_last_step_is_evaluated_and_nothing_is_planned_after_it(plan: StepPlan) -> None:
    steps = [*plan.evaluations(), *plan.checkpoints_between(), *plan.epoch_ends()]
    assert plan.total_steps in plan.evaluations()
    assert all(1 <= step <= plan.total_steps for step in steps)


@given(plans)
def test_every_epoch_ends_with_a_checkpoint_at_an_evaluation_or_between_two(plan: StepPlan) -> None:
    between, evaluated = plan.checkpoints_between(), plan.evaluations().keys()
    assert not between & evaluated
    assert plan.epoch_ends() <= between | evaluated


@given(plans, st.integers(2, 5))
def test_of_short_epochs_not_every_one_ends_with_a_checkpoint(plan: StepPlan, every: int) -> None:
    fewer = replace(plan, config=replace(plan.config, checkpoint_every_epochs=every))
    assert fewer.epoch_ends() == {plan.steps_of(epoch) for epoch in range(every, math.ceil(plan.config.epochs), every)}
    assert fewer.evaluations() == plan.evaluations()


def test_the_steps_of_the_papers_penn_action_run() -> None:
    plan = StepPlan(TrainConfig(epochs=300, global_batch=16), 1258)
    assert plan.total_steps == 23_588
    assert plan.steps_of(1) == 79


def test_a_run_that_stops_early_keeps_the_schedule_of_all_its_epochs() -> None:
    whole = StepPlan(TrainConfig(epochs=8, global_batch=8, schedule="cosine", warmup_fraction=0.1), 100)
    short = StepPlan(replace(whole.config, stop_after_epochs=5), 100)
    assert (short.total_steps, short.schedule_steps) == (63, whole.total_steps)
    assert short.evaluations() == {step: epoch for step, epoch in whole.evaluations().items() if epoch <= 5}
    assert short.checkpoints_between() <= whole.checkpoints_between()
