"""The parts of a network as ONNX models of their own, to be timed alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from qnas_plugin.build.graph import Graph, module_path
from qnas_plugin.build.slice import materialize
from qnas_plugin.build.tidy import WEIGHT_INPUT
from qnas_plugin.data import Inputs
from qnas_plugin.latency.rows import Decomposition, Key
from qnas_plugin.quantizers import DEFAULT
from qnas_plugin.quantizers.without_data import uncalibrated
from qnas_plugin.runtimes import onnxruntime as runtime
from qnas_plugin.space import Candidate
from qnas_plugin.supernets import Part, Supernet


@dataclass(frozen=True)
class Alone:
    """One row as a model of its own.

    Args:
        key: The row.
        model: Computes the part, from the tensors that the network would give it.
        inputs: These tensors. Another part's of the same name fits as well: it has the same type and shape.
    """

    key: Key
    model: onnx.ModelProto
    inputs: Inputs


def build(graph: Graph, supernet: Supernet, candidate: Candidate, *, quantizer: str = DEFAULT) -> onnx.ModelProto:
    """A candidate's model that is as fast as the real one: every activation has the same range.

    Raises:
        CandidateError: It cannot be built, or its policy did not land.
    """
    model = materialize(graph, supernet.cut(candidate))
    policy = supernet.space.policy(candidate)
    groups = {group: nodes for group, nodes in graph.groups.items() if group in policy}
    return uncalibrated(model, groups, quantizer).emit(policy)


def isolate(
    graph: Graph,
    supernet: Supernet,
    decomposition: Decomposition,
    inputs: Inputs,
    folder: Path,
    keys: Sequence[Key] | None = None,
    *,
    quantizer: str = DEFAULT,
) -> Iterator[Alone]:
    """Each row as a model of its own, one after another: there may be gigabytes; rows without any node are left out.

    Args:
        graph: Of the supernet.
        decomposition: At the finest granularity.
        inputs: Of the whole network.
        folder: For temporary files.
        keys: The rows; None is all.
        quantizer: The name of what quantizes.

    Raises:
        CandidateError: A network cannot be built.
    """
    networks: dict[Any, list[tuple[Key, Part, Candidate]]] = {}
    for key in decomposition.keys if keys is None else keys:
        part, genes = decomposition.example(key)
        candidate = supernet.space.decode(genes)
        networks.setdefault(supernet.space.architecture(candidate), []).append((key, part, candidate))
    for number, rows in enumerate(networks.values()):
        model = onnx.shape_inference.infer_shapes(materialize(graph, supernet.cut(rows[0][2])))
        owners = {node.name: _owner(node, decomposition.parts) for node in model.graph.node}
        cuts, changes = [], []
        for key, part, candidate in rows:
            if part.reader is not None:
                changes.append((key, *_read(model.graph, part.reader)))
                continue
            names = [name for name, owner in owners.items() if owner is part]
            if names:
                cuts.append((key, candidate, names, *_borders(model.graph, names)))
        wanted = dict.fromkeys([name for *_, needed, _ in cuts for name in needed] + [name for _, name, *_ in changes])
        values = _values(model, [*wanted], inputs, folder)
        for key, name, read, pooling in changes:
            yield _alone(key, _rounding(model, name, read, pooling), {name: values[name]}, number)
        for key, candidate, names, needed, made in cuts:
            own = _extract(model, names, needed, made)
            everywhere = supernet.space.policy(candidate)
            policy = {group: everywhere[group] for group, nodes in graph.groups.items() if nodes[0] in names}
            groups = {group: graph.groups[group] for group in policy}
            whole = uncalibrated(own, groups, quantizer).emit(policy)
            yield _alone(key, whole, {name: values[name] for name in needed}, number)


def _owner(node: onnx.NodeProto, parts: Sequence[Part]) -> Part:
    """The part with the longest path above a node."""
    path = f"{module_path(node)}."
    above = [(len(p), i) for i, part in enumerate(parts) for p in part.paths if not p or path.startswith(f"{p}.")]
    return parts[max(above)[1]]


def _read(graph: onnx.GraphProto, module: str) -> tuple[str, str, list[str]]:
    """A tensor, the one that a module's layer reads, and the pooling between them, if any."""
    node = next(n for n in graph.node if n.op_type in WEIGHT_INPUT and f"{module_path(n)}.".startswith(f"{module}."))
    read: str = node.input[0]
    for maker in graph.node:
        if maker.op_type == "MaxPool" and read in maker.output:
            return maker.input[0], read, [maker.name]
    return read, read, []


def _rounding(model: onnx.ModelProto, name: str, read: str, pooling: Sequence[str]) -> onnx.ModelProto:
    """What a tensor takes, after pooling if any, to become INT8 and FP32 again."""
    part = _extract(model, pooling, [name], ["rounded back"])
    scale, zero = (
        numpy_helper.from_array(np.array(0.03, np.float32), "scale"),
        numpy_helper.from_array(np.array(128, np.uint8), "zero"),
    )
    part.graph.initializer.extend([scale, zero])
    part.graph.node.extend(
        [
            onnx.helper.make_node("QuantizeLinear", [read, "scale", "zero"], ["rounded"]),
            onnx.helper.make_node("DequantizeLinear", ["rounded", "scale", "zero"], ["rounded back"]),
        ]
    )
    return part


def _borders(graph: onnx.GraphProto, names: Collection[str]) -> tuple[list[str], list[str]]:
    """The tensors that some nodes need from others, and those of theirs that others need."""
    stored = {initializer.name for initializer in graph.initializer}
    inside = [node for node in graph.node if node.name in names]
    outside = [node for node in graph.node if node.name not in names]
    made = {name for node in inside for name in node.output}
    constant = {name for node in outside if node.op_type == "Constant" for name in node.output}
    read = dict.fromkeys(name for node in inside for name in node.input if name)
    wanted = {name for node in outside for name in node.input} | {output.name for output in graph.output}
    needed = [name for name in read if name not in made and name not in stored and name not in constant]
    return needed, [name for node in inside for name in node.output if name in wanted]


def _values(
    model: onnx.ModelProto, names: Sequence[str], inputs: Inputs, folder: Path
) -> Mapping[str, npt.NDArray[Any]]:
    """What tensors of a model are for some inputs."""
    inner = [name for name in names if name not in inputs]
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    observed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    path = folder / "observed.onnx"
    path.write_bytes(observed.SerializeToString())
    session = runtime.session(path, 1, spinning=False)
    got = session.run(inner, runtime.feed(session, inputs)) if inner else []
    path.unlink()
    return dict(inputs) | dict(zip(inner, got, strict=True))


def _extract(
    model: onnx.ModelProto, names: Collection[str], inputs: Sequence[str], outputs: Sequence[str]
) -> onnx.ModelProto:
    """Some nodes as a model. Its inputs have the shapes that are known in the whole one: fusions depend on them."""
    inside = [node for node in model.graph.node if node.name in names]
    read = {name for node in inside for name in node.input}
    constants = [
        node
        for node in model.graph.node
        if node.op_type == "Constant" and node.name not in names and read.intersection(node.output)
    ]
    known = {value.name: value for value in (*model.graph.input, *model.graph.value_info)}
    return onnx.helper.make_model(
        onnx.helper.make_graph(
            [*constants, *inside],
            model.graph.name,
            [known[name] for name in inputs],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [initializer for initializer in model.graph.initializer if initializer.name in read],
        ),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )


def _alone(key: Key, model: onnx.ModelProto, values: Inputs, network: int) -> Alone:
    """A part whose inputs are named after their types and shapes; indices keep their range, and so their own name."""
    names: dict[str, str] = {}
    for name, array in values.items():
        kind = f"{array.dtype}{list(array.shape)}" if array.dtype.kind == "f" else f"{network}:{name}"
        names[name] = f"{kind}:{sum(other.rpartition(':')[0] == kind for other in names.values())}"
    for value in model.graph.input:
        value.name = names[value.name]
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)
    return Alone(key, model, {names[name]: array for name, array in values.items()})
