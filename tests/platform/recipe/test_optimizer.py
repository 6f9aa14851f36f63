import dataclasses
import subprocess
import sys

import pytest
import torch

from starlab.experiments.sections import TrainConfig
from starlab.models.star import StarConfig, StarTransformer
from starlab.platform.recipe.optimizer import (
    learning_rate,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    set_rate,
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
def test_an_optimizer_steps_as_torchs_own_to_the_last_bit(optimizer: str) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, optimizer=optimizer)
    model, twin, data = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2), torch.randn(5, 3)
    twin.load_state_dict(model.state_dict())
    ours, kind = make_optimizer(model, config), {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer]
    its_own = {id(p): q for p, q in zip(model.parameters(), twin.parameters(), strict=True)}
    groups = [{**group, "params": [its_own[id(p)] for p in group["params"]]} for group in ours.param_groups]
    theirs = kind(groups, lr=config.lr)
    for _ in range(3):
        for one, its in ((model, ours), (twin, theirs)):
            one(data).square().sum().backward()
            its.step()
            its.zero_grad()
    assert model.weight.requires_grad
    assert model.weight.grad is None
    assert torch.equal(model.weight, twin.weight)
    assert torch.equal(model.bias, twin.bias)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_optimizer_is_made_stepped_and_stored_without_the_compiler(optimizer: str) -> None:
    code = (
        "import dataclasses, sys, torch; from starlab.experiments.sections import TrainConfig; "
        "from starlab.platform.recipe.optimizer import load_optimizer_tensors, make_optimizer, optimizer_tensors; "
        f"model = torch.nn.Linear(3, 2); optimizer = make_optimizer(model, TrainConfig(optimizer='{optimizer}')); "
        "model(torch.ones(1, 3)).sum().backward(); optimizer.step(); optimizer.zero_grad(); "
        "load_optimizer_tensors(optimizer, optimizer_tensors(optimizer)); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


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


def small_model() -> StarTransformer:
    return StarTransformer(
        StarConfig(num_classes=4, num_joints=3, max_bodies=2, frames=2, backbone="mc3_tiny", layers=1, dim=16, heads=2,
                   token_norm=True, temporal_position="learned")
    )  # fmt: skip


def test_of_the_model_only_linear_and_convolution_weights_decay_and_no_token_or_position_of_any_shape() -> None:
    model = small_model()
    decayed, kept = make_optimizer(model, CONFIG).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kept_names = {names[id(parameter)] for parameter in kept["params"]}
    tokens = ("cls_glob", "cls_joint", "cls_total", "time", "joint_tokens.pos", "joint_tokens.body", "joint_tokens.unseen")
    assert {f"tokens.{name}" for name in tokens} <= kept_names
    assert all(names[id(parameter)].endswith("weight") and parameter.ndim >= 2 for parameter in decayed["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_backbone_takes_its_own_multiple_of_the_rate_and_every_parameter_is_in_one_group(optimizer: str) -> None:
    model = small_model()
    config = dataclasses.replace(CONFIG, backbone_lr_scale=0.1, optimizer=optimizer)
    made = make_optimizer(model, config)
    set_rate(made, 0.5)
    rates = {id(p): group["lr"] for group in made.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.05 if name.startswith("backbone.") else 0.5)
    assert sum(len(group["params"]) for group in made.param_groups) == len(list(model.parameters()))
    set_rate(made, 1.0)
    assert {group["lr"] for group in made.param_groups} == {0.1, 1.0}


def test_weights_decay_and_biases_norms_and_tokens_do_not() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    model.register_parameter("token", torch.nn.Parameter(torch.zeros(1, 1, 8)))
    decayed, kept = make_optimizer(model, CONFIG).param_groups
    assert [p.shape for p in decayed["params"]] == [torch.Size([2, 3])]
    assert decayed["weight_decay"] == 0.5
    assert kept["weight_decay"] == 0.0
    assert len(kept["params"]) == 4
