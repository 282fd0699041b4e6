"""Statistics of a subnet's BatchNorms, from data: those of the supernet are of other networks than this one.

As in Once-for-All (Cai et al. 2020), the data run through the subnet with every BatchNorm normalising by its batch;
means and variances of the batches are averaged. What is run is an ONNX graph, so that it needs no torch.

The same run gives the ranges of activations: with one batch the network that it runs is the one that ships. With
several, each is normalised by its own statistics instead of their mean, as BatchNorms are in training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx

from qnas_plugin.build.graph import Cut, Graph, Statistics, module_path
from qnas_plugin.build.observe import Ranges, Watch
from qnas_plugin.build.slice import outlined, sliced
from qnas_plugin.data import Batch, Inputs
from qnas_plugin.errors import QuantizationError

BATCH = 64
"""Examples that one estimate comes from, at least."""


def needed(graph: Graph, cut: Cut) -> bool:
    """Whether a subnet has BatchNorms; what is no supernet's, and so has one network only, keeps its own."""
    return bool(cut.widths) and any(node.op_type == "BatchNormalization" for node in graph.model.graph.node)


def estimate(graph: Graph, cut: Cut, batches: Sequence[Batch], *, threads: int = 1) -> tuple[Statistics, Ranges]:
    """The statistics of a subnet's BatchNorms, for ``materialize``: those that torch normalises by in training mode.

    Args:
        graph: Of the supernet.
        cut: What the subnet keeps.
        batches: Training examples; small batches are joined.
        threads: Threads of the run; the results do not depend on them.

    Returns:
        The statistics, and the smallest and largest values of what layers read, and of what convolutions give when
        their BatchNorms are part of them.

    Raises:
        QuantizationError: An activation is not finite.
    """
    model, weights = sliced(graph, cut)
    paths = [_train(node) for node in model.graph.node if node.op_type == "BatchNormalization"]
    del model.graph.output[:]
    statistics = [f"{path}.{name}" for path in paths for name in ("batch_mean", "batch_variance")]
    watch = Watch(model, _tensors(model))
    outputs = [*statistics, *watch.outputs]
    with outlined(watch.model, weights).running(threads=threads, outputs=outputs, optimized=False) as session:
        names = [value.name for value in session.get_inputs()]
        runs = [session.run(outputs, {name: inputs[name] for name in names}) for inputs in _joined(batches)]
    vectors = [np.mean(values, axis=0) for values in zip(*(run[: len(statistics)] for run in runs), strict=True)]
    for name, vector in zip(statistics, vectors, strict=True):
        if not np.isfinite(vector).all():
            raise QuantizationError(f"'{name}' is not finite on the calibration data; the model must be finite")
    found = {path: (vectors[2 * i], vectors[2 * i + 1]) for i, path in enumerate(paths)}
    return found, watch.ranges([run[len(statistics) :] for run in runs])


def _train(norm: onnx.NodeProto) -> str:
    """Lets a BatchNorm normalise by its batch, and give the mean and the variance; returns its path."""
    path = module_path(norm)
    kept = [attribute for attribute in norm.attribute if attribute.name == "epsilon"]
    del norm.attribute[:], norm.output[1:]
    norm.attribute.extend(kept)
    norm.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in _OF_THE_BATCH.items())
    norm.output.extend([f"{path}.batch_mean", f"{path}.batch_variance"])
    return path


_OF_THE_BATCH = {"training_mode": 1, "momentum": 0.0}  # nothing of the statistics so far stays in the new ones


def _tensors(model: onnx.ModelProto) -> list[str]:
    """What convolutions and matrix products read, and what they, or BatchNorms after them, give."""
    normed = {node.input[0] for node in model.graph.node if node.op_type == "BatchNormalization"}
    names: dict[str, None] = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            names[node.input[0]] = None
        if node.op_type in ("Conv", "BatchNormalization") and node.output[0] not in normed:
            names[node.output[0]] = None
    return list(names)


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
