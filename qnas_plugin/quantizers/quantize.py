"""FP32 ONNX and a precision policy to mixed INT8/FP32 ONNX, by a quantizer: static quantization in QDQ format.

Weights become INT8, symmetric, one scale per output channel, unless the policy names another format; embedding tables
UINT8, asymmetric, one scale; activations UINT8, asymmetric, one scale from their minimum and maximum over the
calibration data, unless the policy names another calibration; biases of Conv and Gemm INT32. Ranges depend on the FP32
model alone: it is calibrated once, and any number of policies is emitted then.

A tensor has one range: that of the INT8 layers that read it, of which one that clips prevails, and what no INT8 layer
reads that of the Conv that writes it. What a table gives has the range of the whole table, and nodes that stay FP32
read FP32 tensors (``_integer_forms``).
"""

from __future__ import annotations

import math
from collections import ChainMap, Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import onnx

from qnas_plugin import registry
from qnas_plugin.build.observe import Ranges, clipped, extremes
from qnas_plugin.build.shared_model import Outline
from qnas_plugin.build.tidy import FP32_OUTPUT
from qnas_plugin.data import Batch
from qnas_plugin.errors import MissingPackageError, QuantizationError
from qnas_plugin.quantizers import (
    DEFAULT,
    Groups,
    Policy,
    Quantizer,
    Work,
    _bias,
    bias_correction,
    channels,
    dynamic,
    smooth,
)
from qnas_plugin.quantizers._integer_forms import Shapes, let_run, restore_fp32_inputs, shapes, split_scaled
from qnas_plugin.quantizers._settings import at_run_time
from qnas_plugin.quantizers.formats import CHANNELS, FORMATS, Format, format_of
from qnas_plugin.quantizers.groups import activations, check_policy, nodes_of, table_ranges
from qnas_plugin.quantizers.verify import verify
from qnas_plugin.quantizers.weights import Kept
from qnas_plugin.space import Precision


def load(name: str) -> Quantizer:
    """The quantizer of a name.

    Raises:
        UnknownNameError: There is none.
        MissingPackageError: The package that does it is not installed.
    """
    try:
        module: Quantizer = registry.load("quantizers", name)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "qnas_plugin"):
            raise
        others = ", ".join(f"--quantizer {other}" for other in registry.names("quantizers") if other != name)
        raise MissingPackageError(
            f"the quantizer '{name}' needs the package '{package}', which is not installed; install what is missing "
            f"with: pip install qnas-plugin, or try another: {others}"
        ) from None
    return module


def calibrate(
    model: onnx.ModelProto | Outline,
    groups: Groups,
    batches: Sequence[Batch],
    *,
    algorithms: Sequence[str] = (),
    threads: int = 1,
    quantizer: str = DEFAULT,
) -> Calibrated:
    """Runs an FP32 model over the calibration data and keeps the range of every tensor that may be quantized.

    Args:
        model: The FP32 model, not changed.
        groups: All that may be quantized in it; whatever is in no group stays FP32.
        batches: Calibration data, of any batch sizes and sequence lengths.
        algorithms: What gives ranges beside ``minmax``, as far as policies need it; ``channels`` are those of channels.
        threads: Threads of the run; 0 lets ONNX Runtime take all cores. The ranges don't depend on them.
        quantizer: The name of what quantizes.

    Raises:
        QuantizationError: The groups don't fit the model, there are no batches, a batch lacks an input, or an
            activation is not finite.
    """
    outline = Outline.of(model)
    calibrated = Calibrated(outline, groups, observe(outline, groups, batches, threads=threads), quantizer=quantizer)
    for name in algorithms:
        if name == CHANNELS:
            calibrated.watch_channels(batches)
        else:
            calibrated.clipped[name] = observe(
                outline, groups, batches, algorithm=name, threads=threads, quantizer=quantizer
            )
    return calibrated


def observe(
    model: Outline,
    groups: Groups,
    batches: Sequence[Batch],
    *,
    algorithm: str = "minmax",
    threads: int = 1,
    known: Ranges = MappingProxyType({}),
    quantizer: str = DEFAULT,
) -> Ranges:
    """The range of every tensor that may be quantized, by one algorithm; see ``calibrate``.

    Those other than ``minmax`` need finite activations, and several times as long. Tensors whose range is ``known`` are
    not observed again.
    """
    nodes = nodes_of(model.model, groups)
    if not batches:
        raise QuantizationError("there are no calibration batches; give at least one example")
    tables = table_ranges(model, nodes)
    tensors = [name for name in activations(nodes) if name not in known and name not in tables]
    if algorithm == "minmax":
        found = extremes(model, tensors, batches, threads=threads)
    else:
        histograms = {name: load(quantizer).histogram(algorithm) for name in tensors}
        found = clipped(model, histograms, batches, threads=threads)
    if empty := [name for name in tensors if name not in found]:
        reader = next(node.name for node in nodes if empty[0] in (*node.input, *node.output))
        raise QuantizationError(
            f"the tensor '{empty[0]}' of the layer '{reader}' has no values for any of the calibration data; calibrate "
            f"with more examples, or leave the layer in FP32: --keep-fp32 '{reader}'"
        )
    own = {name: (found if name in found else known)[name] for name in activations(nodes) if name not in tables}
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
        quantizer: The name of what quantizes.

    Raises:
        QuantizationError: The groups don't fit the model, or a range is missing or not finite.
    """

    model: onnx.ModelProto | Outline
    groups: Groups
    ranges: Ranges
    clipped: dict[str, Ranges] = field(default_factory=dict, repr=False)
    quantized: Kept = field(default_factory=dict, repr=False)
    channels: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict, repr=False)
    quantizer: str = DEFAULT

    def __post_init__(self) -> None:
        for name in activations(nodes_of(self._fp32.model, self.groups)):
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
        check_policy(self.groups, policy)
        formats = {name: format_of(policy[group]) for group, names in self.groups.items() for name in names}
        rounded = {name for name, format in formats.items() if format.quantized}
        if not rounded:
            return self._fp32
        quantizer = load(self.quantizer)
        for precision in policy.values():
            if format_of(precision).quantized and not quantizer.can_emit(format_of(precision)):
                raise QuantizationError(
                    f"the quantizer '{self.quantizer}' cannot quantize to '{precision}'; take another one or format"
                )
        if any(formats[name].prepared for name in rounded):
            return self._prepared(policy, {name: formats[name] for name in rounded})
        quantized = onnx.ModelProto()
        quantized.CopyFrom(self._template)
        at_run = {node.name for node in quantized.graph.node if at_run_time(node, formats.get(node.name))}
        int8 = rounded - at_run
        split_scaled(quantized.graph, int8)
        self._check_ranges(int8)
        static = {name: formats[name] for name in formats if name in int8}
        emitted = quantizer.emit(Work(quantized, static, self._ranges(static), self._fp32.weights, self.quantized))
        restore_fp32_inputs(quantized.graph, int8, {name for names in self.groups.values() for name in names} - int8)
        read = {f"{node.name}_quant": node.input[0] for node in self._fp32.model.graph.node if node.name in int8}
        let_run(quantized.graph, read, self._shapes)
        at_run_weights = dynamic.emit(quantized.graph, at_run, self._fp32.weights, self.quantized) if at_run else {}
        verify(quantized, self.groups, policy)
        self._check_scales(quantized, int8, emitted.scales)
        _bias.check(quantized.graph, self._template.graph, int8)
        stored = {initializer.name for initializer in quantized.graph.initializer}
        weights = {**self._fp32.weights, **emitted.weights, **at_run_weights}
        return Outline(quantized, {name: array for name, array in weights.items() if name in stored})

    def _ranges(self, formats: Mapping[str, Format]) -> Ranges:
        """The range of each tensor under the formats of the INT8 nodes."""
        asked: dict[str, list[str]] = {}
        nodes = [node for node in self._fp32.model.graph.node if node.name in formats and node.op_type != "Gather"]
        for node in nodes:
            asked.setdefault(node.input[0], []).append(formats[node.name].ranges)
        for node in nodes:
            if node.op_type not in FP32_OUTPUT:
                asked.setdefault(node.output[0], [formats[node.name].ranges])
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
        self.channels.update(channels.watch(self._fp32, nodes_of(self._fp32.model, self.groups), batches))

    def _prepared(self, policy: Policy, formats: Mapping[str, Format]) -> Outline:
        """The model under a policy of which some formats, those of nodes by name, change FP32 layers before."""
        alphas = {name: format.alpha for name, format in formats.items() if format.alpha is not None}
        made = smooth.smoothed(self._fp32, alphas, self.channels)
        own: Kept = ChainMap({}, self.quantized)  # smoothed weights are of this policy alone
        names = [name for name, format in formats.items() if format.corrected]
        model = bias_correction.corrected(made.outline, names, self.channels, own)
        inner = replace(self, model=model, ranges={**self.ranges, **made.ranges}, quantized=own, channels={})
        plain = {name: Precision.INT8.value for name, format in FORMATS.items() if format.prepared}
        outline = inner.outline({group: plain.get(name, name) for group, name in policy.items()})
        verify(outline.model, self.groups, policy)
        return outline

    def _check_ranges(self, int8: set[str]) -> None:
        """Checks that what these nodes read and write has ranges."""
        nodes = [node for node in self._fp32.model.graph.node if node.name in int8 and node.op_type != "Gather"]
        missing = [name for name in activations(nodes) if name not in self.ranges]
        if missing:
            raise QuantizationError(f"tensor '{missing[0]}' has no range; calibrate this model again")

    def _check_scales(self, quantized: onnx.ModelProto, int8: set[str], scales: Mapping[str, float]) -> None:
        """Checks that each INT8 node reads its tensor at the scale that the tensor's range gives."""
        made_by = {output: node for node in quantized.graph.node for output in node.output}
        stored = {initializer.name: initializer for initializer in quantized.graph.initializer}
        sources = {f"{node.name}_quant": node.input[0] for node in self._fp32.model.graph.node if node.name in int8}
        for node in quantized.graph.node:
            if node.name in sources and node.op_type != "Gather":
                scale = onnx.numpy_helper.to_array(stored[made_by[node.input[0]].input[1]])
                if scale != scales[sources[node.name]]:
                    raise QuantizationError(f"'{node.name}' reads another scale than its calibration gives")

    @cached_property
    def _fp32(self) -> Outline:
        return Outline.of(self.model)

    @cached_property
    def _shapes(self) -> Shapes:
        return shapes(self._fp32.model)

    @cached_property
    def _tables(self) -> dict[str, tuple[float, float]]:
        return table_ranges(self._fp32, nodes_of(self._fp32.model, self.groups))

    @cached_property
    def _template(self) -> onnx.ModelProto:
        """What a quantizer gets: it would copy and serialise the values of weights repeatedly.

        Each Conv and Gemm of a group has a bias of its own in it: Neural Compressor 3.7.1 quantizes a shared one twice
        under one name, and the exporter of torch shares equal ones, also through Identity nodes.
        """
        template = onnx.ModelProto()
        template.CopyFrom(self._fp32.model)
        graph = template.graph
        initializers = {initializer.name: initializer for initializer in graph.initializer}
        aliases = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
        readers = Counter(name for node in graph.node for name in node.input)
        for node in nodes_of(template, self.groups):
            if len(node.input) < 3 or not node.input[2]:
                continue
            bias = aliases.get(node.input[2], node.input[2])
            if bias != node.input[2] or readers[bias] > 1:
                own = graph.initializer.add()
                own.CopyFrom(initializers[bias])
                own.name = node.input[2] = f"{bias}/{node.name}"
        return template
