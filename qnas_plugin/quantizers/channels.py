"""What the channels of activations are over some data: of what convolutions and matrix products read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from qnas_plugin.build.observe import run
from qnas_plugin.build.shared_model import Outline
from qnas_plugin.data import Batch
from qnas_plugin.errors import QuantizationError
from qnas_plugin.quantizers._integer_forms import names_of, unique

Channels = Mapping[str, npt.NDArray[np.float32]]
"""Tensor name to the smallest value, the largest and the mean of each of its channels, ``(3, channels)``."""

_AXES_ARE_INPUTS = 18  # of ReduceMin and ReduceMax, from this opset on


def can_be(node: onnx.NodeProto) -> bool:
    """Whether a node multiplies channels of what it reads with a stored weight: the last axis, or that of a Conv."""
    columns = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return node.op_type in ("MatMul", "Gemm", "Conv") and not columns


def transposed(node: onnx.NodeProto) -> bool:
    """Whether a Gemm reads its weight transposed."""
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def count(node: onnx.NodeProto, dims: Sequence[int]) -> int:
    """How many channels a node with a weight of these sizes reads."""
    if node.op_type == "Conv":
        return dims[1] * next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    return dims[-1 if transposed(node) else 0]


def watch(model: Outline, nodes: Sequence[onnx.NodeProto], batches: Sequence[Batch]) -> Channels:
    """The channels of what some nodes of a model read, over some data.

    It runs on one thread: sums of several may differ in a last bit.

    Raises:
        QuantizationError: The data lack an input, or a value is not finite.
    """
    read = {node.input[0]: node for node in nodes if can_be(node)}
    if not read:
        return {}
    sizes = {name: count(node, model.weights[node.input[1]].shape) for name, node in read.items()}
    copy = onnx.ModelProto()
    copy.CopyFrom(model.model)
    outputs = [name for each, node in read.items() for name in _reduced(copy, each, sizes[each], node)]
    low: dict[str, Any] = dict.fromkeys(read, np.inf)
    high: dict[str, Any] = dict.fromkeys(read, -np.inf)
    total: dict[str, Any] = dict.fromkeys(read, 0.0)
    places = dict.fromkeys(read, 0)
    for values in run(Outline(copy, model.weights), outputs, batches, threads=1):
        for name, least, most, sums, numbers in zip(read, *(values[i::4] for i in range(4)), strict=True):
            low[name], high[name] = np.minimum(low[name], least.ravel()), np.maximum(high[name], most.ravel())
            total[name] = total[name] + sums.ravel().astype(np.float64)
            places[name] += int(numbers) // sizes[name]
    found = {name: np.stack([low[name], high[name], total[name] / max(1, places[name])]) for name in read}
    for name, channels in found.items():
        if not np.isfinite(channels).all():
            raise QuantizationError(f"tensor '{name}' is not finite on the calibration data; the model must be finite")
    return {name: channels.astype(np.float32) for name, channels in found.items()}


def alike(model: onnx.ModelProto, ends: tuple[float, float]) -> Channels:
    """Channels without data, all with the same extremes and a mean of zero."""
    dims = {i.name: i.dims for i in model.graph.initializer if len(i.dims) > 1}
    nodes = [node for node in model.graph.node if can_be(node) and node.input[1] in dims]
    column = np.array([*ends, 0.0], dtype=np.float32)[:, None]
    return {node.input[0]: np.tile(column, (1, count(node, dims[node.input[1]]))) for node in nodes}


def _reduced(model: onnx.ModelProto, name: str, size: int, node: onnx.NodeProto) -> list[str]:
    """Adds nodes that reduce a tensor, and names what they give: smallest, largest, sum, and the number of values."""
    graph, taken = model.graph, names_of(model.graph)
    flat, axes = unique(f"{name}/flat", taken), unique(f"{name}/axes", taken)
    # Of images, the places are one axis; whatever stands before the last axis of others is one too.
    shape = unique(f"{name}/shape", taken)
    sizes, kept = ([0, size, -1], [0, 2]) if node.op_type == "Conv" else ([-1, size], [0])
    graph.initializer.append(numpy_helper.from_array(np.array(sizes, dtype=np.int64), shape))
    graph.initializer.append(numpy_helper.from_array(np.array(kept, dtype=np.int64), axes))
    graph.node.append(helper.make_node("Reshape", [name, shape], [flat]))
    outputs = [unique(f"{name}/{part}", taken) for part in ("low", "high", "sum", "number")]
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    for operator, output in zip(("ReduceMin", "ReduceMax"), outputs[:2], strict=True):
        if opset < _AXES_ARE_INPUTS:
            graph.node.append(helper.make_node(operator, [flat], [output], axes=kept, keepdims=0))
        else:
            graph.node.append(helper.make_node(operator, [flat, axes], [output], keepdims=0))
    graph.node.append(helper.make_node("ReduceSum", [flat, axes], [outputs[2]], keepdims=0))
    graph.node.append(helper.make_node("Size", [flat], [outputs[3]]))
    return outputs
