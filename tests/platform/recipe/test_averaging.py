import torch

from starlab.platform.recipe.averaging import WeightAverage


def test_the_average_follows_its_definition_with_a_decay_that_rises_to_the_configured_one() -> None:
    model = torch.nn.Linear(2, 1, bias=False)
    average = WeightAverage(model, 0.5)
    expected = model.weight.detach().clone()
    for step in range(1, 12):
        with torch.no_grad():
            model.weight.add_(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        average.update(step, unless=torch.tensor(False))
    assert torch.allclose(average.tensors()["weight"], expected)


def test_in_place_loads_the_averages_and_then_restores_the_weights_bit_for_bit() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    average = WeightAverage(model, 0.9)
    torch.nn.init.normal_(model[0].weight)
    average.update(5, unless=torch.tensor(False))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with average.in_place():
        assert torch.equal(model[0].weight, average.tensors()["0.weight"])
        assert not torch.equal(model[0].weight, before["0.weight"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_frozen_weights_have_no_average_and_stored_averages_are_loaded() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    model[0].requires_grad_(False)
    average = WeightAverage(model, 0.9)
    assert set(average.tensors()) == {"1.weight", "1.bias"}
    stored = {name: torch.full_like(value, 7) for name, value in average.tensors().items()}
    average.load(stored)
    assert torch.equal(average.tensors()["1.bias"], torch.full((2,), 7.0))
