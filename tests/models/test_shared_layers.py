"""Layers that share their weights: the same model as one whose layers hold equal weights, with the parameters of one layer."""

import dataclasses

import pytest
import torch

from starlab.models.cost import cost
from starlab.models.rollout import frame_importance
from starlab.models.star import StarConfig, StarTransformer

TINY = StarConfig(
    num_classes=3, num_joints=4, frames=4, backbone="mc3_tiny", encoder_layers=3, decoder_layers=2, dim=8, heads=2
)
SHARED = dataclasses.replace(TINY, share_layers=True)


def clips() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8), torch.rand(2, 4, 1, 4, 3)


def unrolled(shared: StarTransformer) -> StarTransformer:
    """A model with weights of its own at every depth, all equal to those of the shared layer."""
    model = StarTransformer(TINY)
    state = shared.state_dict()
    for name in model.state_dict():
        part, *rest = name.split(".")
        if part in ("encoder", "decoder"):
            state[name] = state[".".join((part, "0", *rest[1:]))]
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("init", ["depth_scaled", "xavier"])
def test_shared_layers_compute_what_equal_layers_compute(init: str) -> None:
    torch.manual_seed(0)
    shared = StarTransformer(dataclasses.replace(SHARED, init=init)).eval()
    assert torch.equal(shared(*clips()), unrolled(shared).eval()(*clips()))


def test_the_gradient_of_a_shared_layer_is_the_sum_over_its_depths() -> None:
    shared = StarTransformer(SHARED).eval()
    own = unrolled(shared).eval()
    for model in (shared, own):
        model(*clips()).sum().backward()
    summed = sum(layer.mlp.up.weight.grad for layer in own.encoder)
    assert torch.allclose(shared.encoder[0].mlp.up.weight.grad, summed, rtol=1e-4, atol=1e-7)


def test_shared_layers_start_scaled_for_the_number_of_depths() -> None:
    """Both models draw the same numbers for their first encoder layer."""
    first = []
    for config in (SHARED, TINY):
        torch.manual_seed(0)
        first.append(StarTransformer(config).encoder[0].mlp.up.weight)
    assert torch.equal(*first)


def test_shared_layers_cost_the_same_products_and_the_parameters_of_one_layer() -> None:
    shared, own = cost(SHARED, height=32, width=32), cost(TINY, height=32, width=32)
    for part, layers in (("encoder", 3), ("decoder", 2)):
        assert shared.parts[part].flops == own.parts[part].flops
        assert shared.parts[part].parameters * layers == own.parts[part].parameters


def test_the_rollout_follows_a_shared_layer_at_every_depth() -> None:
    shared = StarTransformer(SHARED)
    assert torch.allclose(frame_importance(shared, *clips()), frame_importance(unrolled(shared), *clips()))


def test_a_shared_layer_has_the_mean_drop_path_of_its_depths() -> None:
    own = StarTransformer(dataclasses.replace(TINY, drop_path=0.4))
    shared = StarTransformer(dataclasses.replace(SHARED, drop_path=0.4))
    assert [layer.drop_path for layer in own.layers()] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert [layer.drop_path for layer in shared.layers()] == pytest.approx([0.1, 0.1, 0.1, 0.35, 0.35])
