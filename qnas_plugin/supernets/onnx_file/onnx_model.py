"""One trained ONNX model as a network without elastic dimensions: its space is the precision of its own layers.

A layer is a MatMul, Gemm, Conv or Gather with a stored FP32 weight. Layers become precision groups: those of a pattern
that the user gives; MatMuls and Gemms that read one tensor, like query, key and value of an attention, and layers that
share a weight; then, while there are more groups than allowed, neighbours in the graph are joined, those with the
longest common beginning of their names first, and the smallest of them.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from qnas_plugin.build.graph import Cut
from qnas_plugin.build.shared_model import Outline
from qnas_plugin.build.tidy import WEIGHT_INPUT
from qnas_plugin.data import Inputs
from qnas_plugin.errors import CheckpointError, DataError, UsageError, door
from qnas_plugin.files.doors import read_json
from qnas_plugin.quantizers.formats import DEFAULT, Precisions, matches
from qnas_plugin.runtimes import onnxruntime as runtime
from qnas_plugin.space import Candidate, SearchSpace, Variable
from qnas_plugin.supernets.onnx_file.plain import Plain, plain
from qnas_plugin.supernets.onnx_file.refusal import no_layer

if TYPE_CHECKING:
    from qnas_plugin.build.graph import Graph


def load(path: str, *, precisions: Precisions | None = None) -> OnnxModel:
    """The model of a file, with weights in it or beside it.

    Raises:
        CheckpointError: There is no such file, or the model is quantized already, has no layer to quantize, is not in
            FP32, has weights that are no numbers, or cannot be run.
        UsageError: A pattern matches no layer, or two groups have a layer in common.
    """
    file = Path(path)
    model = plain(file)
    if not model.layers:
        raise CheckpointError(f"'{path}' has no layer to quantize: {no_layer(model.outline.model.graph)}")
    precisions = precisions or Precisions()
    precisions.check(model.layers)
    names = frozenset(model.layers)
    layers = [node for node in model.outline.model.graph.node if node.name in names]
    return OnnxModel(file, model, group(layers, precisions), precisions)


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """A network whose only variables are precisions.

    Args:
        file: Where it came from; what clients need beside it stands there too.
        plain: The same in the form that quantization takes.
        groups: Precision group to the names of its nodes.
        precisions: The choices of each group.
    """

    file: Path
    plain: Plain
    groups: Mapping[str, tuple[str, ...]]
    precisions: Precisions

    @property
    def outline(self) -> Outline:
        """The plain model."""
        return self.plain.outline

    @cached_property
    def space(self) -> SearchSpace:
        return SearchSpace(tuple(Variable.precision(name, self.precisions.choices or DEFAULT) for name in self.groups))

    @property
    def label_names(self) -> tuple[str, ...]:
        names = self._config.get("id2label", {})
        with door(CheckpointError, f"{self.file.parent / 'config.json'}: 'id2label' does not number the classes"):
            return tuple(str(names[str(i)]) for i in range(len(names)))

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.plain.content} {self.space.fingerprint} {self.groups}".encode()).hexdigest()[:12]

    def graph(self, inputs: Inputs) -> Graph:
        """The plain model; of inputs with a default value, those that the data has no values for are constants.

        Raises:
            DataError: The data has values for the weight of a layer.
        """
        from qnas_plugin.build.graph import Graph

        constant = self.plain.optional - inputs.keys()
        given = {name: layer for layer, (name, _) in self._sizes.items() if name in self.plain.optional - constant}
        for name, layer in given.items():
            raise DataError(f"the data has values for '{name}', the stored weight of '{layer}'; take them out")
        model = onnx.ModelProto()
        model.CopyFrom(self.outline.model)
        kept = [value for value in model.graph.input if value.name not in constant]
        del model.graph.input[:]
        model.graph.input.extend(kept)
        return Graph(model, self.outline.weights, self.groups)

    def outputs(self, candidate: Candidate, inputs: Inputs) -> Mapping[str, Any]:
        with door(CheckpointError, f"ONNX Runtime cannot run '{self.file}' on the data"):
            session = runtime.session(self.file, 1, spinning=False, prepack=False)
            names = [output.name for output in session.get_outputs()]
            return dict(zip(names, session.run(names, runtime.feed(session, inputs)), strict=True))

    def cut(self, candidate: Candidate) -> Cut:
        return Cut((), {})

    @cached_property
    def _sizes(self) -> Mapping[str, tuple[str, int]]:
        return _weights(self.outline.model.graph, frozenset(self.plain.layers))

    def config(self, candidate: Candidate) -> dict[str, Any]:
        return self._config

    @cached_property
    def _config(self) -> dict[str, Any]:
        path = self.file.parent / "config.json"
        return read_json(path, CheckpointError, "restore the file") if path.exists() else {}


def group(layers: Sequence[onnx.NodeProto], precisions: Precisions) -> dict[str, tuple[str, ...]]:
    """Precision group to the names of its nodes, in the order of the graph.

    Args:
        layers: All that can be quantized.
        precisions: Patterns of what stays FP32 and of what is decided together, and the largest number of groups.

    Raises:
        UsageError: Two groups have a layer in common, or no layer is left.
    """
    chosen: dict[str, str] = {}
    for name, pattern in precisions.groups.items():
        for node in layers:
            if matches(node.name, pattern) and chosen.setdefault(node.name, name) != name:
                raise UsageError(f"layer '{node.name}' is in the groups '{chosen[node.name]}' and '{name}'")
    left = [node for node in layers if not any(matches(node.name, pattern) for pattern in precisions.fp32)]
    if not left:
        raise UsageError("no layer is left to search; take patterns from --keep-fp32")
    together: dict[str, list[onnx.NodeProto]] = {}
    of: dict[str, str] = {}
    for node in left:
        weight = f"weight {node.input[WEIGHT_INPUT[node.op_type]]}"
        source = f"input {node.input[0]}" if node.op_type in ("MatMul", "Gemm") else weight
        key = f"chosen {chosen[node.name]}" if node.name in chosen else of.get(weight) or of.get(source) or weight
        together.setdefault(key, []).append(node)
        if node.name not in chosen:
            of[weight] = of[source] = key
    free = [nodes for key, nodes in together.items() if not key.startswith("chosen ")]
    _join(free, max(1, precisions.most - (len(together) - len(free))))
    own = [(key.removeprefix("chosen "), nodes) for key, nodes in together.items() if key.startswith("chosen ")]
    groups = {name: tuple(node.name for node in nodes) for name, nodes in own}
    for nodes in free:
        groups[_name(nodes, groups)] = tuple(node.name for node in nodes)
    position = {node.name: i for i, node in enumerate(layers)}
    return dict(sorted(groups.items(), key=lambda item: position[item[1][0]]))


def _join(groups: list[list[onnx.NodeProto]], most: int) -> None:
    """Joins neighbours until there are at most so many groups: those with most in common, the smallest, the first."""
    commons = [_paths(nodes) for nodes in groups]
    after = [*range(1, len(groups)), None]
    before = [None, *range(len(groups) - 1)]

    def pair(i: int, j: int) -> tuple[int, int, int, int]:
        shared = sum(part is not None for part in _shared(commons[i], commons[j]))
        return -shared, len(groups[i]) + len(groups[j]), i, j

    pairs = [pair(i, i + 1) for i in range(len(groups) - 1)]
    heapq.heapify(pairs)
    left = len(groups)
    while left > most:
        _, size, i, j = heapq.heappop(pairs)
        if after[i] != j or size != len(groups[i]) + len(groups[j]):
            continue  # one of them was joined since
        groups[i], groups[j], left = groups[i] + groups[j], [], left - 1
        commons[i] = _shared(commons[i], commons[j])
        later = after[j]
        after[i], after[j] = later, None
        if later is not None:
            before[later] = i
            heapq.heappush(pairs, pair(i, later))
        earlier = before[i]
        if earlier is not None:
            heapq.heappush(pairs, pair(earlier, i))
    groups[:] = [nodes for nodes in groups if nodes]


def _paths(nodes: Iterable[onnx.NodeProto]) -> list[str | None]:
    """The names of nodes in parts without the last, as far as all go; None where they differ."""
    return reduce(_shared, (re.split(r"[/.]+", node.name.strip("/"))[:-1] for node in nodes))


def _shared(first: Sequence[str | None], second: Sequence[str | None]) -> list[str | None]:
    return [a if a == b else None for a, b in zip(first, second, strict=False)]


def _name(nodes: Sequence[onnx.NodeProto], taken: Container[str]) -> str:
    """A name for a group that no other has."""
    parts = [str(nodes[0].name).strip("/")] if len(nodes) == 1 else _paths(nodes)
    shared = "/".join(part for part in parts if part is not None)
    first = str(nodes[0].name)
    names = (shared, first) if shared else (first,)
    return next(name for name in chain(names, (f"{first}.{i}" for i in count(2))) if name not in taken)


def _weights(graph: onnx.GraphProto, layers: Collection[str]) -> dict[str, tuple[str, int]]:
    """Name of a layer to the name and the number of elements of its weight."""
    sizes = {initializer.name: int(np.prod(initializer.dims)) for initializer in graph.initializer}
    return {
        node.name: (weight, sizes[weight])
        for node in graph.node
        if node.name in layers
        for weight in [node.input[WEIGHT_INPUT[node.op_type]]]
    }
