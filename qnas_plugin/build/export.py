"""A torch model to its graph: the whole supernet is exported once.

The exported graph is brought into one form: each linear layer is a ``MatMul`` and an ``Add``, initializers of these, of
convolutions and of norms are named after the torch parameters, and head counts are left free (``Reshape`` to
``[0, 0, -1, head size]``).
"""

from __future__ import annotations

import inspect
import io
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from qnas_plugin.build.graph import OPSET, OUTPUT, Graph, module_path, prune, replace_nodes
from qnas_plugin.data import Inputs
from qnas_plugin.errors import MaterializeError

_PARAMETERS = {
    "Conv": ("weight", "bias"),
    "LayerNormalization": ("weight", "bias"),
    "BatchNormalization": ("weight", "bias", "running_mean", "running_var"),
}


def export(module: nn.Module, groups: Mapping[str, tuple[str, ...]], inputs: Inputs) -> Graph:
    """Exports a whole supernet.

    The graph and the torch model share the memory of kernels, matrices and tables.

    Args:
        module: The supernet's model, all of it active.
        groups: Precision group to the paths of its modules.
        inputs: They only give names, types and ranks.

    Raises:
        MaterializeError: The graph has another form than expected.
    """
    model = export_module(module, inputs, fold=False, parameters=False)
    _unmap(module)
    weights = _take_parameters(model.graph, module)
    linears = tuple(name for name, part in module.named_modules() if isinstance(part, nn.Linear))
    _restore_shared(model.graph, weights)
    _name_linears(model.graph, weights, module, linears)
    _name_parameters(model.graph, weights, module)
    _free_head_counts(model.graph, weights)
    _take_folded(model.graph, weights, module, inputs)
    read = {name for node in model.graph.node for name in node.input}
    weights = {name: array for name, array in weights.items() if name in read}
    nodes = _nodes_of_groups(model.graph, weights, groups)
    for path, conv in module.named_modules():
        for kernel in getattr(conv, "kernels", ())[:-1]:
            weights[f"{path}.weight.{kernel}"] = conv.weight_of(kernel).detach().numpy().copy()
    return Graph(model, weights, nodes)


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
    replace_nodes(graph, kept)


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
    replace_nodes(graph, nodes)
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
    prune(graph)


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
