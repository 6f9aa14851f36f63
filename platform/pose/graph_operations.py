"""The operations of TensorFlow graphs that `graph.py` can run, written with torch.

Pictures are (B, H, W, C) between operations, as in TensorFlow. Torch's convolutions take the same memory as (B, C, H, W), so
nothing is copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor

Attributes = Mapping[str, Any]
Result = Tensor | tuple[Tensor, ...]
Operation = Callable[..., Result]

_DTYPES = {"DT_FLOAT": torch.float32, "DT_INT32": torch.int32, "DT_BOOL": torch.bool, "DT_INT64": torch.int64}
_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Relu": torch.relu_,
    "Relu6": lambda value: value.clamp_(0, 6),
    "Sigmoid": torch.sigmoid_,
}


def _same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Zeros before and after an axis; TensorFlow puts the odd one after it."""
    total = max(0, (math.ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 - size)
    return total // 2, total - total // 2


def _padded(
    picture: Tensor, kernel: tuple[int, int], attributes: Attributes, fill: float = 0.0
) -> tuple[Tensor, tuple[int, int]]:
    """The picture (B, C, H, W) with its margins, and the margins that the operation itself adds on both sides."""
    if attributes["padding"] == "VALID":
        return picture, (0, 0)
    if attributes["padding"] != "SAME":
        raise NotImplementedError(f"padding {attributes['padding']} is not known")
    strides, dilations = attributes["strides"][1:3], (attributes.get("dilations") or [1, 1, 1, 1])[1:3]
    rows, columns = (_same_padding(picture.shape[2 + axis], kernel[axis], strides[axis], dilations[axis]) for axis in (0, 1))
    if rows[0] == rows[1] and columns[0] == columns[1] and fill == 0:
        return picture, (rows[0], columns[0])
    return F.pad(picture, (*columns, *rows), value=fill), (0, 0)


def _convolution(attributes: Attributes, picture: Tensor, kernel: Tensor, *arguments: Tensor, groups: int = 1) -> Tensor:
    """A convolution with its bias and activation. `kernel` comes in torch's order of axes, see `KERNELS`."""
    fused = attributes.get("fused_ops") or []
    if unknown := [name for name in fused if name != "BiasAdd" and name not in _ACTIVATIONS]:
        raise NotImplementedError(f"an activation of a convolution is {unknown[0]}, which is not known")
    bias = arguments[0] if "BiasAdd" in fused else None
    padded, margins = _padded(picture.permute(0, 3, 1, 2), (kernel.shape[2], kernel.shape[3]), attributes)
    strides, dilations = attributes["strides"][1:3], (attributes.get("dilations") or [1, 1, 1, 1])[1:3]
    result = F.conv2d(padded, kernel, bias, strides, margins, dilations, groups)
    for name in fused:
        if name in _ACTIVATIONS:
            result = _ACTIVATIONS[name](result)
    return result.permute(0, 2, 3, 1)


def _depthwise(attributes: Attributes, picture: Tensor, kernel: Tensor, *arguments: Tensor) -> Tensor:
    return _convolution(attributes, picture, kernel, *arguments, groups=picture.shape[3])


def _dense_kernel(weights: Tensor) -> Tensor:
    """(H, W, in, out) → (out, in, H, W)."""
    return weights.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)


def _depthwise_kernel(weights: Tensor) -> Tensor:
    """(H, W, in, multiplier) → (in × multiplier, 1, H, W)."""
    return weights.permute(2, 3, 0, 1).reshape(-1, 1, *weights.shape[:2]).contiguous()


def _max_pool(attributes: Attributes, picture: Tensor) -> Tensor:
    kernel = tuple(attributes["ksize"][1:3])
    padded, _ = _padded(picture.permute(0, 3, 1, 2), kernel, attributes, fill=-math.inf)
    return F.max_pool2d(padded, kernel, attributes["strides"][1:3]).permute(0, 2, 3, 1)


def _resize_bilinear(attributes: Attributes, picture: Tensor, size: Tensor) -> Tensor:
    if attributes["align_corners"] or not attributes["half_pixel_centers"]:
        raise NotImplementedError("ResizeBilinear is known with half_pixel_centers and without align_corners")
    resized = F.interpolate(picture.permute(0, 3, 1, 2), size.tolist(), mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1)


def _strided_slice(attributes: Attributes, value: Tensor, begin: Tensor, end: Tensor, strides: Tensor) -> Tensor:
    """Python's slicing of each axis; bits of the masks say which ends are open and which axes are new or dropped."""
    if attributes["ellipsis_mask"]:
        raise NotImplementedError("StridedSlice with an ellipsis is not known")
    index: list[slice | int | None] = []
    for axis, (first, last, step) in enumerate(zip(begin.tolist(), end.tolist(), strides.tolist(), strict=True)):
        bit = 1 << axis
        if attributes["new_axis_mask"] & bit:
            index.append(None)
        elif attributes["shrink_axis_mask"] & bit:
            index.append(first)
        else:
            opened = attributes["begin_mask"] & bit, attributes["end_mask"] & bit
            index.append(slice(None if opened[0] else first, None if opened[1] else last, step))
    return value[tuple(index)]


def _gather_nd(_: Attributes, value: Tensor, indices: Tensor) -> Tensor:
    return value[tuple(indices.long().unbind(-1))]


def _top_k(_: Attributes, value: Tensor, count: Tensor) -> Result:
    """The largest values and their places; of equal ones the first, as TensorFlow has it, which `torch.topk` leaves open."""
    values, places = torch.sort(value, dim=-1, descending=True, stable=True)
    return values[..., : int(count)], places[..., : int(count)].int()


def _range(_: Attributes, start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)


def _split(attributes: Attributes, axis: Tensor, value: Tensor) -> Result:
    return torch.chunk(value, attributes["num_split"], int(axis))


def _squeeze(attributes: Attributes, value: Tensor) -> Tensor:
    axes = attributes.get("squeeze_dims")
    return value.squeeze(tuple(axes)) if axes else value.squeeze()


def _reduction(function: Callable[..., Tensor]) -> Operation:
    def reduce(attributes: Attributes, value: Tensor, axes: Tensor) -> Tensor:
        return function(value, axes.reshape(-1).tolist(), keepdim=attributes["keep_dims"])

    return reduce


def _sizes(value: Tensor) -> Tensor:
    return torch.tensor(value.shape, dtype=torch.int32)


KERNELS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Conv2D": _dense_kernel,
    "_FusedConv2D": _dense_kernel,
    "DepthwiseConv2dNative": _depthwise_kernel,
    "FusedDepthwiseConv2dNative": _depthwise_kernel,
}
"""How the weights of a convolution are reordered, once."""

OPERATIONS: Mapping[str, Operation] = {
    "Conv2D": _convolution,
    "_FusedConv2D": _convolution,
    "DepthwiseConv2dNative": _depthwise,
    "FusedDepthwiseConv2dNative": _depthwise,
    "MaxPool": _max_pool,
    "ResizeBilinear": _resize_bilinear,
    "Identity": lambda _, value: value,
    "Cast": lambda attributes, value: value.to(_DTYPES[attributes["DstT"]]),
    "AddV2": lambda _, one, other: one + other,
    "AddN": lambda _, first, *others: sum(others, first),
    "Sub": lambda _, one, other: one - other,
    "Mul": lambda _, one, other: one * other,
    "RealDiv": lambda _, one, other: one / other,
    "FloorDiv": lambda _, one, other: torch.div(one, other, rounding_mode="floor"),
    "SquaredDifference": lambda _, one, other: (one - other) ** 2,
    "Maximum": lambda _, one, other: torch.maximum(one, other),
    "Minimum": lambda _, one, other: torch.minimum(one, other),
    "Abs": lambda _, value: value.abs(),
    "Exp": lambda _, value: value.exp(),
    "Reciprocal": lambda _, value: value.reciprocal(),
    "Sigmoid": lambda _, value: value.sigmoid(),
    "Less": lambda _, one, other: one < other,
    "Greater": lambda _, one, other: one > other,
    "GreaterEqual": lambda _, one, other: one >= other,
    "Equal": lambda _, one, other: one == other,
    "LogicalAnd": lambda _, one, other: one & other,
    "Select": lambda _, condition, one, other: torch.where(condition, one, other),
    "Sum": _reduction(torch.sum),
    "Max": _reduction(torch.amax),
    "ArgMax": lambda attributes, value, axis: value.argmax(int(axis)).to(_DTYPES[attributes["output_type"]]),
    "TopKV2": _top_k,
    "Shape": lambda _, value: _sizes(value),
    "Size": lambda _, value: torch.tensor(value.numel(), dtype=torch.int32),
    "Reshape": lambda _, value, shape: value.reshape(shape.tolist()),
    "ExpandDims": lambda _, value, axis: value.unsqueeze(int(axis)),
    "Squeeze": _squeeze,
    "Pack": lambda attributes, *values: torch.stack(values, attributes["axis"]),
    "Unpack": lambda attributes, value: value.unbind(attributes["axis"]),
    "ConcatV2": lambda _, *values: torch.cat(values[:-1], int(values[-1])),
    "Split": _split,
    "StridedSlice": _strided_slice,
    "GatherNd": _gather_nd,
    "Tile": lambda _, value, times: value.repeat(times.tolist()),
    "Fill": lambda _, shape, value: torch.full(shape.tolist(), value.item(), dtype=value.dtype),
    "Range": _range,
}
"""By the name of the operation: a function of its attributes and inputs."""
