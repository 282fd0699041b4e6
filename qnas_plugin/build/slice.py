"""Candidate to FP32 ONNX: a subnet is the supernet's graph with sliced initializers.

Skipped blocks are bypassed, BatchNorms become part of the convolution that they follow. Node names are those of the
supernet in every subnet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from qnas_plugin.build.graph import Cut, Graph, Statistics, module_path, prune, replace_nodes
from qnas_plugin.build.shared_model import Outline
from qnas_plugin.errors import MaterializeError


def materialize(graph: Graph, cut: Cut, statistics: Statistics | None = None) -> onnx.ModelProto:
    """The FP32 model of a subnet.

    Args:
        graph: Of the supernet.
        cut: What the subnet keeps.
        statistics: Of its BatchNorms; None takes those of the supernet.

    Raises:
        MaterializeError: A skipped block has no single input and output.
    """
    return subnet(graph, cut, statistics).whole()


def subnet(graph: Graph, cut: Cut, statistics: Statistics | None = None) -> Outline:
    """As ``materialize``; weights that are not cut share the memory of the supernet's."""
    if not cut.widths:  # it is no supernet, and stays as it is
        return Outline(graph.model, graph.weights)
    model, weights = sliced(graph, cut)
    _fold_norms(model.graph, weights, statistics or {})
    return outlined(model, weights)


def sliced(graph: Graph, cut: Cut) -> tuple[onnx.ModelProto, dict[str, npt.NDArray[Any]]]:
    """A subnet before its BatchNorms become part of its convolutions: the nodes, and the weights by name."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    if cut.skipped:
        _bypass(model.graph, cut.skipped)
        prune(model.graph)
    weights = dict(graph.weights)
    for path, (inputs, outputs) in cut.widths.items():
        whole = weights.get(f"{path}.weight.{cut.kernels.get(path)}", weights[f"{path}.weight"])
        if whole.ndim == 1:  # of a LayerNorm
            weights[f"{path}.weight"] = whole[:outputs]
        else:
            weights[f"{path}.weight"] = whole[:outputs, :inputs] if whole.ndim == 4 else whole[:inputs, :outputs]
        if f"{path}.bias" in weights:
            weights[f"{path}.bias"] = weights[f"{path}.bias"][:outputs]
    for node in model.graph.node:
        if node.op_type == "Conv" and module_path(node) in cut.widths:
            _fit_conv(node, weights[node.input[1]].shape)
    for conv, norm in _normalised(model.graph):
        outputs = len(weights[conv.input[1]])
        weights |= {name: weights[name][:outputs] for name in norm.input[1:]}
    return model, weights


def outlined(model: onnx.ModelProto, weights: Mapping[str, npt.NDArray[Any]]) -> Outline:
    """A model without initializers with those weights that it uses."""
    kept = {}
    for name in dict.fromkeys(name for node in model.graph.node for name in node.input if name in weights):
        array = np.ascontiguousarray(weights[name]) if weights[name].ndim else weights[name]
        if array.ndim > 1 and array.dtype == np.float32:
            kept[name] = array
            model.graph.initializer.add(name=name, data_type=onnx.TensorProto.FLOAT, dims=array.shape)
        else:
            model.graph.initializer.append(numpy_helper.from_array(array, name))
    return Outline(model, kept)


def _bypass(graph: onnx.GraphProto, blocks: Iterable[str]) -> None:
    """Connects what reads a block's output to the block's input."""
    for block in blocks:
        inside = [node for node in graph.node if f"{module_path(node)}.".startswith(f"{block}.")]
        outside = [node for node in graph.node if not f"{module_path(node)}.".startswith(f"{block}.")]
        made = {name for node in inside for name in node.output}
        results = dict.fromkeys(name for node in outside for name in node.input if name in made)
        values = {name for node in outside if node.op_type != "Constant" for name in node.output}
        shared = {name for node in outside for name in node.input}
        streams = dict.fromkeys(name for node in inside for name in node.input if name in values - shared)
        if len(results) != 1 or len(streams) != 1:
            raise MaterializeError(
                f"block '{block}' cannot be bypassed: it has inputs {list(streams)} and outputs {list(results)}, "
                "one of each is needed"
            )
        (result,), (stream,) = results, streams
        for node in outside:
            for i, name in enumerate(node.input):
                if name == result:
                    node.input[i] = stream
        replace_nodes(graph, outside)


def _fit_conv(conv: onnx.NodeProto, shape: tuple[int, ...]) -> None:
    """Makes the attributes of a convolution those of its weight; padding changes with the kernel as half of it."""
    for attribute in conv.attribute:
        if attribute.name == "group" and attribute.i > 1:
            attribute.i = shape[0]
        elif attribute.name == "kernel_shape" and tuple(attribute.ints) != shape[2:]:
            attribute.ints[:] = shape[2:]
            (pads,) = (other for other in conv.attribute if other.name == "pads")
            pads.ints[:] = [size // 2 for size in (*shape[2:], *shape[2:])]


def _fold_norms(graph: onnx.GraphProto, weights: dict[str, npt.NDArray[Any]], statistics: Statistics) -> None:
    """Makes each BatchNorm part of the convolution before it, as ONNX Runtime would if nothing were quantized."""
    norms = []
    for conv, norm in _normalised(graph):
        gamma, beta, *own = (weights[name].astype(np.float64) for name in norm.input[1:])
        mean, variance = statistics.get(module_path(norm), own)
        scale = gamma / np.sqrt(variance + epsilon(norm))
        bias = weights[conv.input[2]] if len(conv.input) > 2 else 0.0
        name = conv.input[1].removesuffix("weight") + "bias"
        weights[conv.input[1]] = (weights[conv.input[1]] * scale[:, None, None, None]).astype(np.float32)
        weights[name] = (beta + (bias - mean) * scale).astype(np.float32)
        conv.input[2:] = [name]
        conv.output[0] = norm.output[0]
        norms.append(norm.name)
    if norms:
        replace_nodes(graph, [node for node in graph.node if node.name not in norms])


def _normalised(graph: onnx.GraphProto) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Each BatchNorm after the convolution that it normalises."""
    makers = {node.output[0]: node for node in graph.node}
    return [(makers[node.input[0]], node) for node in graph.node if node.op_type == "BatchNormalization"]


def epsilon(norm: onnx.NodeProto) -> float:
    """What a BatchNormalization adds to a variance."""
    return next((float(attribute.f) for attribute in norm.attribute if attribute.name == "epsilon"), 1e-5)
