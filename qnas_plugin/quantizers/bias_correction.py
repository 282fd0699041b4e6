"""Bias correction (Nagel et al. 2019, section 4.2): what rounding a weight adds to a layer's output on average.

The error of the rounded weight times the mean of what the layer reads is taken off the bias, which costs nothing at run
time. Differs: means are of calibration data, not of a BatchNorm; zeros at the border of images count as the rest.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from qnas_plugin.build.shared_model import Outline
from qnas_plugin.errors import QuantizationError
from qnas_plugin.quantizers._integer_forms import names_of, unique
from qnas_plugin.quantizers.channels import Channels, can_be, transposed
from qnas_plugin.quantizers.formats import Numbers
from qnas_plugin.quantizers.weights import Kept, rounded


def corrected(model: Outline, names: Collection[str], seen: Channels, quantized: Kept) -> Outline:
    """A model with biases that make up for the rounding of weights to symmetric INT8 by channel.

    A MatMul has its bias in the Add behind it; one without is left as it is, as an Add would cost time.

    Args:
        model: Not changed.
        names: Of the nodes.
        seen: Of what the nodes read.
        quantized: The quantized weights of earlier runs; new ones are added.

    Raises:
        QuantizationError: Some channels are not known.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model.model)
    taken = names_of(copy.graph)
    stored = {initializer.name: initializer for initializer in copy.graph.initializer}
    for node in copy.graph.node:
        if node.name not in names or not can_be(node):
            continue
        if node.input[0] not in seen:
            raise QuantizationError(f"the channels of tensor '{node.input[0]}' are not known; calibrate with them too")
        place = _bias(copy.graph, node, stored)
        if place is None:
            continue
        reader, i = place
        change = _shift(node, model.weights[node.input[1]], seen[node.input[0]][2], quantized)
        before = numpy_helper.to_array(stored[reader.input[i]]) if i < len(reader.input) and reader.input[i] else 0
        name = unique(f"{node.input[1]}/bias", taken)
        copy.graph.initializer.append(numpy_helper.from_array((before - change).astype(np.float32), name))
        reader.input[i:] = [name, *reader.input[i + 1 :]]
    read = {name for node in copy.graph.node for name in node.input} | {value.name for value in copy.graph.output}
    unread = [i for i in copy.graph.initializer if i.name not in read and len(i.dims) == 1]
    for initializer in unread:
        copy.graph.initializer.remove(initializer)
    return Outline(copy, model.weights)


def _bias(
    graph: onnx.GraphProto, node: onnx.NodeProto, stored: dict[str, onnx.TensorProto]
) -> tuple[onnx.NodeProto, int] | None:
    """Where the bias vector of a node is read; None if it has no place for one."""
    if node.op_type != "MatMul":
        own = len(node.input) < 3 or not node.input[2] or node.input[2] in stored
        return (node, 2) if own else None
    readers = [other for other in graph.node if node.output[0] in other.input]
    if len(readers) != 1 or readers[0].op_type != "Add" or node.output[0] in {value.name for value in graph.output}:
        return None
    i = 1 - list(readers[0].input).index(node.output[0])
    bias = stored.get(readers[0].input[i])
    return (readers[0], i) if bias is not None and len(bias.dims) == 1 and bias.dims[0] > 1 else None


def _shift(
    node: onnx.NodeProto, weight: npt.NDArray[np.float32], mean: npt.NDArray[np.float32], quantized: Kept
) -> npt.NDArray[np.float64]:
    """What the rounded weight adds to each output channel on average."""
    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    axis = 0 if node.op_type == "Conv" or transposed(node) else weight.ndim - 1
    found = rounded(node.input[1], weight, Numbers(), axis, quantized)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    error = found.values * np.asarray(found.scales, dtype=np.float64).reshape(shape) - weight
    if node.op_type != "Conv":
        return np.asarray((error if transposed(node) else error.T) @ mean * settings.get("alpha", 1.0))
    groups = settings.get("group", 1)
    parts = np.split(error.sum(axis=tuple(range(2, error.ndim))), groups)
    return np.concatenate([part @ own for part, own in zip(parts, np.split(mean, groups), strict=True)])
