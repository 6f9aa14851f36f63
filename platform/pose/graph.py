"""Runs a graph model of TensorFlow.js as torch operations.

Such a model is two files: a JSON file with the nodes of a TensorFlow graph and a list of weights, and the bytes of these
weights, end to end. This module needs no TensorFlow. It knows the operations of `graph_operations.OPERATIONS` and refuses a
model with any other before it computes anything.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starlab.platform.pose.graph_operations import KERNELS, OPERATIONS, Attributes, Result

_WEIGHT_DTYPES = {"float32": np.float32, "int32": np.int32, "bool": np.bool_}
_QUANTIZED_DTYPES = {"float16": np.float16}


class GraphError(ValueError):
    """The files are not a graph model that can be run here; the message says what in them is not known."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operation of a graph."""

    name: str
    operation: str
    attributes: Attributes
    inputs: tuple[tuple[str, int], ...]
    """The name of the node that each input comes from, and the number of its result."""


class Graph:
    """A graph with its weights. Calling it computes its outputs."""

    def __init__(self, description: Mapping[str, Any], weights: bytes) -> None:
        """Order the nodes and unpack the weights.

        Args:
            description: The content of the JSON file.
            weights: The bytes of all weight files, in the order that the JSON file lists them.

        Raises:
            GraphError: the description is not that of a graph model, an operation is not known, or the weights do not fit.
        """
        try:
            nodes = {node.name: node for node in map(_node, description["modelTopology"]["node"])}
            signature = description.get("signature") or description["userDefinedMetadata"]["signature"]
            listed = [weight for group in description["weightsManifest"] for weight in group["weights"]]
            self.outputs = tuple(_source(signature["outputs"][name]["name"]) for name in sorted(signature["outputs"]))
            self.inputs = tuple(_source(signature["inputs"][name]["name"])[0] for name in sorted(signature["inputs"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise GraphError(f"not a graph model of TensorFlow.js: {type(error).__name__} {error}") from error
        constants = _unpack(listed, weights)
        self._steps, last_use = _in_order(nodes, self.outputs, self.inputs, constants)
        self._constants = {name: constants[name] for name in last_use if name in constants}
        self._last_use = last_use
        self._kernels = _kernels(self._steps, constants)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Compute the outputs, in the order of their names.

        Args:
            *inputs: One tensor for each name of `inputs`.

        Raises:
            ValueError: the number of inputs is not that of the graph.
        """
        if len(inputs) != len(self.inputs):
            raise ValueError(f"the graph has {len(self.inputs)} inputs ({', '.join(self.inputs)}), got {len(inputs)}")
        values: dict[str, Result] = {**self._constants, **dict(zip(self.inputs, inputs, strict=True))}
        with torch.inference_mode():
            for number, step in enumerate(self._steps):
                taken = [_pick(values[name], place) for name, place in step.inputs]
                if step.name in self._kernels:
                    taken[1] = self._kernels[step.name]
                values[step.name] = OPERATIONS[step.operation](step.attributes, *taken)
                for name, _ in step.inputs:
                    if self._last_use[name] == number and name not in self._constants:
                        values.pop(name, None)
            return [_pick(values[name], place) for name, place in self.outputs]


def read_graph(description: bytes, weights: bytes) -> Graph:
    """The graph in the bytes of a JSON file and of its weights.

    Raises:
        GraphError: they are not those of a graph model that can be run here.
    """
    try:
        content = json.loads(description)
    except ValueError as error:
        raise GraphError(f"the description of the graph is not JSON: {error}") from error
    return Graph(content, weights)


def _pick(value: Result, place: int) -> Tensor:
    return value if isinstance(value, Tensor) else value[place]


def _source(name: str) -> tuple[str, int]:
    """The node and the number of its result in a name such as "TopKV2:1"."""
    node, _, place = name.partition(":")
    return node, int(place or 0)


def _node(content: Mapping[str, Any]) -> Node:
    return Node(
        name=content["name"],
        operation=content["op"],
        attributes={name: _attribute(value) for name, value in content.get("attr", {}).items()},
        inputs=tuple(_source(name) for name in content.get("input", ()) if not name.startswith("^")),
    )


def _attribute(value: Mapping[str, Any]) -> Any:
    """A number, a text, a truth value, the name of a dtype, or a list of them; None for anything else."""
    if "list" in value:
        [items] = value["list"].values() or [[]]
        return [_attribute({kind: item}) for kind in value["list"] for item in items]
    for kind, convert in (("i", int), ("f", float), ("b", bool), ("type", str)):
        if kind in value:
            return convert(value[kind])
    return base64.b64decode(value["s"]).decode() if "s" in value else None


def _unpack(listed: list[Mapping[str, Any]], weights: bytes) -> dict[str, Tensor]:
    """The weights by name."""
    found: dict[str, Tensor] = {}
    at = 0
    for weight in listed:
        name, quantized = weight["name"], weight.get("quantization") or {}
        stored = quantized.get("dtype", weight["dtype"])
        dtype = (_QUANTIZED_DTYPES if quantized else _WEIGHT_DTYPES).get(stored)
        if dtype is None or weight["dtype"] not in _WEIGHT_DTYPES:
            raise GraphError(f"weight {name} is stored as {stored}, which is not read here")
        count = int(np.prod(weight["shape"], dtype=np.int64))
        size = count * np.dtype(dtype).itemsize
        if at + size > len(weights):
            raise GraphError(f"the weights end within {name}: {len(weights):,} bytes, at least {at + size:,} expected")
        values: NDArray[Any] = np.frombuffer(weights, dtype, count, at).astype(_WEIGHT_DTYPES[weight["dtype"]])
        found[name] = torch.from_numpy(values.reshape(weight["shape"]))
        at += size
    if at != len(weights):
        raise GraphError(f"the weights have {len(weights):,} bytes, {at:,} expected")
    return found


def _in_order(
    nodes: Mapping[str, Node],
    outputs: tuple[tuple[str, int], ...],
    inputs: tuple[str, ...],
    constants: Mapping[str, Tensor],
) -> tuple[list[Node], dict[str, int]]:
    """The nodes that the outputs need, each after what it needs; and the step at which each result is used last."""
    steps: list[Node] = []
    done: set[str] = {*inputs, *constants}
    waiting = [name for name, _ in reversed(outputs)]
    under_way: set[str] = set()
    while waiting:
        name = waiting[-1]
        if name in done:
            waiting.pop()
            continue
        node = nodes.get(name)
        if node is None:
            raise GraphError(f"the graph has no node {name}")
        missing = [source for source, _ in node.inputs if source not in done]
        if not missing:
            if node.operation not in OPERATIONS:
                raise GraphError(f"operation {node.operation} of node {name} is not known")
            steps.append(node)
            done.add(name)
        elif name in under_way:
            raise GraphError(f"node {name} needs its own result")
        else:
            waiting += missing
        under_way.add(name)
    last_use = {source: number for number, step in enumerate(steps) for source, _ in step.inputs}
    return steps, last_use | {name: len(steps) for name, _ in outputs}


def _kernels(steps: list[Node], constants: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of each convolution in torch's order of axes, by the convolution's name."""
    kernels: dict[str, Tensor] = {}
    for step in steps:
        if step.operation in KERNELS:
            name = step.inputs[1][0]
            if name not in constants:
                raise GraphError(f"the weights of the convolution {step.name} are computed by {name}, which is not read here")
            kernels[step.name] = KERNELS[step.operation](constants[name])
    return kernels
