"""What a model runs as: the kernel that ONNX Runtime has for each layer of a file, in its optimised graph.

A file says INT8 where a weight is stored in 8 bits; an INT8 layer is one whose kernel reads these bits. Where the
kernel reads FP32, the whole weight is converted in every run: slower than FP32, and an integer by name only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from qnas_plugin.errors import MeasurementError, door
from qnas_plugin.runtimes.onnxruntime import optimised

_EIGHT_BITS = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
_LAYERS = ("Conv", "ConvTranspose", "Einsum", "Gather", "Gemm", "GRU", "LSTM", "MatMul", "RNN")


@dataclass(frozen=True)
class Layer:
    """A node with a stored weight of two or more axes.

    Args:
        name: Of the node in the file.
        weight: The stored weight.
        int8: Whether it is stored in 8 bits.
        kernels: The operators that read it in the optimised graph.
        nodes: Names of these nodes, as they stand in a profile of ONNX Runtime.
        integer: Whether they read it as it is stored, in 8 bits.
    """

    name: str
    weight: str
    int8: bool
    kernels: tuple[str, ...]
    nodes: tuple[str, ...]
    integer: bool

    def __str__(self) -> str:
        text = ", ".join(self.kernels) or "not found"
        return f"{text} in FP32, the weight is converted in every run" if self.int8 and not self.integer else text


@dataclass(frozen=True)
class Kernels:
    """What the precision groups of a member run as.

    Args:
        groups: Group to the operators that read its weights.
        not_integer: INT8 groups of which some layer is not computed in integers.
    """

    groups: Mapping[str, tuple[str, ...]]
    not_integer: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As it stands in ``pareto.json``."""
        return {
            "groups": {group: list(operators) for group, operators in self.groups.items()},
            "not_integer": list(self.not_integer),
        }


def executed(model: Path, groups: Mapping[str, tuple[str, ...]]) -> Kernels:
    """What the precision groups of a file that was emitted for a policy run as.

    Args:
        model: The file.
        groups: Precision group to the names of its nodes in the FP32 graph.

    Raises:
        MeasurementError: ONNX Runtime cannot run the file.
    """
    found = {layer.name.removesuffix("_quant"): layer for layer in layers(model)}
    of = {group: [found[name] for name in names if name in found] for group, names in groups.items()}
    return Kernels(
        {group: tuple(sorted({kernel for own in owns for kernel in own.kernels})) for group, owns in of.items()},
        tuple(group for group, owns in of.items() if any(own.int8 and not own.integer for own in owns)),
    )


def in_name_only(found: Iterable[Kernels]) -> str:
    """A sentence about the INT8 groups that are not computed in integers; empty if there is none."""
    names = list(dict.fromkeys(name for kernels in found for name in kernels.not_integer))
    if not names:
        return ""
    return (
        f"INT8 in the file, and computed in FP32 by ONNX Runtime: {', '.join(names)}; their weights are converted in "
        "every run, so FP32 would be faster"
    )


def summary(found: Sequence[Layer], operators: Mapping[str, float], run: float) -> str:
    """What the layers of a file and the time of its operators come to.

    Args:
        found: The layers.
        operators: Milliseconds of each operator in a run.
        run: Milliseconds of the run.
    """
    int8 = [layer for layer in found if layer.int8]
    if not int8:
        return f"{len(found)} layers, none of them INT8."
    products = {kernel for layer in int8 if layer.integer for kernel in layer.kernels if kernel != "Gather"}
    whole, rounding = (
        100 * sum(operators.get(name, 0.0) for name in names) / run
        for names in (products, ("QuantizeLinear", "DequantizeLinear"))
    )
    wrong = [layer.name for layer in int8 if not layer.integer]
    return (
        f"{len(int8)} of {len(found)} layers are stored as INT8 and {len(int8) - len(wrong)} of these are computed in "
        f"integers. Integer products take {whole:.0f} % of the time, rounding to INT8 and back {rounding:.0f} %."
        + (f" In FP32 on weights that are converted in every run: {', '.join(wrong)}." if wrong else "")
    )


def layers(model: Path) -> list[Layer]:
    """The layers of a file in the order of the graph, outside of If and Loop.

    Raises:
        MeasurementError: ONNX Runtime cannot run the file.
    """
    with door(MeasurementError, f"cannot read '{model.name}' as an ONNX model"):
        emitted = onnx.load(str(model), load_external_data=False).graph
    optimized = _Optimised.of(optimised(model).graph)
    return [optimized.layer(*found) for found in _stored(emitted)]


@dataclass(frozen=True)
class _Optimised:
    """An optimised graph, indexed.

    Args:
        nodes: All of them.
        named: The same by their names.
        weights: Stored tensors of two or more axes, and their types.
        readers: Tensor to the nodes that read it.
        converted: Outputs of nodes that convert a weight to FP32.
    """

    nodes: Sequence[onnx.NodeProto]
    named: Mapping[str, onnx.NodeProto]
    weights: Mapping[str, int]
    readers: Mapping[str, Sequence[onnx.NodeProto]]
    converted: set[str]

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> _Optimised:
        weights = _weights(graph)
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        converted = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in weights}
        return cls(graph.node, {node.name: node for node in graph.node}, weights, readers, converted)

    def layer(self, node: onnx.NodeProto, weight: str, int8: bool, written: Sequence[str]) -> Layer:
        """What a node of the file runs as."""
        found: list[onnx.NodeProto] = []
        for reader in self.readers.get(weight, ()):
            converts = reader.output[0] in self.converted
            found += self.readers.get(reader.output[0], ()) if converts else [reader]
        # Layers that share a weight have a kernel each, and some kernels want the weight rearranged under a new name.
        # Nodes keep their names, with something before or behind them.
        candidates = found if len(found) == 1 else found or self.nodes
        if len(candidates) > 1 and node.name:
            own = [other for other in candidates if other.name == node.name]
            candidates = own or [other for other in candidates if node.name in other.name] or found
        if not candidates:  # convolutions on blocks of channels are named after what they write, an activation included
            candidates = [self.named[f"{name}_nchwc"] for name in written if f"{name}_nchwc" in self.named][:1]
        inputs = [name for other in candidates for name in other.input]
        integer = any(self.weights.get(name) in _EIGHT_BITS for name in inputs)
        return Layer(
            node.name,
            weight,
            int8,
            tuple(dict.fromkeys(other.op_type for other in candidates)),
            tuple(other.name for other in candidates),
            integer and self.converted.isdisjoint(inputs),
        )


def _stored(graph: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto, str, bool, list[str]]]:
    """Layers, the weight that each reads, directly or dequantized, whether it is stored in 8 bits, and what it writes.

    What it writes is followed by what up to three nodes behind it make of that, if they alone read it.
    """
    weights = _weights(graph)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    dequantized = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in weights
    }
    for node in graph.node:
        for name in node.input if node.op_type != "DequantizeLinear" else ():
            weight = dequantized.get(name, name)
            int8 = weights.get(weight) in _EIGHT_BITS
            if int8 or (weight in weights and node.op_type in _LAYERS):
                yield node, weight, int8, _written(node, readers)
                break


def _written(node: onnx.NodeProto, readers: Mapping[str, Sequence[onnx.NodeProto]]) -> list[str]:
    names = [node.output[0]]
    while len(names) < 4 and len(found := readers.get(names[-1], ())) == 1 and found[0].op_type not in _LAYERS:
        names.append(found[0].output[0])
    return names


def _weights(graph: onnx.GraphProto) -> dict[str, int]:
    """Stored tensors of two or more axes, and their types."""
    sparse = {each.values.name: each.values.data_type for each in graph.sparse_initializer if len(each.dims) > 1}
    return sparse | {each.name: each.data_type for each in graph.initializer if len(each.dims) > 1}
