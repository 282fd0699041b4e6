"""One trained ONNX model as a network without elastic dimensions: its space is the precision of its own layers.

A layer is a MatMul, Gemm, Conv or Gather with a stored FP32 weight. Layers become precision groups: those of a pattern
that the user gives; MatMuls and Gemms that read one tensor, like query, key and value of an attention, and layers that
share a weight; then, while there are more groups than allowed, neighbours in the graph are joined, those with the
longest common beginning of their names first, and the smallest of them.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]

from qnas_plugin import timing
from qnas_plugin._quantizer import WEIGHT_INPUT
from qnas_plugin.doors import door, read_json
from qnas_plugin.errors import CheckpointError, UsageError
from qnas_plugin.materialize import Graph
from qnas_plugin.outline import Outline
from qnas_plugin.precision import DEFAULT, Precisions
from qnas_plugin.space import Candidate, Genes, Precision, SearchSpace, Variable
from qnas_plugin.supernets import Cut
from qnas_plugin.tasks import Inputs

_OPSET = 13
_QUANTIZED = re.compile(r"[Qq]uantizeLinear|DynamicQuantize|^QLinear|Integer$|MatMulNBits|^QGemm|^QAttention")


def load(path: str, *, precisions: Precisions | None = None) -> OnnxModel:
    """The model of a file, with weights in it or beside it.

    Raises:
        CheckpointError: There is no such file, or the model is quantized already, has no layer to quantize, is not in
            FP32, too large, or cannot be run.
        UsageError: A pattern matches no layer, or two groups have a layer in common.
    """
    file = Path(path)
    try:
        original = onnx.load(str(file))
        content = original.SerializeToString(deterministic=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"no file '{error.filename or path}'; give --model FILE.onnx") from None
    except (OSError, DecodeError, onnx.checker.ValidationError) as error:
        raise CheckpointError(f"cannot read '{path}' as an ONNX model: {timing.reason(error)}") from error
    except (EncodeError, ValueError) as error:  # protobuf's limit
        raise CheckpointError(f"'{path}' has more than 2 GB, which one ONNX file cannot hold") from error
    done = [node.op_type for node in original.graph.node if _QUANTIZED.search(node.op_type)]
    if done:
        raise CheckpointError(f"'{path}' is quantized already, it has a {done[0]}; give the FP32 model")
    sixteen = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    half = [initializer.name for initializer in original.graph.initializer if initializer.data_type in sixteen]
    if half:
        raise CheckpointError(f"'{path}' has 16-bit weights, like '{half[0]}'; give the FP32 model")
    model = _plain(original, file)
    layers = _layers(model.graph)
    if not layers:
        raise CheckpointError(
            f"'{path}' has no layer to quantize: no {', '.join(WEIGHT_INPUT)} with a stored FP32 weight outside of If "
            f"and Loop, only {', '.join(sorted({node.op_type for node in model.graph.node}))}"
        )
    precisions = precisions or Precisions()
    precisions.check([node.name for node in layers])
    return OnnxModel(
        file, Outline.of(model), group(layers, precisions), precisions, hashlib.sha256(content).hexdigest()
    )


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """A network whose only variables are precisions.

    Args:
        file: Where it came from; what clients need beside it stands there too.
        outline: The same as a plain graph: constants folded, batch normalisation in the convolutions before it.
        groups: Precision group to the names of its nodes.
        precisions: The choices of each group.
        content: A hash of the file and the weights beside it.
    """

    file: Path
    outline: Outline
    groups: Mapping[str, tuple[str, ...]]
    precisions: Precisions
    content: str

    @cached_property
    def space(self) -> SearchSpace:
        return SearchSpace(
            tuple(
                Variable(f"precision.{name}", self.precisions.choices or DEFAULT, "precision") for name in self.groups
            )
        )

    @property
    def label_names(self) -> tuple[str, ...]:
        names = self._config.get("id2label", {})
        with door(CheckpointError, f"{self.file.parent / 'config.json'}: 'id2label' does not number the classes"):
            return tuple(str(names[str(i)]) for i in range(len(names)))

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.content} {self.space.fingerprint} {self.groups}".encode()).hexdigest()[:12]

    def graph(self, inputs: Inputs) -> Graph:
        return Graph(self.outline.model, self.outline.weights, self.groups)

    def outputs(self, cut: Cut, inputs: Inputs) -> Mapping[str, npt.NDArray[Any]]:
        session = timing.session(self.file, 1, spinning=False)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, timing.feed(session, inputs)), strict=True))

    def cut(self, candidate: Candidate) -> Cut:
        return Cut((), {})

    def weight_mb(self, genes: Genes) -> npt.NDArray[np.float64]:
        total = np.zeros(len(genes))
        counts = _weights(self.outline.model.graph)
        for i, (variable, names) in enumerate(zip(self.space.variables, self.groups.values(), strict=True)):
            bytes_ = np.array([4 if choice == Precision.FP32 else 1 for choice in variable.choices])
            total += bytes_[genes[:, i]] * sum(dict(counts[name] for name in names).values())
        return total / 1e6

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
            if fnmatchcase(node.name, pattern) and chosen.setdefault(node.name, name) != name:
                raise UsageError(f"layer '{node.name}' is in the groups '{chosen[node.name]}' and '{name}'")
    left = [node for node in layers if not any(fnmatchcase(node.name, pattern) for pattern in precisions.fp32)]
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
    """Joins neighbours until there are at most so many groups."""
    while len(groups) > most:
        pairs = [first + second for first, second in pairwise(groups)]
        i = min(range(len(pairs)), key=lambda i: (-len(_common(pairs[i])), len(pairs[i])))
        groups[i : i + 2] = [pairs[i]]


def _common(nodes: Iterable[onnx.NodeProto]) -> list[str]:
    """The common beginning of the names of nodes, in parts."""
    paths = [re.split(r"[/.]+", node.name.strip("/"))[:-1] for node in nodes]
    return [parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1]


def _name(nodes: Sequence[onnx.NodeProto], taken: Iterable[str]) -> str:
    name = str(nodes[0].name).strip("/") if len(nodes) == 1 else "/".join(_common(nodes))
    return name if name and name not in taken else str(nodes[0].name)


def _plain(original: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    """The model with folded constants, named nodes and an opset that has scales per channel.

    Raises:
        CheckpointError: The model cannot be brought into this form, or run.
    """
    model = original
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < _OPSET:
        try:
            model = onnx.version_converter.convert_version(model, _OPSET)
        except Exception as error:  # what onnx 1.18 raises here has no common class
            raise CheckpointError(
                f"'{file}' has ONNX opset {opset} and cannot be brought to {_OPSET}: {timing.reason(error)}; "
                f"export it with {_OPSET} or later"
            ) from error
    with tempfile.TemporaryDirectory(prefix="qnas-") as folder:
        source = Path(folder) / "whole.onnx"  # with the weights that stand beside the file
        onnx.save(model, str(source))
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "plain.onnx")
        options.log_severity_level = 4
        try:
            ort.InferenceSession(
                str(source),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["MatMulAddFusion"],  # it renames layers
            )
        except timing.RUNTIME_ERRORS as error:
            raise CheckpointError(f"ONNX Runtime cannot run '{file}': {timing.reason(error)}") from error
        plain = onnx.load(options.optimized_model_filepath)
    graph = plain.graph
    used = {node.domain for node in graph.node}
    domains = [entry for entry in plain.opset_import if entry.domain in used | {""}]
    del plain.opset_import[:], graph.value_info[:]
    plain.opset_import.extend(domains)
    stored = {initializer.name for initializer in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]  # before IR 4 each initializer is an input
    del graph.input[:]
    graph.input.extend(inputs)
    names: Counter[str] = Counter()
    for node in graph.node:
        node.name = node.name or node.op_type
        names[node.name] += 1
        if names[node.name] > 1:
            node.name = f"{node.name}_{names[node.name]}"
    return plain


def _layers(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that can be quantized, in the order of the graph."""
    ranks = {i.name: len(i.dims) for i in graph.initializer if i.data_type == onnx.TensorProto.FLOAT}

    def can_be(node: onnx.NodeProto) -> bool:
        if node.op_type not in WEIGHT_INPUT or node.domain:
            return False
        rank = ranks.get(node.input[WEIGHT_INPUT[node.op_type]], 0)
        bias = node.input[2] if len(node.input) > 2 else ""
        scaled = any(attribute.name == "beta" and attribute.f != 1 for attribute in node.attribute)
        return (rank > 2 if node.op_type == "Conv" else rank == 2) and (not bias or ranks.get(bias) == 1) and not scaled

    return [node for node in graph.node if can_be(node)]


def _weights(graph: onnx.GraphProto) -> dict[str, tuple[str, int]]:
    """Name of a node to the name and the number of elements of its weight."""
    sizes = {initializer.name: int(np.prod(initializer.dims)) for initializer in graph.initializer}
    return {
        node.name: (weight, sizes[weight])
        for node in _layers(graph)
        for weight in [node.input[WEIGHT_INPUT[node.op_type]]]
    }
