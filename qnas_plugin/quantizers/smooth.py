"""SmoothQuant (Xiao et al. 2023, eq. 4): channels of an activation are made alike, and the weight makes up for it.

``x @ w`` is ``(x / s) @ (s * w)``, with ``s`` a power of the largest value of each channel of x, over the same of its
row of w. The division is a Mul in the graph, also behind a norm that could take it in: others may read the norm too.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from qnas_plugin.build.observe import Ranges
from qnas_plugin.build.shared_model import Outline
from qnas_plugin.errors import QuantizationError
from qnas_plugin.quantizers import channels
from qnas_plugin.quantizers._integer_forms import names_of, unique

_SMALLEST = 1e-5  # of a channel or row; dead ones have no scale


@dataclass(frozen=True)
class Smoothed:
    """A model that computes what another does, with other activations and weights.

    Args:
        outline: The model.
        ranges: Those of the tensors that are new in it.
    """

    outline: Outline
    ranges: Ranges


def landed(node: onnx.NodeProto, made_by: Mapping[str, onnx.NodeProto], stored: Container[str]) -> bool:
    """Whether what a node of a finished graph reads is smoothed before it is rounded, if it can be.

    Args:
        node: The node of a group's name with ``_quant``.
        made_by: Tensor to the node that gives it.
        stored: Initializers.
    """
    if not can_be(node):
        return True
    name = node.input[0]
    for operator in ("DequantizeLinear", "QuantizeLinear"):
        if name not in made_by or made_by[name].op_type != operator:
            return False
        name = made_by[name].input[0]
    return name in made_by and made_by[name].op_type == "Mul" and made_by[name].input[1] in stored


def can_be(node: onnx.NodeProto) -> bool:
    """Whether a node is a product with a stored matrix; convolutions are left as they are."""
    return node.op_type != "Conv" and channels.can_be(node)


def smoothed(model: Outline, shares: Mapping[str, float], seen: channels.Channels) -> Smoothed:
    """A model in which what some nodes read is smoothed; it computes the same in FP32, but for rounding.

    Nodes that read one tensor at one alpha share its smoothing.

    Args:
        model: The model, not changed.
        shares: Alphas: name of a node to how much of the differences goes to the weights: 0 is nothing, 1 all.
        seen: Of what the nodes read.

    Raises:
        QuantizationError: Some channels are not known.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model.model)
    taken = names_of(copy.graph)
    weights = dict(model.weights)
    initializers = {initializer.name: initializer for initializer in copy.graph.initializer}
    together: dict[tuple[str, float], list[onnx.NodeProto]] = {}
    for node in copy.graph.node:
        if node.name in shares and can_be(node):
            together.setdefault((node.input[0], shares[node.name]), []).append(node)
    missing = [name for name, _ in together if name not in seen]
    if missing:
        raise QuantizationError(f"the channels of tensor '{missing[0]}' are not known; calibrate with them too")
    ranges, before = {}, {}
    for (name, alpha), nodes in together.items():
        rows = np.max([np.abs(_rows(node, weights[node.input[1]])).max(axis=1) for node in nodes], axis=0)
        largest = np.abs(seen[name][:2]).max(axis=0)
        scale = np.maximum(largest, _SMALLEST) ** alpha / np.maximum(rows, _SMALLEST) ** (1 - alpha)
        scale = np.maximum(scale, _SMALLEST).astype(np.float32)
        factor, result = unique(f"{name}/smoothing", taken), unique(f"{name}/smoothed", taken)
        copy.graph.initializer.append(numpy_helper.from_array(np.float32(1) / scale, factor))
        before[nodes[0].name] = helper.make_node("Mul", [name, factor], [result], unique(f"{result}/Mul", taken))
        low, high = seen[name][:2] / scale
        ranges[result] = float(low.min()), float(high.max())
        for node in nodes:
            weight = node.input[1]
            own = unique(f"{weight}/smoothed", taken)
            weights[own] = np.ascontiguousarray(
                weights[weight] * (scale if channels.transposed(node) else scale[:, None])
            )
            copy.graph.initializer.add().CopyFrom(initializers[weight])
            copy.graph.initializer[-1].name = node.input[1] = own
            node.input[0] = result
    _insert(copy.graph, before)
    read = {name for node in copy.graph.node for name in node.input} | {value.name for value in copy.graph.output}
    kept = [i for i in copy.graph.initializer if i.name in read or i.name not in model.weights]
    kept = [onnx.TensorProto.FromString(initializer.SerializeToString()) for initializer in kept]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(kept)
    stored = {initializer.name for initializer in kept}
    return Smoothed(Outline(copy, {name: array for name, array in weights.items() if name in stored}), ranges)


def _rows(node: onnx.NodeProto, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The weight with a row for each channel that the node reads."""
    return weight.T if channels.transposed(node) else weight


def _insert(graph: onnx.GraphProto, before: Mapping[str, onnx.NodeProto]) -> None:
    """Puts nodes before those of these names."""
    nodes = [each for node in graph.node for each in (before.get(node.name), node) if each is not None]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
