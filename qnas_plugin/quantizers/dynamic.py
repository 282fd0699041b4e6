"""Layers whose activations get their scale anew in each run: ``int8-dynamic``.

A product is a DynamicQuantizeLinear, shared by the layers that read one tensor, a MatMulInteger or ConvInteger, and
a Mul with both scales, which ONNX Runtime fuses where it has a kernel for the whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from qnas_plugin.build.tidy import WEIGHT_INPUT
from qnas_plugin.quantizers._integer_forms import names_of, unique
from qnas_plugin.quantizers.formats import Numbers
from qnas_plugin.quantizers.weights import Kept
from qnas_plugin.quantizers.weights import rounded as rounded_weight

_INTEGER = {"MatMul": "MatMulInteger", "Gemm": "MatMulInteger", "Conv": "ConvInteger"}
_OF_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def emit(
    graph: onnx.GraphProto, names: Collection[str], weights: Mapping[str, npt.NDArray[Any]], quantized: Kept
) -> dict[str, npt.NDArray[Any]]:
    """Replaces MatMul, Gemm and Conv nodes.

    Args:
        graph: Changed; its weights need no values.
        names: Of the nodes.
        weights: The FP32 weights by name.
        quantized: The quantized weights of earlier runs; new ones are added.

    Returns:
        The quantized weights by the names of their initializers, which have no values.
    """
    taken = names_of(graph)
    stored: dict[str, npt.NDArray[Any]] = {}
    rounded: dict[str, list[str]] = {}

    def new(name: str) -> str:
        return unique(name, taken)

    def store(name: str, array: npt.NDArray[Any]) -> str:
        graph.initializer.append(numpy_helper.from_array(array, new(name)))
        return str(graph.initializer[-1].name)

    def source(name: str) -> list[str]:
        if name not in rounded:
            rounded[name] = [new(f"{name}_dynamic_{part}") for part in ("quantized", "scale", "zero_point")]
            nodes.append(
                helper.make_node("DynamicQuantizeLinear", [name], rounded[name], new(f"{name}_QuantizeLinear"))
            )
        return rounded[name]

    def weight(node: onnx.NodeProto, settings: Mapping[str, Any]) -> tuple[str, str]:
        name = node.input[WEIGHT_INPUT[node.op_type]]
        transposed = node.op_type == "Gemm" and settings.get("transB", 0) == 1
        axis = 0 if node.op_type == "Conv" or transposed else weights[name].ndim - 1
        found = rounded_weight(name, weights[name], Numbers(), axis, quantized)
        scales = found.scales * np.float32(settings.get("alpha", 1.0))
        values = np.ascontiguousarray(found.values.T) if transposed else found.values
        own = new(f"{name}_quantized")
        stored[own] = values
        graph.initializer.add(name=own, data_type=onnx.TensorProto.INT8, dims=values.shape)
        shape = (-1, *(1,) * (values.ndim - 2)) if node.op_type == "Conv" else (-1,)
        return own, store(f"{name}_scale", scales.reshape(shape))

    def product(node: onnx.NodeProto) -> None:
        settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        read = node.input[0]
        if settings.get("transA", 0):
            read = new(f"{node.name}_transposed")
            nodes.append(helper.make_node("Transpose", [node.input[0]], [read], new(f"{node.name}_Transpose")))
        values, scale, zero_point = source(read)
        own, own_scale = weight(node, settings)
        bias = node.input[2] if len(node.input) > 2 else ""
        parts = ("integers", "floats", "scale", *(["scaled"] if bias else []))
        integers, floats, both, *scaled = (new(f"{node.name}_{part}") for part in parts)
        kept = {name: value for name, value in settings.items() if name in _OF_CONV}
        result = scaled[0] if bias else node.output[0]
        nodes.extend(
            [
                helper.make_node(
                    _INTEGER[node.op_type], [values, own, zero_point], [integers], f"{node.name}_quant", **kept
                ),
                helper.make_node("Cast", [integers], [floats], new(f"{node.name}_Cast"), to=onnx.TensorProto.FLOAT),
                helper.make_node("Mul", [scale, own_scale], [both], new(f"{node.name}_Scale")),
                helper.make_node("Mul", [floats, both], [result], new(f"{node.name}_Mul")),
            ]
        )
        if bias and node.op_type == "Conv":  # along the channels
            column = new(f"{node.name}_bias")
            shape = store(f"{node.name}_bias_shape", np.array([-1, *(1,) * (weights[node.input[1]].ndim - 2)]))
            nodes.append(helper.make_node("Reshape", [bias, shape], [column], new(f"{node.name}_Reshape")))
            bias = column
        if bias:
            nodes.append(helper.make_node("Add", [result, bias], list(node.output), new(f"{node.name}_Add")))

    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.name in names:
            product(node)
        else:
            nodes.append(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unread(graph, weights)
    return stored


def landed(node: onnx.NodeProto, made_by: Mapping[str, onnx.NodeProto], stored: Mapping[str, int]) -> bool:
    """Whether a node of a finished graph is an integer product of a stored INT8 weight and a tensor rounded in the run.

    Args:
        node: The node of a group's name with ``_quant``.
        made_by: Tensor to the node that gives it.
        stored: Initializer to its type.
    """
    if node.op_type not in _INTEGER.values() or stored.get(node.input[1]) != onnx.TensorProto.INT8:
        return False
    source = made_by.get(node.input[0])
    if source is None or source.op_type != "DynamicQuantizeLinear":
        return False
    return list(node.input[2:]) == [source.output[2]]


def _drop_unread(graph: onnx.GraphProto, weights: Iterable[str]) -> None:
    """Drops FP32 weights that no node reads any more."""
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    unread = {name for name in weights if name not in read}
    for initializer in [initializer for initializer in graph.initializer if initializer.name in unread]:
        graph.initializer.remove(initializer)
