import pytest
import torch

from starlab.platform.recipe import precision
from starlab.platform.recipe.precision import choose_precision


class Squares(torch.nn.Module):
    """A small model with the inputs of the real one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3, 3))

    def forward(self, frames: torch.Tensor, joints: torch.Tensor) -> torch.Tensor:
        return joints.flatten(0, -2) @ self.weight


def test_a_cpu_without_bf16_units_uses_fp32_and_one_with_them_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    frames, joints = torch.zeros(1, 2, 4, 4, 3, dtype=torch.uint8), torch.ones(1, 2, 1, 5, 3)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert choose_precision(Squares(), frames, joints) == "fp32"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    seconds = {None: 2.0, torch.bfloat16: 1.0}
    monkeypatch.setattr(precision, "_seconds", lambda model, frames, joints, dtype: seconds[dtype])
    assert choose_precision(Squares(), frames, joints) == "bf16"
    seconds[torch.bfloat16] = 3.0
    assert choose_precision(Squares(), frames, joints) == "fp32"


def test_measuring_does_not_change_the_model() -> None:
    model = Squares()
    assert precision._seconds(model, torch.zeros(1), torch.ones(2, 3), torch.bfloat16) > 0
    assert torch.equal(model.weight, torch.ones(3, 3))
