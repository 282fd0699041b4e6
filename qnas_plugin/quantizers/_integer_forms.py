"""What keeps INT8 layers from their integer kernels in ONNX Runtime, and the forms that it does not touch.

ONNX Runtime 1.31 joins nodes before it looks for quantized layers. Where that gives a Gemm an FP32 bias, it finds none:
it converts the whole weight to FP32 in every run and computes in FP32. So these layers are written in another form, and
all others as they are:

- A MatMul on matrices and the Add behind it would be joined. A Gemm without a bias and an Add are not.
- On tensors of more axes, of a shape that is fixed, they are joined if the bias is a vector. If it is a matrix of one
  row they are not.
- A Gemm without a bias and a Sum of two tensors would be joined. A Gemm and an Add are not.
- A Gemm that scales its product and adds a bias has no integer kernel. Without the bias it has one, and an Add follows.

Values don't change in any of them. Whether it worked is for ``kernels`` to say, by what really runs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import onnx
from onnx import helper

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor to the sizes of its axes, -1 where one is not fixed; tensors of an unknown number of axes are absent."""

_SKIPPED = ("Identity", "Dropout", "Cast")  # ONNX Runtime takes out those that change nothing before it joins nodes


def shapes(model: onnx.ModelProto) -> Shapes:
    """What is known of the shapes of a model's tensors; weights need no values."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim
        )
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
        if value.type.tensor_type.HasField("shape")
    }


def split_scaled(graph: onnx.GraphProto, int8: Collection[str]) -> None:
    """Gives the bias of each Gemm of these names that scales its product to an Add, before the Gemm becomes INT8."""
    taken = names_of(graph)
    for node in list(graph.node):
        scaled = any(attribute.name == "alpha" and attribute.f != 1 for attribute in node.attribute)
        if node.name in int8 and node.op_type == "Gemm" and scaled and len(node.input) > 2 and node.input[2]:
            product, name = unique(f"{node.output[0]}/product", taken), unique(f"{node.name}/bias", taken)
            graph.node.append(helper.make_node("Add", [product, node.input[2]], list(node.output), name))
            node.output[0] = product
            del node.input[2:]


def let_run(graph: onnx.GraphProto, layers: Mapping[str, str], known: Shapes) -> None:
    """Rewrites what ONNX Runtime would join to an FP32 layer.

    Args:
        graph: The quantized graph.
        layers: Name of an INT8 node to the tensor that it read in FP32.
        known: Shapes in the FP32 model.
    """
    taken = names_of(graph)
    read_by = readers(graph)
    stored = {initializer.name: initializer for initializer in graph.initializer}
    for node in graph.node:
        if node.name not in layers or node.op_type not in ("MatMul", "Gemm"):
            continue
        follower, read = _follower(node.output[0], read_by)
        if follower is None:
            continue
        if node.op_type == "Gemm":
            if len(node.input) < 3 and follower.op_type == "Sum" and len(follower.input) == 2:
                follower.op_type = "Add"
        elif follower.op_type == "Add" and layers[node.name] in known:
            shape = known[layers[node.name]]
            bias = stored.get(next((name for name in follower.input if name != read), read))
            if len(shape) == 2 and (bias is None or len(bias.dims) == 2 or _is_vector(bias)):
                node.op_type = "Gemm"
            elif len(shape) > 2 and -1 not in shape and bias is not None and _is_vector(bias):
                _make_row(graph, follower, bias, shared=len(read_by[bias.name]) > 1, taken=taken)


def restore_fp32_inputs(graph: onnx.GraphProto, int8: set[str], fp32: set[str]) -> None:
    """Lets nodes that stay FP32 read FP32 tensors.

    Where one reader of a tensor is quantized, Neural Compressor 3.7.1 (``Quantizer.merge_dedicated_qdq_pair``) has all
    of them read the rounded copy: an FP32 query beside an INT8 key, and the residual path of every layer. Here only
    what is in no group still does, and only beside an INT8 Conv: ONNX Runtime adds residuals of those in integers.
    """
    sources = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    rounded = {
        node.output[0]: sources[node.input[0]]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in sources and node.output[0].endswith("_dequantized")
    }
    quantized = {f"{name}_quant" for name in int8}
    beside_conv = {node.input[0] for node in graph.node if node.op_type == "Conv" and node.name in quantized}
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name in rounded and node.name not in quantized and (node.name in fp32 or name not in beside_conv):
                node.input[i] = rounded[name]


def _is_vector(bias: onnx.TensorProto) -> bool:
    return len(bias.dims) == 1 and bias.dims[0] > 1


def _make_row(
    graph: onnx.GraphProto, reader: onnx.NodeProto, bias: onnx.TensorProto, *, shared: bool, taken: set[str]
) -> None:
    """Makes the vector that a node reads a matrix of one row; a copy of it where others read it too."""
    if shared:
        row = graph.initializer.add()
        row.CopyFrom(bias)
        row.name = unique(f"{bias.name}/{reader.name}", taken)
        for i, name in enumerate(reader.input):
            reader.input[i] = row.name if name == bias.name else name
        bias = row
    bias.dims[:] = [1, *bias.dims]


def _follower(name: str, read_by: Mapping[str, Sequence[onnx.NodeProto | None]]) -> tuple[onnx.NodeProto | None, str]:
    """The only node that reads a tensor, behind those that change nothing, and the tensor that it reads."""
    while True:
        found = read_by.get(name, ())
        node = found[0] if len(found) == 1 else None
        if node is None or node.op_type not in _SKIPPED:
            return node, name
        name = node.output[0]


def readers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto | None]]:
    """Tensor to the nodes that read it; None stands for the graph's output and for the inside of an If or a Loop."""
    found: dict[str, list[onnx.NodeProto | None]] = {output.name: [None] for output in graph.output}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
        for name in inner_inputs(node):
            found.setdefault(name, []).append(None)
    return found


def inner_inputs(node: onnx.NodeProto) -> Iterable[str]:
    """All names that the subgraphs of a node, an If or a Loop, read."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from inner.input
                yield from inner_inputs(inner)


def names_of(graph: onnx.GraphProto) -> set[str]:
    """All names of nodes and tensors."""
    tensors = {name for node in graph.node for name in (*node.input, *node.output)}
    return tensors | {node.name for node in graph.node} | {initializer.name for initializer in graph.initializer}


def unique(name: str, taken: set[str]) -> str:
    """The name, or with as many underscores behind it as make it a new one."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name
