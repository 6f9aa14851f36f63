"""The convolutions of the two backbones: torchvision's mc3_18, and the same pattern at an eighth of its width.

A trunk is five stages: `stem` and `layer1` convolve in time and space, `layer2` to `layer4` in space only.

Letters: B clips, T frames, H W pixels or cells.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from starlab.models.config import BackboneName
from starlab.models.stem import StemConvolution

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")
CHANNELS: dict[BackboneName, dict[str, int]] = {
    "mc3_18": {"stem": 64, "layer1": 64, "layer2": 128, "layer3": 256, "layer4": 512},
    "mc3_tiny": {"stem": 8, "layer1": 8, "layer2": 16, "layer3": 32, "layer4": 64},
}


class Mc3Trunk(nn.Module):
    """mc3_18 with random weights, without pooling and classifier: two blocks per stage.

    It computes what `torchvision.models.video.mc3_18` does, and its parameters have the same names and distributions. It is
    written out because importing torchvision takes about three seconds of processor time in every process that builds a model.
    """

    def __init__(self) -> None:
        super().__init__()
        width = CHANNELS["mc3_18"]
        pixels = StemConvolution(width["stem"])
        nn.init.kaiming_normal_(pixels.weight, mode="fan_out", nonlinearity="relu")
        self.stem = nn.Sequential(pixels, nn.BatchNorm3d(width["stem"]), nn.ReLU(inplace=True))
        self.layer1 = two_blocks(width["stem"], width["layer1"], (3, 3, 3), stride=1)
        self.layer2 = two_blocks(width["layer1"], width["layer2"], (1, 3, 3), stride=2)
        self.layer3 = two_blocks(width["layer2"], width["layer3"], (1, 3, 3), stride=2)
        self.layer4 = two_blocks(width["layer3"], width["layer4"], (1, 3, 3), stride=2)


class TinyTrunk(nn.Module):
    """mc3_18's pattern at an eighth of its width, one block per stage: for small frames on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        width = CHANNELS["mc3_tiny"]
        self.stem = nn.Sequential(convolution(3, width["stem"], (3, 3, 3), stride=2), nn.ReLU(inplace=True))
        self.layer1 = Block(width["stem"], width["layer1"], (3, 3, 3), stride=1, residual="shortcut")
        self.layer2 = Block(width["layer1"], width["layer2"], (1, 3, 3), stride=2, residual="shortcut")
        self.layer3 = Block(width["layer2"], width["layer3"], (1, 3, 3), stride=2, residual="shortcut")
        self.layer4 = Block(width["layer3"], width["layer4"], (1, 3, 3), stride=2, residual="shortcut")


class Block(nn.Module):
    """Two convolutions and a residual (1×1×1 where the shape changes, named `residual`); `stride` in space only."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: tuple[int, int, int], *, stride: int, residual: str
    ) -> None:
        super().__init__()
        self.conv1 = convolution(channels_in, channels_out, kernel, stride=stride)
        self.conv2 = convolution(channels_out, channels_out, kernel, stride=1)
        same = stride == 1 and channels_in == channels_out
        self.residual = residual
        self.add_module(residual, nn.Identity() if same else convolution(channels_in, channels_out, (1, 1, 1), stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, T, H, W) → (B, channels_out, T, H / stride, W / stride)."""
        branch = self.conv2(self.conv1(x).relu_())
        return cast(Tensor, (branch + self.get_submodule(self.residual)(x)).relu_())


def two_blocks(channels_in: int, channels_out: int, kernel: tuple[int, int, int], *, stride: int) -> nn.Sequential:
    """A stage of mc3_18: the first block changes channels and size."""
    return nn.Sequential(
        Block(channels_in, channels_out, kernel, stride=stride, residual="downsample"),
        Block(channels_out, channels_out, kernel, stride=1, residual="downsample"),
    )


def convolution(channels_in: int, channels_out: int, kernel: tuple[int, int, int], *, stride: int) -> nn.Sequential:
    """A convolution with batch-norm that keeps T and divides H and W by `stride`."""
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    conv = nn.Conv3d(channels_in, channels_out, kernel, stride=(1, stride, stride), padding=padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm3d(channels_out))
