"""Counted costs against the hand count in the project's notes and PyTorch's own counter."""

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from starlab.models.cost import cost
from starlab.models.star import StarConfig, StarTransformer

PENN = StarConfig(num_classes=15, num_joints=13)
TINY = StarConfig(num_classes=3, num_joints=4, frames=4, backbone="mc3_tiny", layers=1, dim=16, heads=2)


@pytest.mark.parametrize(
    ("options", "forward_gflop"),
    # Less what the last layer saves by computing the class tokens alone: 27, 6 and 34 GFLOP of BAttn, projection and MLP.
    [({}, 730 - 27), ({"grid": 7}, 419 - 6), ({"num_joints": 25, "max_bodies": 2}, 840 - 34)],
    ids=str,
)
def test_whole_model_costs_what_was_counted_by_hand(options: dict[str, Any], forward_gflop: float) -> None:
    counted = cost(dataclasses.replace(PENN, **options))
    assert counted.forward_flops / 1e9 == pytest.approx(forward_gflop, rel=0.02)
    assert counted.parts["backbone"].flops / 1e9 == pytest.approx(347, rel=0.02)


def test_zattn_and_battn_save_exactly_half_of_an_fattn() -> None:
    full = cost(dataclasses.replace(PENN, encoder="FF", decoder="FF")).parts["encoder"].flops
    for pattern in ("FZ", "FB"):
        saved = full - cost(dataclasses.replace(PENN, encoder=pattern)).parts["encoder"].flops
        assert saved / PENN.layers / 1e9 == pytest.approx(11.8, rel=0.01)


@pytest.mark.parametrize(
    "options",
    [{}, {"modality": "rgb"}, {"modality": "pose"}, {"max_bodies": 2}, {"encoder": "ZB", "grid": 1, "encoder_layers": 2}],
    ids=str,
)
def test_the_count_equals_pytorchs_on_a_real_forward_pass(options: dict[str, Any]) -> None:
    config = dataclasses.replace(TINY, **options)
    model = StarTransformer(config).eval()
    frames = torch.zeros(1, config.frames, 48, 32, 3, dtype=torch.uint8)
    joints = torch.rand(1, config.frames, config.max_bodies, config.num_joints, 3)
    counter = FlopCounterMode(display=False)
    # the unfused attention, whose products PyTorch counts on a CPU
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(frames, joints)
    counted = cost(config, height=48, width=32)
    assert counted.forward_flops == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert counted.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_a_training_step_costs_three_forward_passes() -> None:
    counted = cost(TINY)
    assert counted.training_flops == 3 * counted.forward_flops
    assert set(counted.parts) == {"backbone", "tokens", "encoder", "decoder", "head"}


def test_counting_reads_no_weights_file() -> None:
    assert cost(dataclasses.replace(PENN, weights="kinetics400", weights_path="/nowhere")) == cost(PENN)
