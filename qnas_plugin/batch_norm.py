"""Statistics of a subnet's BatchNorms, from data: those of the supernet are of other networks than this one.

As in Once-for-All (Cai et al. 2020), the data run through the subnet with every BatchNorm normalising by its batch;
means and variances of the batches are averaged. What is run is an ONNX graph, so that it needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import helper

from qnas_plugin.materialize import Graph, Statistics, epsilon, module_path, outlined, sliced
from qnas_plugin.supernets import Cut
from qnas_plugin.tasks import Batch, Inputs

BATCH = 64
"""Examples that one estimate comes from, at least."""


def needed(graph: Graph, cut: Cut) -> bool:
    """Whether a subnet has BatchNorms; what is no supernet's, and so has one network only, keeps its own."""
    return bool(cut.widths) and any(node.op_type == "BatchNormalization" for node in graph.model.graph.node)


def estimate(graph: Graph, cut: Cut, batches: Sequence[Batch], *, threads: int = 1) -> Statistics:
    """The statistics of a subnet's BatchNorms, for ``materialize``: those that torch normalises by in training mode.

    Args:
        graph: Of the supernet.
        cut: What the subnet keeps.
        batches: Training examples; small batches are joined.
        threads: Threads of the run.
    """
    model, weights = sliced(graph, cut)
    nodes: list[onnx.NodeProto] = []
    paths: list[str] = []
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            paths.append(module_path(node))
            nodes += _batch_normalisation(node)
            weights[f"{paths[-1]}.epsilon"] = np.array(epsilon(node), dtype=np.float32)
            weights |= {name: weights[name][:, None, None] for name in node.input[1:3]}
        else:
            nodes.append(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.extend(nodes)
    names = [f"{path}.{name}" for path in paths for name in ("batch_mean", "batch_variance")]
    with outlined(model, weights).running(threads=threads, outputs=names) as session:
        inputs = [value.name for value in session.get_inputs()]
        found = [session.run(names, {name: joined[name] for name in inputs}) for joined in _joined(batches)]
    vectors = [np.mean(values, axis=0).ravel() for values in zip(*found, strict=True)]
    return {path: (vectors[2 * i], vectors[2 * i + 1]) for i, path in enumerate(paths)}


def _batch_normalisation(norm: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Nodes that do what torch's BatchNorm does in training, and give the mean and the variance."""
    path, (source, weight, bias, *_), (result, *_) = module_path(norm), norm.input, norm.output
    mean, variance = f"{path}.batch_mean", f"{path}.batch_variance"
    centred, square, safe, deviation, normal, scaled = (f"{path}.{i}" for i in range(6))
    axes = [0, 2, 3]
    yield helper.make_node("ReduceMean", [source], [mean], axes=axes, keepdims=1)
    yield helper.make_node("Sub", [source, mean], [centred])
    yield helper.make_node("Mul", [centred, centred], [square])
    yield helper.make_node("ReduceMean", [square], [variance], axes=axes, keepdims=1)
    yield helper.make_node("Add", [variance, f"{path}.epsilon"], [safe])
    yield helper.make_node("Sqrt", [safe], [deviation])
    yield helper.make_node("Div", [centred, deviation], [normal])
    yield helper.make_node("Mul", [normal, weight], [scaled])
    yield helper.make_node("Add", [scaled, bias], [result])


def _joined(batches: Sequence[Batch]) -> Iterator[Inputs]:
    """Batches of at least so many examples, all of them used; the last may be up to twice as large."""
    parts: list[list[Batch]] = [[]]
    left = sum(len(batch.positions) for batch in batches)
    for batch in batches:
        if sum(len(own.positions) for own in parts[-1]) >= BATCH <= left:
            parts.append([])
        parts[-1].append(batch)
        left -= len(batch.positions)
    for part in parts:
        yield {name: np.concatenate([batch.inputs[name] for batch in part]) for name in part[0].inputs}
