"""The activations that are counted without computing against those of a step that is computed."""

import dataclasses
from typing import Any

import pytest
import torch

from starlab.models.memory import activation_bytes
from starlab.models.star import StarConfig, StarTransformer

DEMO = StarConfig(
    num_classes=10,
    num_joints=13,
    backbone="mc3_tiny",
    pixel_norm="clip",
    joint_position="index_xy",
    token_norm=True,
    temporal_position="sincos",
    layers=1,
    dim=64,
    heads=4,
    mlp_ratio=2.0,
    norm="pre",
)


def saved_on_the_cpu(config: StarConfig, clips: int, size: int) -> int:
    """What autograd really keeps of a forward pass that is really computed."""
    model = StarTransformer(config).train()
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(
            torch.zeros(clips, config.frames, size, size, 3, dtype=torch.uint8),
            torch.full((clips, config.frames, config.max_bodies, config.num_joints, 3), 0.5),
        )
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("clips", [1, 4])
@pytest.mark.parametrize("options", [{}, {"layers": 2, "encoder": "FF", "dim": 32}, {"modality": "pose"}], ids=str)
def test_the_forecast_of_activations_is_what_a_real_step_keeps(options: dict[str, Any], clips: int) -> None:
    config = dataclasses.replace(DEMO, **options)
    assert activation_bytes(config, clips, 48) == pytest.approx(saved_on_the_cpu(config, clips, 48), rel=0.1)


def test_counting_activations_reads_no_weights_file() -> None:
    penn = StarConfig(num_classes=15, num_joints=13, grid=7)
    elsewhere = dataclasses.replace(penn, weights="kinetics400", weights_path="/nowhere")
    assert activation_bytes(elsewhere, 1, 112) == activation_bytes(penn, 1, 112) > 0
