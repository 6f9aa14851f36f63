"""A graph of TensorFlow.js runs as torch operations: small graphs whose results are known, and graphs that are refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from starlab.platform.pose.graph import Graph, GraphError, read_graph

Weights = dict[str, tuple[np.ndarray, str | None]]


def text(value: str) -> dict[str, str]:
    return {"s": base64.b64encode(value.encode()).decode()}


def numbers(*values: int) -> dict[str, Any]:
    return {"list": {"i": [str(value) for value in values]}}


def node(name: str, operation: str, *inputs: str, **attributes: Any) -> dict[str, Any]:
    return {"name": name, "op": operation, "input": list(inputs), "attr": attributes}


def described(
    nodes: list[dict[str, Any]], weights: dict[str, np.ndarray], output: str = "out", half: bool = False
) -> tuple[Any, bytes]:
    """The two files of a graph with one input, `x`."""
    listed, data = [], b""
    for name, value in weights.items():
        entry: dict[str, Any] = {"name": name, "shape": list(value.shape), "dtype": str(value.dtype)}
        if half and value.dtype == np.float32:
            entry["quantization"] = {"dtype": "float16", "original_dtype": "float32"}
            value = value.astype(np.float16)
        listed.append(entry)
        data += value.tobytes()
    constants = [node(name, "Const") for name in weights]
    signature = {"inputs": {"x": {"name": "x:0"}}, "outputs": {"output_0": {"name": output}}}
    content = {
        "modelTopology": {"node": [node("x", "Placeholder"), *constants, *nodes]},
        "signature": signature,
        "weightsManifest": [{"paths": ["w.bin"], "weights": listed}],
    }
    return content, data


def run(nodes: list[dict[str, Any]], weights: dict[str, np.ndarray], x: torch.Tensor, output: str = "out") -> torch.Tensor:
    [result] = Graph(*described(nodes, weights, output))(x)
    return result


CONVOLUTION = {"strides": numbers(1, 2, 2, 1), "dilations": numbers(1, 1, 1, 1), "padding": text("SAME")}


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 9), (5, 6)])
def test_a_convolution_pads_as_tensorflow_does_with_the_odd_row_behind(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(3, 3, 2, 4)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    x = torch.from_numpy(rng.normal(size=(1, height, width, 2)).astype(np.float32))
    fused = {"list": {"s": [text("BiasAdd")["s"], text("Relu6")["s"]]}}
    found = run([node("out", "_FusedConv2D", "x", "k", "b", fused_ops=fused, **CONVOLUTION)], {"k": kernel, "b": bias}, x)
    by_hand = np.zeros((-(-height // 2), -(-width // 2), 4), np.float32)
    pad = [max(0, (-(-size // 2) - 1) * 2 + 3 - size) for size in (height, width)]
    padded = np.pad(x[0].numpy(), [(p // 2, p - p // 2) for p in pad] + [(0, 0)])
    for row in range(by_hand.shape[0]):
        for column in range(by_hand.shape[1]):
            window = padded[2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            by_hand[row, column] = np.einsum("hwc,hwco->o", window, kernel) + bias
    np.testing.assert_allclose(found[0].numpy(), by_hand.clip(0, 6), atol=1e-5)


def test_a_depthwise_convolution_keeps_the_channels_apart() -> None:
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=(3, 3, 3, 1)).astype(np.float32)
    x = torch.from_numpy(rng.normal(size=(1, 6, 6, 3)).astype(np.float32))
    attributes = {**CONVOLUTION, "strides": numbers(1, 1, 1, 1)}
    found = run([node("out", "DepthwiseConv2dNative", "x", "k", **attributes)], {"k": kernel}, x)
    for channel in range(3):
        alone = F.conv2d(x[..., channel][:, None], torch.from_numpy(kernel[..., channel, 0])[None, None], padding=1)
        np.testing.assert_allclose(found[..., channel].numpy(), alone[:, 0].numpy(), atol=1e-5)


def test_a_slice_has_open_ends_new_axes_and_dropped_axes_by_its_masks() -> None:
    x = torch.arange(24).reshape(4, 6)
    ends = {"a": np.array([1, 0, 2], np.int32), "b": np.array([3, 0, 0], np.int32), "c": np.array([1, 1, 1], np.int32)}
    masks = {"begin_mask": {"i": "0"}, "end_mask": {"i": "4"}, "new_axis_mask": {"i": "2"}, "shrink_axis_mask": {"i": "0"}}
    found = run([node("out", "StridedSlice", "x", "a", "b", "c", ellipsis_mask={"i": "0"}, **masks)], ends, x)
    np.testing.assert_array_equal(found.numpy(), x.numpy()[1:3, None, 2:])
    masks |= {"end_mask": {"i": "0"}, "new_axis_mask": {"i": "0"}, "shrink_axis_mask": {"i": "1"}}
    ends = {"a": np.array([1, 0], np.int32), "b": np.array([2, 6], np.int32), "c": np.array([1, 2], np.int32)}
    found = run([node("out", "StridedSlice", "x", "a", "b", "c", ellipsis_mask={"i": "0"}, **masks)], ends, x)
    np.testing.assert_array_equal(found.numpy(), x.numpy()[1, ::2])


def test_the_largest_values_come_in_order_and_of_equal_ones_the_first() -> None:
    x = torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0])
    top = [node("top", "TopKV2", "x", "k")]
    assert run([*top, node("out", "Identity", "top")], {"k": np.array(4, np.int32)}, x).tolist() == [3, 3, 3, 2]
    assert run([*top, node("out", "Identity", "top:1")], {"k": np.array(4, np.int32)}, x).tolist() == [1, 2, 4, 3]


def test_a_picture_is_enlarged_about_the_middle_of_its_pixels() -> None:
    x = torch.tensor([[0.0, 1.0]]).reshape(1, 1, 2, 1)
    attributes = {"align_corners": {"b": False}, "half_pixel_centers": {"b": True}}
    found = run([node("out", "ResizeBilinear", "x", "s", **attributes)], {"s": np.array([1, 4], np.int32)}, x)
    assert found.flatten().tolist() == [0.0, 0.25, 0.75, 1.0]


def test_indices_into_several_axes_are_gathered() -> None:
    x = torch.arange(12).reshape(3, 4)
    assert run([node("out", "GatherNd", "x", "i")], {"i": np.array([[2, 1], [0, 3]], np.int32)}, x).tolist() == [9, 3]


def test_integers_are_divided_downwards_and_cast() -> None:
    x = torch.tensor([-3, 3], dtype=torch.int32)
    nodes = [node("half", "FloorDiv", "x", "two"), node("out", "Cast", "half", DstT={"type": "DT_FLOAT"})]
    found = run(nodes, {"two": np.array(2, np.int32)}, x)
    assert (found.dtype, found.tolist()) == (torch.float32, [-2.0, 1.0])


def test_weights_of_half_precision_are_widened_and_only_what_the_output_needs_is_computed() -> None:
    nodes = [node("out", "AddV2", "x", "w"), node("unused", "NoSuchOperation", "x")]
    content, data = described(nodes, {"w": np.array([0.5, 1.5], np.float32)}, half=True)
    assert len(data) == 4
    [found] = read_graph(json.dumps(content).encode(), data)(torch.ones(2))
    assert (found.dtype, found.tolist()) == (torch.float32, [1.5, 2.5])


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ([node("out", "FancyOp", "x")], "operation FancyOp of node out is not known"),
        ([node("out", "Abs", "nowhere")], "no node nowhere"),
        ([node("out", "Abs", "b"), node("b", "Abs", "out")], "needs its own result"),
        ([node("out", "Conv2D", "x", "k"), node("k", "Abs", "x")], "the weights of the convolution out are computed by k"),
    ],
)
def test_a_graph_that_cannot_be_run_is_refused_before_anything_is_computed(nodes: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(GraphError, match=says):
        Graph(*described(nodes, {}))


def test_weights_that_are_cut_short_or_too_long_are_refused() -> None:
    content, data = described([node("out", "AddV2", "x", "w")], {"w": np.zeros(3, np.float32)})
    with pytest.raises(GraphError, match="end within w: 11 bytes, at least 12"):
        Graph(content, data[:-1])
    with pytest.raises(GraphError, match="13 bytes, 12 expected"):
        Graph(content, data + b"!")


def test_a_file_that_is_no_graph_is_refused() -> None:
    with pytest.raises(GraphError, match="not JSON"):
        read_graph(b"\x00", b"")
    with pytest.raises(GraphError, match="not a graph model"):
        read_graph(b'{"a": 1}', b"")
