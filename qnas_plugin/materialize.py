"""Candidate to FP32 ONNX: the supernet's graph is exported once, a subnet is that graph with sliced initializers.

The exported graph is brought into one form first: each linear layer is a ``MatMul`` and an ``Add``, initializers of
these, of convolutions and of norms are named after the torch parameters, and head counts are left free
(``Reshape`` to ``[0, 0, -1, head size]``). Skipped blocks are bypassed, BatchNorms become part of the convolution that
they follow. Node names are those of the supernet in every subnet.
"""

from __future__ import annotations

import inspect
import io
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from qnas_plugin.errors import MaterializeError
from qnas_plugin.outline import Outline
from qnas_plugin.supernets import Cut, Supernet
from qnas_plugin.tasks import Inputs

OPSET = 17
OUTPUT = "logits"

Statistics = Mapping[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
"""Path of a BatchNorm to the mean and the variance of each of its channels."""

_PARAMETERS = {
    "Conv": ("weight", "bias"),
    "LayerNormalization": ("weight", "bias"),
    "BatchNormalization": ("weight", "bias", "running_mean", "running_var"),
}


@dataclass(frozen=True)
class Graph:
    """The exported graph of a whole supernet.

    Args:
        model: The ONNX model, a supernet's without initializers; those in ``weights`` have no values in it.
        weights: Initializers by name; ``<path>.weight.<k>`` is the kernel of size k of an elastic convolution.
        groups: Precision group to the names of its nodes.
    """

    model: onnx.ModelProto
    weights: Mapping[str, npt.NDArray[Any]]
    groups: Mapping[str, tuple[str, ...]]


def export(supernet: Supernet, inputs: Inputs) -> Graph:
    """Exports the whole supernet; the inputs only give names, types and ranks.

    The graph and the torch model share the memory of kernels, matrices and tables.

    Raises:
        MaterializeError: The graph has another form than expected.
    """
    supernet.activate(None)
    model = export_module(supernet.model, inputs, fold=False, parameters=False)
    _unmap(supernet.model)
    weights = _take_parameters(model.graph, supernet.model)
    linears = tuple(name for name, module in supernet.model.named_modules() if isinstance(module, nn.Linear))
    _restore_shared(model.graph, weights)
    _name_linears(model.graph, weights, supernet.model, linears)
    _name_parameters(model.graph, weights, supernet.model)
    _free_head_counts(model.graph, weights)
    _take_folded(model.graph, weights, supernet.model, inputs)
    read = {name for node in model.graph.node for name in node.input}
    weights = {name: array for name, array in weights.items() if name in read}
    groups = _nodes_of_groups(model.graph, weights, supernet.groups)
    for path, conv in supernet.model.named_modules():
        for kernel in getattr(conv, "kernels", ())[:-1]:
            weights[f"{path}.weight.{kernel}"] = conv.weight_of(kernel).detach().numpy().copy()
    return Graph(model, weights, groups)


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
        _prune(model.graph)
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


def export_module(module: nn.Module, inputs: Inputs, *, fold: bool = True, parameters: bool = True) -> onnx.ModelProto:
    """The plain export of what a torch model computes now, with free batch and sequence axes.

    Args:
        module: The model.
        inputs: They give names, types and ranks.
        fold: Whether BatchNorms become part of the convolutions before them.
        parameters: Whether to store the parameters; otherwise they are inputs of the graph.
    """
    # torch 2.13 names the inputs in the order of the signature, also those given by keyword.
    inputs = {name: inputs[name] for name in inspect.signature(module.forward).parameters if name in inputs}
    axes = {
        name: {0: "batch_size", 1: "sequence_length"} if array.ndim == 2 else {0: "batch_size"}
        for name, array in inputs.items()
    }
    file = io.BytesIO()
    tensors = {name: torch.as_tensor(array) for name, array in inputs.items()}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns of each Python number that it reads from a shape
        torch.onnx.export(
            module.eval(),
            (),
            file,  # type: ignore[arg-type]  # torch 2.13 annotates paths only; it takes a file too
            kwargs=tensors,
            input_names=list(inputs),
            output_names=[OUTPUT],
            dynamic_axes=axes | {OUTPUT: {0: "batch_size"}},
            opset_version=OPSET,
            training=torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE,
            dynamo=False,
            export_params=parameters,
        )
    return onnx.load_from_string(file.getvalue())


def _restore_shared(graph: onnx.GraphProto, weights: dict[str, npt.NDArray[Any]]) -> None:
    """Gives parameters that the exporter merged, as their values were equal, their own initializers again."""
    kept = []
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]]
        else:
            kept.append(node)
    _replace_nodes(graph, kept)


def _unmap(module: nn.Module) -> None:
    """Copies tensors out of the checkpoint's file, which is mapped to memory as long as one of them is in it."""
    linears = {id(linear.weight) for linear in module.modules() if isinstance(linear, nn.Linear)}
    for tensor in (*module.parameters(), *module.buffers()):
        if id(tensor) not in linears:  # those are copied when they are transposed
            tensor.data = tensor.data.clone()


def _take_parameters(graph: onnx.GraphProto, module: nn.Module) -> dict[str, npt.NDArray[Any]]:
    """Takes parameters out of the inputs of a graph."""
    state = module.state_dict()
    weights = {}
    for value in list(graph.input):
        if value.name in state:
            weights[value.name] = _array(state[value.name])
            graph.input.remove(value)
    return weights


def _array(parameter: torch.Tensor) -> npt.NDArray[Any]:
    """The values of a parameter, in its own memory unless it is a vector."""
    array: npt.NDArray[Any] = parameter.detach().numpy()
    return array if array.ndim > 1 else array.copy()


def _take_folded(
    graph: onnx.GraphProto, weights: dict[str, npt.NDArray[Any]], module: nn.Module, inputs: Inputs
) -> None:
    """Takes in what the exporter computed from parameters; only an export that stores all has the values."""
    folded = [value for value in graph.input if value.name not in inputs]
    read = {name for node in graph.node for name in node.input}
    if any(value.name in read for value in folded):
        stored = export_module(module, inputs, fold=False).graph.initializer
        weights |= {init.name: numpy_helper.to_array(init) for init in stored if init.name in read - weights.keys()}
    for value in folded:
        graph.input.remove(value)


def _name_linears(
    graph: onnx.GraphProto, weights: dict[str, npt.NDArray[Any]], module: nn.Module, linears: Iterable[str]
) -> None:
    """Makes each linear layer a MatMul and an Add with initializers ``<path>.weight`` (in, out) and ``<path>.bias``."""
    nodes = []
    products = {node.output[0] for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        path = module_path(node)
        if path not in linears or node.op_type not in ("MatMul", "Gemm", "Add"):
            nodes.append(node)
            continue
        linear: Any = module.get_submodule(path)
        weight, bias = f"{path}.weight", f"{path}.bias"
        if node.op_type == "Add":
            product = next(name for name in node.input if name in products)
            nodes.append(helper.make_node("Add", [product, bias], list(node.output), node.name))
            continue
        weights[weight] = np.ascontiguousarray(linear.weight.detach().numpy().T)
        linear.weight.data = torch.from_numpy(weights[weight]).T  # one copy for both, transposed for torch
        if linear.bias is not None:
            weights[bias] = _array(linear.bias)
        if node.op_type == "MatMul":
            nodes.append(helper.make_node("MatMul", [node.input[0], weight], list(node.output), node.name))
        else:
            scope = node.name.removesuffix("/Gemm")
            product = f"{scope}/MatMul_output_0"
            nodes.append(helper.make_node("MatMul", [node.input[0], weight], [product], f"{scope}/MatMul"))
            nodes.append(helper.make_node("Add", [product, bias], list(node.output), f"{scope}/Add"))
    _replace_nodes(graph, nodes)
    missing = [path for path in linears if f"{path}.weight" not in weights]
    if missing:
        raise MaterializeError(f"the exported graph has no linear layer '{missing[0]}'")


def _name_parameters(graph: onnx.GraphProto, weights: dict[str, npt.NDArray[Any]], module: nn.Module) -> None:
    """Names what convolutions and norms read ``<path>.weight``, ``<path>.bias`` and so on."""
    modules = dict(module.named_modules())
    for node in graph.node:
        path = module_path(node)
        if node.op_type in _PARAMETERS and isinstance(modules.get(path), nn.Conv2d | nn.LayerNorm | nn.BatchNorm2d):
            for i, name in enumerate(_PARAMETERS[node.op_type][: len(node.input) - 1], start=1):
                node.input[i] = f"{path}.{name}"
                weights[node.input[i]] = _array(getattr(modules[path], name))


def _free_head_counts(graph: onnx.GraphProto, weights: dict[str, npt.NDArray[Any]]) -> None:
    """Makes the reshapes of attention independent of the number of heads, and of shape arithmetic."""
    producer = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in producer:
            continue
        concat, source = producer[node.input[1]], producer.get(node.input[0])
        if concat.op_type != "Concat" or source is None:
            continue
        if source.op_type in ("Add", "Concat") and len(concat.input) == 4:
            last = numpy_helper.to_array(producer[concat.input[3]].attribute[0].t).reshape(1)
            shape = np.array([0, 0, -1, int(last[0])], dtype=np.int64)
        elif source.op_type == "Transpose" and len(concat.input) == 3:
            shape = np.array([0, 0, -1], dtype=np.int64)
        else:
            continue
        weights[f"{node.name}.shape"] = shape
        node.input[1] = f"{node.name}.shape"
    _prune(graph)


def _nodes_of_groups(
    graph: onnx.GraphProto, weights: Mapping[str, Any], groups: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    nodes: dict[str, list[str]] = {}
    for node in graph.node:
        if node.op_type in ("MatMul", "Conv", "Gather") and any(name in weights for name in node.input[:2]):
            nodes.setdefault(module_path(node), []).append(node.name)
    for group, paths in groups.items():
        for path in paths:
            if path not in nodes:
                raise MaterializeError(f"precision group '{group}': the exported graph has no node of '{path}'")
    return {group: tuple(name for path in paths for name in nodes[path]) for group, paths in groups.items()}


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
        _replace_nodes(graph, outside)


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
        _replace_nodes(graph, [node for node in graph.node if node.name not in norms])


def _normalised(graph: onnx.GraphProto) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Each BatchNorm after the convolution that it normalises."""
    makers = {node.output[0]: node for node in graph.node}
    return [(makers[node.input[0]], node) for node in graph.node if node.op_type == "BatchNormalization"]


def epsilon(norm: onnx.NodeProto) -> float:
    """What a BatchNormalization adds to a variance."""
    return next((float(attribute.f) for attribute in norm.attribute if attribute.name == "epsilon"), 1e-5)


def _prune(graph: onnx.GraphProto) -> None:
    """Drops nodes that no output depends on."""
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    _replace_nodes(graph, kept[::-1])


def module_path(node: onnx.NodeProto) -> str:
    """The path of the torch module that a node was traced from: ``/bert/pooler/dense/Add`` to ``bert.pooler.dense``."""
    return str(node.name).rpartition("/")[0].strip("/").replace("/", ".")


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del graph.node[:]
    graph.node.extend(copies)
