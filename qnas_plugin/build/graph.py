"""The exported graph of a whole supernet, and what a subnet keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

OPSET = 17
OUTPUT = "logits"

Statistics = Mapping[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
"""Path of a BatchNorm to the mean and the variance of each of its channels."""


@dataclass(frozen=True)
class Cut:
    """What a subnet keeps of its supernet.

    Args:
        skipped: Paths of the blocks that pass their input through unchanged.
        widths: Path of a linear layer, convolution or LayerNorm to the numbers of its inputs and outputs: the first of
            each are kept, and so many of the BatchNorm after a convolution. Depthwise convolutions and LayerNorms have
            as many of both.
        kernels: Path of a convolution with elastic kernels to the size of its kernel.
    """

    skipped: tuple[str, ...]
    widths: Mapping[str, tuple[int, int]]
    kernels: Mapping[str, int] = field(default_factory=dict)


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


def prune(graph: onnx.GraphProto) -> None:
    """Drops nodes that no output depends on."""
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    replace_nodes(graph, kept[::-1])


def module_path(node: onnx.NodeProto) -> str:
    """The path of the torch module that a node was traced from: ``/bert/pooler/dense/Add`` to ``bert.pooler.dense``."""
    return str(node.name).rpartition("/")[0].strip("/").replace("/", ".")


def replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del graph.node[:]
    graph.node.extend(copies)
