"""A plain graph made fit for quantization: which nodes are layers, and names that stay unique when it adds its own."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from qnas_plugin.build.shared_model import Outline

WEIGHT_INPUT = {"MatMul": 1, "Gemm": 1, "Conv": 1, "Gather": 0}
"""The operators that can be quantized, and which of their inputs is the weight or the table."""

# ONNX Runtime has kernels with integer inputs and an FP32 output for these; to round the output too costs accuracy and
# time. A Conv or Gather is an integer kernel only with a rounded output.
FP32_OUTPUT = ["MatMul", "Gemm"]

_SUFFIX = "_quant"
"""What Neural Compressor 3.7.1 adds to the name of a node that it quantizes, and cuts off from any that ends so."""

_OF_TENSOR = ("_scale", "_zero_point", "_quantized", "_dequantized", "_QuantizeInput")
_OF_NODE = ("_QuantizeLinear", "_DequantizeLinear")

Arrays = dict[str, npt.NDArray[Any]]


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the graphs in them, like the branches of an If."""
    for inner in graphs(graph):
        yield from inner.node


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and those in its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g)
            for inner in attribute.graphs:
                yield from graphs(inner)


def layers(graph: onnx.GraphProto, usable: Mapping[str, int]) -> list[onnx.NodeProto]:
    """The nodes that can be quantized, in the order of the graph.

    Args:
        graph: A plain one.
        usable: Matrices, kernels and tables of finite FP32 numbers, and how many axes each has.
    """
    vectors = {i.name for i in graph.initializer if i.data_type == onnx.TensorProto.FLOAT and len(i.dims) == 1}

    def can_be(node: onnx.NodeProto) -> bool:
        if node.op_type not in WEIGHT_INPUT or node.domain:
            return False
        rank = usable.get(node.input[WEIGHT_INPUT[node.op_type]], 0)
        if not (rank > 2 if node.op_type == "Conv" else rank == 2):
            return False
        return (len(node.input) < 3 or node.input[2] in vectors) and _attribute(node, "beta", 1.0) == 1

    return [node for node in graph.node if can_be(node)]


def tidy(outline: Outline, optional: Collection[str], infinite: Collection[str]) -> tuple[Outline, tuple[str, ...]]:
    """A plain model with names and biases as quantization needs them, and the names of its layers.

    Args:
        outline: The model, whose graph is changed.
        optional: Inputs with a default value, which is no constant.
        infinite: Weights with infinite numbers, which have no range.
    """
    graph, weights = outline.model.graph, dict(outline.weights)
    _name_nodes(graph)
    for node in graph.node:
        if node.op_type in WEIGHT_INPUT:
            while node.input and not node.input[-1]:  # an optional input that is not given
                del node.input[-1]
    _make_bias_vectors(graph, weights, optional)
    usable = {name: array.ndim for name, array in weights.items() if array.size and name not in infinite}
    found = layers(graph, usable)
    names = tuple(str(node.name) for node in found)
    clash = _clash(graph, found)
    _read_outputs_by_nodes(graph, weights, optional)
    if clash:
        _rename(graph, weights, [node for node in graph.node if node.name in names])
    return Outline(outline.model, weights), names


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Gives each node a name of its own that does not end as the name of a quantized one does."""
    given = {node.name for node in graph.node}
    taken: set[str] = set()
    numbers: dict[str, int] = {}
    for node in graph.node:
        name = wanted = node.name or node.op_type
        while name in taken or name.endswith(_SUFFIX) or (name != node.name and name in given):
            numbers[wanted] = numbers.get(wanted, 1 if wanted in taken else 0) + 1
            name = f"{wanted}_{numbers[wanted]}"
        taken.add(name)
        node.name = name


def _make_bias_vectors(graph: onnx.GraphProto, weights: Arrays, optional: Collection[str]) -> None:
    """Makes the bias of a Gemm a vector with a number for each output, with beta in it: ONNX allows what broadcasts."""
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in optional}
    new = fresh([graph])
    for node in graph.node:
        if node.op_type != "Gemm" or len(node.input) < 3 or node.input[1] not in weights:
            continue
        outputs = weights[node.input[1]].shape[0 if _attribute(node, "transB", 0) else 1]
        beta, bias = _attribute(node, "beta", 1.0), stored.get(node.input[2])
        if bias is None or bias.data_type != onnx.TensorProto.FLOAT or (list(bias.dims) == [outputs] and beta == 1):
            continue
        values = weights[bias.name] if bias.name in weights else numpy_helper.to_array(bias)
        if values.size != 1 and (values.size, values.shape[-1]) != (outputs, outputs):
            continue  # another bias for each row
        node.input[2] = next(new)
        vector = np.full(outputs, np.float32(beta)) * values.reshape(-1)
        graph.initializer.append(numpy_helper.from_array(vector.astype(np.float32), node.input[2]))
        for entry in node.attribute:
            if entry.name == "beta":
                entry.f = 1.0
    _drop_unread(graph, weights, set(stored))


def _drop_unread(graph: onnx.GraphProto, weights: Arrays, names: Collection[str]) -> None:
    """Drops those of the initializers that nothing reads."""
    read = {name for node in nodes(graph) for name in node.input} | {output.name for output in graph.output}
    for i in reversed(range(len(graph.initializer))):
        name = graph.initializer[i].name
        if name in names and name not in read:
            del graph.initializer[i]
            weights.pop(name, None)


def _read_outputs_by_nodes(graph: onnx.GraphProto, weights: Arrays, optional: Collection[str]) -> None:
    """Where a constant is an output of the model, a node gives it, so that layers may read it in another form."""
    outputs = {output.name for output in graph.output} - set(optional)
    constants = [tensor.name for tensor in graph.initializer if tensor.name in outputs]
    names = dict(zip(constants, fresh([graph]), strict=False))
    if names:
        _replace(graph, weights, names)
        for name, own in names.items():
            graph.node.add(op_type="Identity", name=next(_unnamed(graph)), input=[own], output=[name])


def fresh(found: Collection[onnx.GraphProto]) -> Iterator[str]:
    """Tensor names that no name in these graphs begins with; they have no underscore."""
    taken = {
        name
        for graph in found
        for inner in graphs(graph)
        for node in inner.node
        for name in (node.name, *node.input, *node.output)
    }
    taken |= {tensor.name for graph in found for tensor in (*graph.initializer, *graph.input, *graph.output)}
    mark = "t"
    while any(name.startswith(f"{mark}:") for name in taken):
        mark += "t"
    return (f"{mark}:{i}" for i in count())


def _unnamed(graph: onnx.GraphProto) -> Iterator[str]:
    """Names for nodes that are added."""
    taken = {node.name for node in graph.node}
    return (name for name in map("added.{}".format, count()) if name not in taken)


def _clash(graph: onnx.GraphProto, found: Collection[onnx.NodeProto]) -> bool:
    """Whether quantization would make a name that is taken, or one name of two things."""
    tensors = {name for node in nodes(graph) for name in (*node.input, *node.output)}
    tensors |= {tensor.name for tensor in (*graph.initializer, *graph.input, *graph.output)}
    taken = tensors | {node.name for node in nodes(graph)}
    owners: dict[str, str] = {}
    for node in found:
        bias = [name for name in node.input[2:3] for name in (name, f"{name}/{node.name}")]
        weight = node.input[WEIGHT_INPUT[node.op_type]]
        stored = [*bias, weight, *(f"{weight}_{kind}" for kind in (onnx.TensorProto.UINT8, onnx.TensorProto.INT8))]
        running = [*node.input[:1]] if node.op_type != "Gather" else []
        running += [] if node.op_type in FP32_OUTPUT else [*node.output[:1]]
        made = {name: name for name in stored if name not in (weight, *node.input[2:3])}
        made |= {name + ending: name for name in (*stored, *running) for ending in (*_OF_TENSOR, *_OF_NODE)}
        between = {f"{name}_{node.name}": f"{name} {node.name}" for name in running}
        made |= {name + ending: of for name, of in between.items() for ending in (*_OF_TENSOR, *_OF_NODE)}
        if any(name in taken or owners.setdefault(name, owner) != owner for name, owner in made.items()):
            return True
    return any(not name.strip() and name for name in tensors)


def _rename(graph: onnx.GraphProto, weights: Arrays, found: Collection[onnx.NodeProto]) -> None:
    """Gives each tensor of a layer a name that nothing can clash with; inputs and outputs keep theirs."""
    new = fresh([graph])
    inputs, outputs = {value.name for value in graph.input}, {value.name for value in graph.output}
    tensors = dict.fromkeys(name for node in found for name in (*node.input, *node.output) if name)
    added = onnx.GraphProto()
    unnamed = _unnamed(graph)
    inner: dict[str, str] = {}
    for name in tensors:
        inner[name] = next(new)
        if name in inputs:
            added.node.add(op_type="Identity", name=next(unnamed), input=[name], output=[inner[name]])
    writers = onnx.GraphProto()
    for name in tensors:
        if name in outputs and name not in inputs:
            writers.node.add(op_type="Identity", name=next(unnamed), input=[inner[name]], output=[name])
    _replace(graph, weights, inner)
    ordered = [*added.node, *graph.node, *writers.node]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)


def _replace(graph: onnx.GraphProto, weights: Arrays, names: Mapping[str, str]) -> None:
    """Renames tensors, those of the graph's inputs and outputs apart."""
    for node in nodes(graph):
        for side in (node.input, node.output):
            for i, name in enumerate(side):
                if name in names:
                    side[i] = names[name]
    for inner in graphs(graph):
        for value in inner.output if inner is not graph else ():
            value.name = names.get(value.name, value.name)
    kept = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if tensor.name in names and tensor.name not in kept:
            if tensor.name in weights:
                weights[names[tensor.name]] = weights.pop(tensor.name)
            tensor.name = names[tensor.name]
