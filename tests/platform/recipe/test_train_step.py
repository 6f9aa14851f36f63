"""Tests the effect of one training step on the weights: whole, accumulated, with mixup, in fp16, good or bad."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import pytest
import torch

from starlab.experiments.sections import TrainConfig
from starlab.models.star import StarConfig, StarTransformer
from starlab.pipelines.batch import Batch
from starlab.platform.recipe import train_step
from starlab.platform.recipe.ranks import Ranks
from starlab.platform.recipe.train_step import TrainStep
from starlab.platform.recipe.training_state import TrainingState, weights_to_evaluate

CONFIG = TrainConfig(global_batch=6, optimizer="adamw", lr=1e-2, clip_norm=1.0, ema=0.9, precision="fp32")
MODEL = StarConfig(
    num_classes=4, num_joints=3, frames=2, backbone="mc3_tiny", layers=1, dim=16, heads=2, batch_norm="frozen", dropout=0.1
)
CPU = torch.device("cpu")


def batch(step: int, clips: int = 6) -> Batch:
    dice = np.random.default_rng(step)
    return Batch(
        frames=dice.integers(0, 255, (clips, 2, 24, 24, 3), dtype=np.uint8),
        joints=dice.random((clips, 2, 1, 3, 3), dtype=np.float32),
        labels=dice.integers(0, 4, clips),
        clips=np.arange(clips),
        positions=np.arange(clips),
        unreadable=(),
    )


def training(
    config: TrainConfig, model: StarConfig = MODEL, precision: str = "fp32", dtype: torch.dtype = torch.float32
) -> tuple[TrainingState, TrainStep]:
    torch.manual_seed(0)
    state = TrainingState(StarTransformer(model).to(dtype), config, CPU, precision)
    return state, TrainStep(state, config, Ranks(0, 1), CPU, schedule_steps=100)


def move(state: TrainingState, step: TrainStep, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        losses.append(step.gradients(batch(state.step)).totals().loss)
        assert not step.apply()
    return losses


@pytest.mark.parametrize("mixup", [0.0, 0.5])
@pytest.mark.parametrize("parts", [2, 3, 4, 6])
def test_an_accumulated_step_equals_a_whole_step_up_to_rounding(parts: int, mixup: float) -> None:
    model = dataclasses.replace(MODEL, dropout=0.0)
    config = dataclasses.replace(
        CONFIG, optimizer="sgd", mixup=mixup
    )  # AdamW would divide by gradients that consist of rounding errors
    # In double precision: in single, a ReLU's input on the edge of 0 may fall on either side.
    whole = training(config, model, dtype=torch.float64)
    in_parts = training(dataclasses.replace(config, accumulate=parts), model, dtype=torch.float64)
    assert move(*in_parts, 3) == pytest.approx(move(*whole, 3), rel=1e-5)
    assert in_parts[0].step == 3
    for mine, theirs in zip(in_parts[0].model.parameters(), whole[0].model.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_restored_state_continues_bit_for_bit_with_its_average_optimizer_and_scaler(precision: str) -> None:
    state, step = training(CONFIG, precision=precision)
    move(state, step, 3)
    kept = (state.step, {name: value.clone() for name, value in state.tensors().items()}, state.numbers())
    expected = move(state, step, 3)
    other, other_step = training(CONFIG, precision=precision)
    move(other, other_step, 1)  # the other state is at another step
    other.restore(*kept)
    assert move(other, other_step, 3) == expected
    assert other.scaler.state_dict() == state.scaler.state_dict()
    assert all(torch.equal(value, state.tensors()[name]) for name, value in other.tensors().items())


OPTIMIZERS = [
    {"optimizer": "adamw"},
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": 0.0, "ema": None},
]


@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("options", OPTIMIZERS, ids=str)
def test_a_bad_step_does_not_change_weights_optimizer_average_or_statistics(options: dict[str, Any], steps_before: int) -> None:
    config = dataclasses.replace(CONFIG, **options)
    state, step = training(config, dataclasses.replace(MODEL, batch_norm="train"))
    move(state, step, steps_before)
    before = {name: value.clone() for name, value in state.tensors().items()}
    step.gradients(batch(state.step))
    spoil(state)
    assert step.apply()
    assert state.step == steps_before + 1
    different = [n for n, value in state.tensors().items() if n in before and not torch.equal(value, before[n])]
    assert different == []
    expected, without = training(config, dataclasses.replace(MODEL, batch_norm="train"))
    move(expected, without, steps_before)
    expected.step += 1
    assert move(state, step, 2) == move(expected, without, 2)  # as if the step had not been there


@pytest.mark.parametrize("clip_norm", [1.0, None])
def test_a_gradient_that_is_not_finite_is_bad_with_and_without_clipping(clip_norm: float | None) -> None:
    state, step = training(dataclasses.replace(CONFIG, clip_norm=clip_norm))
    step.gradients(batch(0))
    spoil(state)
    assert step.apply()


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_makes_the_step_bad_even_if_its_gradient_is_finite(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = train_step.cross_entropy
    monkeypatch.setattr(train_step, "cross_entropy", lambda *args, **options: original(*args, **options) + value)
    _, step = training(CONFIG)
    step.gradients(batch(0))
    assert step.apply()


def test_in_fp16_a_loss_that_is_not_finite_is_bad_at_once_and_changes_no_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    state, step = training(CONFIG, dataclasses.replace(MODEL, batch_norm="train"), precision="fp16")
    move(state, step, 2)
    before, scaler = {name: value.clone() for name, value in state.tensors().items()}, state.scaler.state_dict()
    original = train_step.cross_entropy
    monkeypatch.setattr(train_step, "cross_entropy", lambda *args, **options: original(*args, **options) * math.nan)
    step.gradients(batch(state.step))
    assert step.apply()
    assert all(torch.equal(value, before[name]) for name, value in state.tensors().items())
    assert state.scaler.get_scale() == scaler["scale"]


@pytest.mark.parametrize("clip_norm", [1.0, None])
def test_in_fp16_a_gradient_is_bad_if_no_loss_scale_makes_it_finite(clip_norm: float | None) -> None:
    state, step = training(dataclasses.replace(CONFIG, clip_norm=clip_norm), precision="fp16")
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    bad = []
    for _ in range(30):
        step.gradients(batch(state.step))
        spoil(state)
        bad.append(bool(step.apply()))
    assert bad == sorted(bad)  # first the scaler handles it by halving the scale, then the guard is asked
    assert all(bad[20:])
    assert not any(bad[:15])
    assert state.scaler.get_scale() > 0.1  # bad steps do not halve it further
    assert all(torch.equal(value, before[name]) for name, value in state.model.state_dict().items())


def spoil(state: TrainingState) -> None:
    next(p for p in state.model.parameters() if p.grad is not None).grad.fill_(float("inf"))  # type: ignore[union-attr]


def test_mixup_changes_the_loss_and_is_reproducible() -> None:
    plain, mixed = training(CONFIG), training(dataclasses.replace(CONFIG, mixup=0.5))
    again = training(dataclasses.replace(CONFIG, mixup=0.5))
    losses = move(*mixed, 3)
    assert losses != move(*plain, 3)
    assert losses == move(*again, 3)


def test_the_averaged_weights_of_a_checkpoint_are_evaluated_if_the_run_keeps_them() -> None:
    state, step = training(CONFIG)
    move(state, step, 3)
    weights = weights_to_evaluate(state.tensors())
    assert weights.keys() == state.model.state_dict().keys()
    assert state.average is not None
    for name, value in state.average.tensors().items():
        assert torch.equal(weights[name], value)
        assert not torch.equal(weights[name], state.model.state_dict()[name])


def test_a_compiled_step_equals_a_plain_one_and_hooks_run_outside_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = functools.partial(torch.compile, backend="eager", fullgraph=True)  # needs no compiler; a graph break is an error
    monkeypatch.setattr(torch, "compile", compiled)
    beats: list[int] = []
    model = dataclasses.replace(MODEL, dropout=0.0)
    plain, fast = training(CONFIG, model), training(dataclasses.replace(CONFIG, compile="on"), model)
    fast[0].model.register_forward_pre_hook(lambda *_: beats.append(1))
    assert move(*fast, 2) == pytest.approx(move(*plain, 2), rel=1e-5)
    assert len(beats) == 2
    assert fast[0].model.state_dict().keys() == plain[0].model.state_dict().keys()
