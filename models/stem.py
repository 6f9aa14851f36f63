"""The first convolution of mc3_18, in a form that suits tensor cores.

Letters: B clips, T frames, H W pixels or cells, C channels of the output; dy dx the place of a pixel in its cell of 2 × 2.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import conv3d, pad

CHANNELS_OF_A_CELL = 16
"""2 × 2 pixels of 3 colours are 12 numbers. Zeros fill them up to 16, with which tensor cores are fastest: a training step of
16 clips of 16 × 224² spends 3.2 ms here, 4.0 ms with 12 numbers, 5.2 ms with 32, and 8.3 ms on pixels (one H100)."""


class StemConvolution(nn.Conv3d):
    """Convolution (3, 7, 7) with stride (1, 2, 2) of pixels: `Conv3d(3, channels, ...)` with the same weights and results.

    On a GPU it reads cells of 2 × 2 pixels. In them the kernel is (3, 4, 4) and the stride 1, and the matrix products are
    wide enough to be fast. Only the order of the sums differs.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(3, channels, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, T, H, W) → (B, C, T, ⌈H / 2⌉, ⌈W / 2⌉)."""
        if x.is_cuda and x.is_contiguous(memory_format=torch.channels_last_3d):
            return self.on_cells(x)
        return super().forward(x)

    def on_cells(self, x: Tensor) -> Tensor:
        """Compute the same on cells; a view of channels_last_3d memory is read without another copy."""
        # Row i of the output reads the pixel rows 2i - 3 … 2i + 3: cells i - 2 … i + 1 but for the first row of the first one.
        pixels = pad(x.permute(0, 2, 3, 4, 1), (0, 0, 0, x.shape[4] % 2, 0, x.shape[3] % 2))
        cells = rearrange(pixels, "b t (h dy) (w dx) c -> b t h w (dy dx c)", dy=2, dx=2)
        weight = rearrange(pad(self.weight, (1, 0, 1, 0)), "out c t (h dy) (w dx) -> out t h w (dy dx c)", dy=2, dx=2)
        zeros = CHANNELS_OF_A_CELL - cells.shape[-1]
        cells, weight = pad(cells, (0, zeros, 2, 1, 2, 1)), pad(weight, (0, zeros))
        return conv3d(
            rearrange(cells, "b t h w c -> b c t h w"), rearrange(weight, "out t h w c -> out c t h w"), padding=(1, 0, 0)
        )
