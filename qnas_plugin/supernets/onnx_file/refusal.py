"""Models that are not searched, and the one line that says why."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import onnx

from qnas_plugin.build.tidy import WEIGHT_INPUT, nodes
from qnas_plugin.errors import CheckpointError

_QUANTIZED = re.compile(r"[Qq]uantizeLinear|DynamicQuantize|^QLinear|Integer$|MatMulNBits|^QGemm|^QAttention")
_SIXTEEN = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
_NAMES: dict[int, str] = {
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
}
_IN_FP32 = "export the model in FP32, in PyTorch with model.float()"


def refuse_quantized(model: onnx.ModelProto, file: Path) -> None:
    """Refuses a model of which some part is quantized, or has initializers of 16 bits.

    Raises:
        CheckpointError: It is one.
    """
    inside = (node for function in model.functions for node in function.node)
    done = [node.op_type for node in (*nodes(model.graph), *inside) if _QUANTIZED.search(node.op_type)]
    if done:
        raise CheckpointError(f"'{file}' is quantized already, it has a {done[0]}; give the FP32 model")
    half = [initializer.name for initializer in model.graph.initializer if initializer.data_type in _SIXTEEN]
    if half:
        raise CheckpointError(f"'{file}' has 16-bit weights, like '{half[0]}'; {_IN_FP32}")


def other_float(graph: onnx.GraphProto) -> str:
    """What to do about the first layer with a weight of 16 or 64 bits; ONNX Runtime has few kernels for such."""
    found = (layer for layer in _layers(graph) if layer[2].data_type in _NAMES)
    return next((_of_type(*layer) for layer in found), "")


def no_layer(graph: onnx.GraphProto) -> str:
    """Why a plain graph has no layer, by the first node that nearly is one."""
    for node, weight, tensor in _layers(graph):
        if tensor.data_type != onnx.TensorProto.FLOAT:
            if node.op_type != "Gather" or tensor.data_type in _NAMES:  # tables of integers are usual
                return _of_type(node, weight, tensor)
        elif node.op_type != "Conv" and len(tensor.dims) != 2:
            axes = f"{len(tensor.dims)} {'axis' if len(tensor.dims) == 1 else 'axes'}"
            return (
                f"the {node.op_type} '{_name(node)}' has a weight '{weight}' of {axes}, only one of 2 can be quantized"
            )
        elif 0 in tensor.dims:
            return f"the {node.op_type} '{_name(node)}' has a weight '{weight}' without numbers"
        else:
            return f"the {node.op_type} '{_name(node)}' has an infinite weight '{weight}', or a bias that is no vector"
    kinds = ", ".join(sorted({node.op_type for node in graph.node})) or "constants"
    return f"no {', '.join(WEIGHT_INPUT)} with a stored FP32 weight outside of If and Loop, only {kinds}"


def _layers(graph: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto, str, onnx.TensorProto]]:
    """Nodes of the kinds that can be quantized with their stored weights, of any type, also behind a Cast."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    casts = {}
    for node in graph.node:
        if node.op_type == "Constant":
            values = [attribute.t for attribute in node.attribute if attribute.name == "value"]
            stored |= dict.fromkeys(node.output, *values) if values else {}
        elif node.op_type == "Cast":
            casts[node.output[0]] = node.input[0]
        place = WEIGHT_INPUT.get(node.op_type, len(node.input))
        if place < len(node.input) and not node.domain:
            weight = casts.get(node.input[place], node.input[place])
            if weight in stored:
                yield node, weight, stored[weight]


def _name(node: onnx.NodeProto) -> str:
    return str(node.name or node.op_type)


def _of_type(node: onnx.NodeProto, weight: str, tensor: onnx.TensorProto) -> str:
    kind = _NAMES.get(tensor.data_type) or onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    return (
        f"the layer '{_name(node)}' has its weight '{weight}' in {kind}, and INT8 layers are made of FP32 ones; "
        f"{_IN_FP32}"
    )
