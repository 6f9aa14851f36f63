import dataclasses

import pytest
import torch

from starlab.experiments.sections import TrainConfig
from starlab.platform.recipe.optimizer import (
    learning_rate,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
)

CONFIG = TrainConfig(lr=0.1, schedule="cosine", warmup_fraction=0.1, optimizer="adamw", weight_decay=0.5)


def test_the_rate_warms_up_to_its_peak_and_falls_to_zero() -> None:
    rates = [learning_rate(CONFIG, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.01 * (step + 1) for step in range(10)])
    assert max(rates) == 0.1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-4


def test_the_papers_rate_is_constant() -> None:
    assert {learning_rate(TrainConfig(), step, 100) for step in range(100)} == {2e-4}


def test_a_scaled_rate_follows_the_global_batch_and_an_unscaled_one_does_not() -> None:
    scaled = TrainConfig(lr=0.1, lr_scaling="linear", reference_batch=16, global_batch=64)
    assert learning_rate(scaled, 0, 100) == pytest.approx(0.4)
    assert learning_rate(dataclasses.replace(scaled, lr_scaling="none"), 0, 100) == 0.1


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_optimizer_continues_bit_for_bit_from_its_stored_tensors(optimizer: str) -> None:
    config = dataclasses.replace(CONFIG, optimizer=optimizer)
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    steps = [torch.randn(5, 3) for _ in range(4)]

    def move(one: torch.nn.Module, with_optimizer: torch.optim.Optimizer, data: torch.Tensor) -> None:
        one(data).square().sum().backward()
        with_optimizer.step()
        with_optimizer.zero_grad()

    first = make_optimizer(model, config)
    for data in steps[:2]:
        move(model, first, data)
    copy = torch.nn.Linear(3, 2)
    copy.load_state_dict(model.state_dict())
    second = make_optimizer(copy, config)
    load_optimizer_tensors(second, {name: value.clone() for name, value in optimizer_tensors(first).items()})
    for data in steps[2:]:
        move(model, first, data)
        move(copy, second, data)
    assert torch.equal(model.weight, copy.weight)
    assert torch.equal(model.bias, copy.bias)


def test_weights_decay_and_biases_norms_and_tokens_do_not() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    model.register_parameter("token", torch.nn.Parameter(torch.zeros(1, 1, 8)))
    decayed, kept = make_optimizer(model, CONFIG).param_groups
    assert [p.shape for p in decayed["params"]] == [torch.Size([2, 3])]
    assert decayed["weight_decay"] == 0.5
    assert kept["weight_decay"] == 0.0
    assert len(kept["params"]) == 4
