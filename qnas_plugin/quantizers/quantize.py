"""FP32 ONNX and a precision policy to mixed INT8/FP32 ONNX: static quantization in QDQ format, by Neural Compressor.

Weights become INT8, symmetric, one scale per output channel, unless the policy names another format; embedding tables
UINT8, asymmetric, one scale; activations UINT8, asymmetric, one scale from their minimum and maximum over the
calibration data, unless the policy names another calibration; biases of Conv and Gemm INT32. Ranges depend on the FP32
model alone: it is calibrated once, and any number of policies is emitted then.

A tensor has one range: that of the INT8 layers that read it, of which one that clips prevails, and what no INT8 layer
reads that of the Conv that writes it.

The graphs are those of ``neural_compressor.quantization.fit`` under the same settings, except that what a table gives
has the range of the whole table, nodes that stay FP32 read FP32 tensors (``_integer_forms``), and the scales of a
bias lie along its only axis.
"""

from __future__ import annotations

import math
import warnings
from collections import ChainMap, Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from qnas_plugin.build.observe import Ranges, clipped, extremes
from qnas_plugin.build.shared_model import Outline
from qnas_plugin.build.tidy import FP32_OUTPUT, WEIGHT_INPUT
from qnas_plugin.data import Batch
from qnas_plugin.errors import QuantizationError, door
from qnas_plugin.quantizers import _bias, bias_correction, channels, dynamic, smooth
from qnas_plugin.quantizers._indexed_model import IndexedModel
from qnas_plugin.quantizers._integer_forms import Shapes, let_run, restore_fp32_inputs, shapes, split_scaled
from qnas_plugin.quantizers._settings import ACTIVATION, at_run_time, weight_settings
from qnas_plugin.quantizers.formats import CHANNELS, FORMATS, Format, format_of
from qnas_plugin.quantizers.neural_compressor import CachedQuantizer, Quantized, activation_scales
from qnas_plugin.space import Precision

with warnings.catch_warnings():  # 3.7.1 imports pkg_resources, which warns
    warnings.simplefilter("ignore")

Policy = Mapping[str, str]
"""Precision group to the format of its nodes, a name of ``qnas_plugin.quantizers.formats.FORMATS``."""

Groups = Mapping[str, tuple[str, ...]]
"""Precision group to the names of its nodes in the FP32 graph: MatMul, Gemm, Conv, or Gather, with a stored weight."""


def calibrate(
    model: onnx.ModelProto | Outline,
    groups: Groups,
    batches: Sequence[Batch],
    *,
    algorithms: Sequence[str] = (),
    threads: int = 1,
) -> Calibrated:
    """Runs an FP32 model over the calibration data and keeps the range of every tensor that may be quantized.

    Args:
        model: The FP32 model, not changed.
        groups: All that may be quantized in it; whatever is in no group stays FP32.
        batches: Calibration data, of any batch sizes and sequence lengths.
        algorithms: What gives ranges beside ``minmax``, as far as policies need it; ``channels`` are those of channels.
        threads: Threads of the run; 0 lets ONNX Runtime take all cores. The ranges don't depend on them.

    Raises:
        QuantizationError: The groups don't fit the model, there are no batches, a batch lacks an input, or an
            activation is not finite.
    """
    outline = Outline.of(model)
    calibrated = Calibrated(outline, groups, observe(outline, groups, batches, threads=threads))
    for name in algorithms:
        if name == CHANNELS:
            calibrated.watch_channels(batches)
        else:
            calibrated.clipped[name] = observe(outline, groups, batches, algorithm=name, threads=threads)
    return calibrated


def observe(
    model: Outline,
    groups: Groups,
    batches: Sequence[Batch],
    *,
    algorithm: str = "minmax",
    threads: int = 1,
    known: Ranges = MappingProxyType({}),
) -> Ranges:
    """The range of every tensor that may be quantized, by one algorithm; see ``calibrate``.

    Those other than ``minmax`` need finite activations, and several times as long. Tensors whose range is ``known`` are
    not observed again.
    """
    nodes = _nodes(model.model, groups)
    if not batches:
        raise QuantizationError("there are no calibration batches; give at least one example")
    tables = _table_ranges(model, nodes)
    tensors = [name for name in _activations(nodes) if name not in known and name not in tables]
    if algorithm == "minmax":
        found = extremes(model, tensors, batches, threads=threads)
    else:
        found = clipped(model, tensors, batches, algorithm, threads=threads)
    if empty := [name for name in tensors if name not in found]:
        reader = next(node.name for node in nodes if empty[0] in (*node.input, *node.output))
        raise QuantizationError(
            f"the tensor '{empty[0]}' of the layer '{reader}' has no values for any of the calibration data; calibrate "
            f"with more examples, or leave the layer in FP32: --keep-fp32 '{reader}'"
        )
    own = {name: (found if name in found else known)[name] for name in _activations(nodes) if name not in tables}
    return own | tables


@dataclass(frozen=True, eq=False)
class Calibrated:
    """One FP32 model with the ranges of its activations: emits any number of policies.

    Made by ``calibrate``, or from ranges that it found earlier for the same model and groups. Weights are quantized
    when a policy first needs them, and kept.

    Args:
        model: The FP32 model; must not be changed afterwards.
        groups: All that may be quantized in it.
        ranges: What each MatMul, Gemm and Conv of a group reads, and what each Conv and Gather writes.
        clipped: Ranges by other algorithms than minimum and maximum, for the policies that name them; may be added to.
        quantized: Where quantized weights are kept. Models in which weights of one name and shape are equal, as in the
            subnets of a supernet, may share it.
        channels: Of what layers read, for policies with formats that smooth or correct; may be added to.

    Raises:
        QuantizationError: The groups don't fit the model, or a range is missing or not finite.
    """

    model: onnx.ModelProto | Outline
    groups: Groups
    ranges: Ranges
    clipped: dict[str, Ranges] = field(default_factory=dict, repr=False)
    quantized: Quantized = field(default_factory=dict, repr=False)
    channels: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name in _activations(_nodes(self._fp32.model, self.groups)):
            if not all(map(math.isfinite, self.ranges.get(name, ()))):
                low, high = self.ranges[name]
                raise QuantizationError(f"tensor '{name}' ranges from {low} to {high}; the model must be finite")

    def emit(self, policy: Policy) -> onnx.ModelProto:
        """The model under a policy with all values; see ``outline``.

        Raises:
            QuantizationError: The policy names other groups than the model has, or it did not land in the graph.
        """
        return self.outline(policy).whole()

    def outline(self, policy: Policy) -> Outline:
        """The model under a policy, verified; the FP32 model when the policy has no INT8 group.

        Deterministic: the same model, groups, ranges and policy give the same bytes in every process.

        Raises:
            QuantizationError: The policy names other groups than the model has, or it did not land in the graph.
        """
        _check_policy(self.groups, policy)
        formats = {name: policy[group] for group, names in self.groups.items() for name in names}
        rounded = {name for name, format in formats.items() if format_of(format).quantized}
        if not rounded:
            return self._fp32
        if any(FORMATS[formats[name]].prepared for name in rounded):
            return self._prepared(policy, {name: FORMATS[formats[name]] for name in rounded})
        quantized = onnx.ModelProto()
        quantized.CopyFrom(self._template)
        at_run = {node.name for node in quantized.graph.node if at_run_time(node, formats.get(node.name))}
        int8 = rounded - at_run
        split_scaled(quantized.graph, int8)
        config = {
            node.name: {"weight": weight_settings(node, formats[node.name]), "activation": ACTIVATION}
            for node in quantized.graph.node
            if node.name in int8
        }
        self._check_ranges(int8)
        wrapped = IndexedModel(quantized)
        ranges = self._ranges({name: formats[name] for name in int8})
        scales = activation_scales(wrapped, config, ranges)
        floors = _bias.floors(quantized.graph, int8, scales)
        quantizer = CachedQuantizer(wrapped, config, scales, self._fp32.weights, self.quantized, floors)
        with door(QuantizationError, "Neural Compressor cannot quantize the model"):
            quantizer.quantize_model()
        wrapped.topological_sort()
        restore_fp32_inputs(quantized.graph, int8, {name for names in self.groups.values() for name in names} - int8)
        read = {f"{node.name}_quant": node.input[0] for node in self._fp32.model.graph.node if node.name in int8}
        let_run(quantized.graph, read, self._shapes)
        at_run_weights = dynamic.emit(quantized.graph, at_run, self._fp32.weights, self.quantized) if at_run else {}
        verify(quantized, self.groups, policy)
        self._check_scales(quantized, int8, scales)
        _bias.check(quantized.graph, self._template.graph, int8)
        stored = {initializer.name for initializer in quantized.graph.initializer}
        weights = {**self._fp32.weights, **quantizer.int8, **at_run_weights}
        return Outline(quantized, {name: array for name, array in weights.items() if name in stored})

    def _ranges(self, formats: Mapping[str, str]) -> Ranges:
        """The range of each tensor under the formats of the INT8 nodes."""
        asked: dict[str, list[str]] = {}
        nodes = [node for node in self._fp32.model.graph.node if node.name in formats and node.op_type != "Gather"]
        for node in nodes:
            asked.setdefault(node.input[0], []).append(FORMATS[formats[node.name]].ranges)
        for node in nodes:
            if node.op_type not in FP32_OUTPUT:
                asked.setdefault(node.output[0], [FORMATS[formats[node.name]].ranges])
        ranges: dict[str, tuple[float, float]] = {**self.ranges, **self._tables}
        for name, algorithms in asked.items():
            algorithm = next((other for other in algorithms if other != "minmax"), None)
            if algorithm is None:
                continue
            if algorithm not in self.clipped:
                raise QuantizationError(f"there are no ranges by '{algorithm}'; calibrate with this algorithm too")
            ranges[name] = self.clipped[algorithm][name]
        return ranges

    def watch_channels(self, batches: Sequence[Batch]) -> None:
        """Finds out what formats that smooth or correct need, on the calibration data."""
        self.channels.update(channels.watch(self._fp32, _nodes(self._fp32.model, self.groups), batches))

    def _prepared(self, policy: Policy, formats: Mapping[str, Format]) -> Outline:
        """The model under a policy of which some formats, those of nodes by name, change FP32 layers before."""
        alphas = {name: format.alpha for name, format in formats.items() if format.alpha is not None}
        made = smooth.smoothed(self._fp32, alphas, self.channels)
        own: Quantized = ChainMap({}, self.quantized)  # smoothed weights are of this policy alone
        names = [name for name, format in formats.items() if format.corrected]
        model = bias_correction.corrected(made.outline, names, self.channels, own)
        inner = Calibrated(model, self.groups, {**self.ranges, **made.ranges}, self.clipped, own)
        plain = {name: Precision.INT8.value for name, format in FORMATS.items() if format.prepared}
        outline = inner.outline({group: plain.get(name, name) for group, name in policy.items()})
        verify(outline.model, self.groups, policy)
        return outline

    def _check_ranges(self, int8: set[str]) -> None:
        """Checks that what these nodes read and write has ranges."""
        nodes = [node for node in self._fp32.model.graph.node if node.name in int8 and node.op_type != "Gather"]
        missing = [name for name in _activations(nodes) if name not in self.ranges]
        if missing:
            raise QuantizationError(f"tensor '{missing[0]}' has no range; calibrate this model again")

    def _check_scales(self, quantized: onnx.ModelProto, int8: set[str], scales: Mapping[str, Any]) -> None:
        """Checks that each INT8 node reads its tensor at the scale that the tensor's range gives."""
        made_by = {output: node for node in quantized.graph.node for output in node.output}
        stored = {initializer.name: initializer for initializer in quantized.graph.initializer}
        sources = {f"{node.name}_quant": node.input[0] for node in self._fp32.model.graph.node if node.name in int8}
        for node in quantized.graph.node:
            if node.name in sources and node.op_type != "Gather":
                scale = onnx.numpy_helper.to_array(stored[made_by[node.input[0]].input[1]])
                if scale != scales[sources[node.name]][1]:
                    raise QuantizationError(f"'{node.name}' reads another scale than its calibration gives")

    @cached_property
    def _fp32(self) -> Outline:
        return Outline.of(self.model)

    @cached_property
    def _shapes(self) -> Shapes:
        return shapes(self._fp32.model)

    @cached_property
    def _tables(self) -> dict[str, tuple[float, float]]:
        return _table_ranges(self._fp32, _nodes(self._fp32.model, self.groups))

    @cached_property
    def _template(self) -> onnx.ModelProto:
        """What Neural Compressor gets: it would copy and serialise the values of weights repeatedly.

        Each Conv and Gemm of a group has a bias of its own in it: Neural Compressor 3.7.1 quantizes a shared one twice
        under one name, and the exporter of torch shares equal ones, also through Identity nodes.
        """
        template = onnx.ModelProto()
        template.CopyFrom(self._fp32.model)
        graph = template.graph
        initializers = {initializer.name: initializer for initializer in graph.initializer}
        aliases = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
        readers = Counter(name for node in graph.node for name in node.input)
        for node in _nodes(template, self.groups):
            if len(node.input) < 3 or not node.input[2]:
                continue
            bias = aliases.get(node.input[2], node.input[2])
            if bias != node.input[2] or readers[bias] > 1:
                own = graph.initializer.add()
                own.CopyFrom(initializers[bias])
                own.name = node.input[2] = f"{bias}/{node.name}"
        return template


def verify(model: onnx.ModelProto, groups: Groups, policy: Policy) -> None:
    """Checks that each INT8 group runs on stored 8-bit weights and 8-bit activations, and each other one on FP32.

    Args:
        model: An emitted model.
        groups: The groups of the FP32 model that it was emitted from.
        policy: What should have become of them.

    Raises:
        QuantizationError: The policy names other groups, or some group is not in the graph as it should be.
    """
    _check_policy(groups, policy)
    nodes = {node.name: node for node in model.graph.node}
    made_by = {output: node for node in model.graph.node for output in node.output}
    stored = {initializer.name: initializer.data_type for initializer in model.graph.initializer}
    axes = {initializer.name: len(initializer.dims) for initializer in model.graph.initializer}

    def dequantized(name: str) -> str | None:
        node = made_by.get(name)
        return node.input[0] if node is not None and node.op_type == "DequantizeLinear" else None

    def landed(name: str, format: str) -> bool:
        quantized = FORMATS[format].quantized
        node = nodes.get(f"{name}_quant" if quantized else name)
        if node is None:
            return False
        if node.op_type not in WEIGHT_INPUT:
            return FORMATS[format].dynamic and dynamic.landed(node, made_by, stored)
        if at_run_time(node, format):
            return False
        weight = node.input[WEIGHT_INPUT[node.op_type]]
        activation = None if node.op_type == "Gather" else dequantized(node.input[0])
        if quantized:
            config = weight_settings(node, format)
            if stored.get(dequantized(weight) or "") != config["dtype"]:
                return False
            if FORMATS[format].alpha is not None and not smooth.landed(node, made_by, stored):
                return False
            per_channel = config["granularity"] == "per_channel"
            return axes[made_by[weight].input[1]] == per_channel and (node.op_type == "Gather" or activation in made_by)
        if stored.get(weight) != onnx.TensorProto.FLOAT:
            return False
        if activation is None:
            return True
        # An INT8 Conv or table hands its rounded output to whatever comes next.
        source = made_by.get(made_by[activation].input[0]) if activation in made_by else None
        return source is not None and source.name.endswith("_quant") and source.op_type not in FP32_OUTPUT

    failed = [group for group, names in groups.items() if not all(landed(name, policy[group]) for name in names)]
    if failed:
        raise QuantizationError(
            "the precision policy did not land in the graph; wrong groups: "
            + ", ".join(f"{group} (should be {policy[group]})" for group in failed)
        )


def _nodes(model: onnx.ModelProto, groups: Groups) -> list[onnx.NodeProto]:
    """The nodes of all groups in the order of the graph, checked."""
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < 13:
        raise QuantizationError(f"the model has ONNX opset {opset}; export it with 13 or later (scales per channel)")
    listed = Counter(name for names in groups.values() for name in names)
    twice = [name for name, count in listed.items() if count > 1]
    if twice:
        raise QuantizationError(f"node '{twice[0]}' is in two precision groups; put it in one")
    nodes = [node for node in model.graph.node if node.name in listed]
    present = Counter(node.name for node in nodes)
    wrong = [name for name in listed if present[name] != 1]
    if wrong:
        raise QuantizationError(f"node '{wrong[0]}' stands {present[wrong[0]]} times in the graph; name single nodes")
    ranks = {i.name: len(i.dims) for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT}
    aliases = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Identity"}
    for node in nodes:
        if node.op_type not in WEIGHT_INPUT:
            raise QuantizationError(f"node '{node.name}' is a {node.op_type}; allowed: {', '.join(WEIGHT_INPUT)}")
        if ranks.get(node.input[WEIGHT_INPUT[node.op_type]], 0) < 2:
            raise QuantizationError(f"node '{node.name}' has no stored FP32 weight; leave it out of the groups")
        bias = node.input[2] if len(node.input) > 2 else ""
        if bias and ranks.get(aliases.get(bias, bias)) != 1:
            raise QuantizationError(f"node '{node.name}' has no stored FP32 bias vector; leave it out of the groups")
        if any(attribute.name == "beta" and attribute.f != 1 for attribute in node.attribute):  # 3.7.1 loses it
            raise QuantizationError(f"Gemm '{node.name}' scales its bias by beta; store the bias multiplied instead")
    return nodes


def _activations(nodes: Sequence[onnx.NodeProto]) -> dict[str, None]:
    """The tensors with a range, each once: what MatMul, Gemm and Conv read, and what Conv and Gather write."""
    read = {node.input[0]: None for node in nodes if node.op_type != "Gather"}
    return read | {node.output[0]: None for node in nodes if node.op_type not in FP32_OUTPUT}


def _table_ranges(model: Outline, nodes: Sequence[onnx.NodeProto]) -> dict[str, tuple[float, float]]:
    """The range of what each table gives: any row may be asked for later, and equal scales cost no second rounding."""
    tables = {node.output[0]: model.weights[node.input[0]] for node in nodes if node.op_type == "Gather"}
    return {name: (float(values.min()), float(values.max())) for name, values in tables.items()}


def _check_policy(groups: Groups, policy: Policy) -> None:
    missing = [group for group in groups if group not in policy]
    unknown = [group for group in policy if group not in groups]
    if missing or unknown:
        what = f"has no precision for '{missing[0]}'" if missing else f"names an unknown group '{unknown[0]}'"
        raise QuantizationError(f"the policy {what}; the groups of this model are {', '.join(groups) or 'none'}")
