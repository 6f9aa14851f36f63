"""The first convolution: cells of 2 × 2 pixels give what pixels give, for every size of frame."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from starlab.models.stem import StemConvolution

SIZES = st.integers(1, 19)


def pixels(clips: int, frames: int, height: int, width: int) -> Tensor:
    """Random float64 pixels (B, 3, T, H, W) in channels_last_3d memory."""
    return torch.randn(clips, frames, height, width, 3, dtype=torch.float64).permute(0, 4, 1, 2, 3).requires_grad_()


@settings(max_examples=30, deadline=None)
@given(clips=st.integers(1, 2), frames=st.integers(1, 4), height=SIZES, width=SIZES)
def test_cells_give_the_output_and_the_gradients_of_pixels(clips: int, frames: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    stem = StemConvolution(5).double()
    x = pixels(clips, frames, height, width)
    reference = nn.Conv3d.forward(stem, x)
    direction = torch.randn_like(reference)
    expected = torch.autograd.grad((reference * direction).sum(), (x, stem.weight))
    output = stem.on_cells(x)
    torch.testing.assert_close(output, reference)
    for mine, its in zip(torch.autograd.grad((output * direction).sum(), (x, stem.weight)), expected, strict=True):
        torch.testing.assert_close(mine, its)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_reads_cells_and_a_cpu_reads_pixels() -> None:
    stem = StemConvolution(8).cuda().float()
    x = pixels(1, 2, 16, 16).detach().float().cuda()
    torch.testing.assert_close(stem(x), nn.Conv3d.forward(stem, x), rtol=1e-3, atol=1e-3)
