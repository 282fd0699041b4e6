"""ONNX Runtime's quantizer, told the scale of each weight and the range of each tensor.

It decides what is rounded where, shares scales and rounds biases. It gets stand-ins of one number for each channel in
place of weights, which it would go through channel by channel for each policy; the integers take their place behind it.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import HistogramCollector, TensorData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from qnas_plugin.build.observe import Ranges
from qnas_plugin.build.tidy import FP32_OUTPUT, WEIGHT_INPUT
from qnas_plugin.errors import QuantizationError, door
from qnas_plugin.quantizers import Emitted, Work
from qnas_plugin.quantizers._bias import floors
from qnas_plugin.quantizers._integer_forms import inner_inputs, names_of, readers, unique
from qnas_plugin.quantizers._settings import in_8_bits, type_of, weights_of
from qnas_plugin.quantizers.formats import Format, Numbers
from qnas_plugin.quantizers.weights import Rounded, rounded

_ALGORITHMS = {"percentile": "percentile", "kl": "entropy"}
_PERCENT = 99.999
_BINS = 2048
_OPTIONS = {
    "ActivationSymmetric": False,
    "AddQDQPairToWeight": True,  # so that it does not read the values
    "OpTypesToExcludeOutputQuantization": FP32_OUTPUT,
    "QDQDisableWeightAdjustForInt32Bias": True,  # the scales that it is told are large enough
}
_INFERRED = "onnx.infer", "onnxruntime.quant"  # lets it take shapes and types as they are


class Histogram:
    """The range of a tensor without its outliers: ``percentile``, or by relative entropy, which is ``kl``."""

    def __init__(self, algorithm: str) -> None:
        bins = _BINS if algorithm == "percentile" else 128
        self._found = HistogramCollector(_ALGORITHMS[algorithm], False, bins, 128, _PERCENT, "same")

    def collect(self, values: npt.NDArray[Any]) -> None:
        """Adds values, which must be finite."""
        self._found.collect_value({"": values})

    def range(self) -> tuple[float, float]:
        """The smallest and the largest that is kept."""
        with contextlib.redirect_stdout(io.StringIO()):  # 1.31 prints
            low, high, *_ = self._found.compute_collection_result()[""]
        return float(low), float(high)


histogram = Histogram


def version() -> str:
    """Of ONNX Runtime."""
    return str(onnxruntime.__version__)


def can_emit(format: Format) -> bool:
    """Whether layers can become this: 8 bits."""
    return in_8_bits(format)


def emit(work: Work) -> Emitted:
    """Quantizes the model in place.

    Raises:
        QuantizationError: ONNX Runtime cannot.
    """
    graph = work.model.graph
    layers = [node for node in graph.node if node.name in work.formats]
    ranges = _let_through(graph, work)
    scales = {name: _scale(low, high) for name, (low, high) in ranges.items()}
    stands_for = _stand_in(graph, layers, work, floors(graph, work.formats.keys(), scales))
    for node in layers:
        if len(node.input) > 2 and not node.input[2]:
            del node.input[2:]
    outputs = [output for output in graph.output if output.name not in _written(layers)]
    kept = [onnx.ValueInfoProto.FromString(output.SerializeToString()) for output in graph.output]
    for output in outputs:  # it would round what the model gives
        graph.output.remove(output)
    infos = [onnx.ValueInfoProto.FromString(info.SerializeToString()) for info in graph.value_info]
    known = {info.name for info in (*graph.value_info, *graph.input, *graph.output)}
    graph.value_info.extend(
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ranges if name not in known
    )
    work.model.metadata_props.add(key=_INFERRED[0], value=_INFERRED[1])
    with door(QuantizationError, "ONNX Runtime cannot quantize the model"):
        quantizer = QDQQuantizer(
            work.model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range={name: _range(*bounds) for name, bounds in ranges.items()},
            nodes_to_quantize=list(work.formats),
            nodes_to_exclude=[],
            op_types_to_quantize=list(WEIGHT_INPUT) if layers else [],
            extra_options=_OPTIONS
            | {"TensorQuantOverrides": {name: _told(weight) for name, weight in stands_for.items()}},
        )
        quantizer.quantize_model()
    del work.model.metadata_props[-1]
    del graph.output[:], graph.value_info[:]
    graph.output.extend(kept)
    graph.value_info.extend(infos)
    integers = _put_in(graph, stands_for)
    _name(graph, layers)
    _sort(graph)
    return Emitted(integers, scales)


def _written(layers: list[onnx.NodeProto]) -> set[str]:
    """What layers write rounded."""
    return {node.output[0] for node in layers if node.op_type not in FP32_OUTPUT}


def _range(low: float, high: float) -> TensorData:
    return TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))


def _scale(low: float, high: float) -> float:
    """The scale of a range, as ``compute_scale_zp`` has it."""
    scale = (float(np.float32(max(high, 0.0))) - float(np.float32(min(low, 0.0)))) / 255
    return 1.0 if scale < np.finfo(np.float32).tiny else float(np.float32(scale))


def _let_through(graph: onnx.GraphProto, work: Work) -> Ranges:
    """The ranges, of which that of what a Conv gives to a Relu or Clip alone is what this lets through."""
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.ByteSize() < 1000}
    read_by = readers(graph)
    found: dict[str, tuple[float, float]] = {}
    for node in graph.node:
        if node.name not in work.formats:
            continue
        if node.op_type != "Gather":
            found.setdefault(node.input[0], work.ranges[node.input[0]])
        if node.op_type in FP32_OUTPUT:
            continue
        low, high = work.ranges[node.output[0]]
        reader = next(iter(read_by.get(node.output[0], [])), None)
        if node.op_type == "Conv" and reader is not None and len(read_by[node.output[0]]) == 1:
            floor, ceiling = _bounds(reader, stored)
            if floor <= 0 <= ceiling:
                low, high = max(low, floor), min(high, ceiling)
        found[node.output[0]] = low, high
    return found


def _bounds(node: onnx.NodeProto, stored: Mapping[str, TensorProto]) -> tuple[float, float]:
    """What a node lets through unchanged, as far as it is known."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type != "Clip":
        return -np.inf, np.inf
    names = [*node.input[1:], "", ""][:2]
    low, high = (float(numpy_helper.to_array(stored[name]).item()) if name in stored else None for name in names)
    return -np.inf if low is None else low, np.inf if high is None else high


def _stand_in(
    graph: onnx.GraphProto, layers: list[onnx.NodeProto], work: Work, least: Mapping[str, npt.NDArray[np.float64]]
) -> dict[str, Rounded]:
    """Gives each weight that becomes integers of one kind a stand-in of the same number of axes and channels."""
    taken = names_of(graph)
    stands: dict[tuple[str, bool, int | None], str] = {}
    found: dict[str, Rounded] = {}
    for node in layers:
        place = WEIGHT_INPUT[node.op_type]
        name = node.input[place]
        numbers = weights_of(node, work.formats[node.name])
        assert numbers is not None
        axis = _axis(node, work.weights[name].ndim) if numbers.axis == "channel" else None
        key = name, numbers.symmetric, axis
        if key not in stands:
            weight = rounded(name, work.weights[name], numbers, axis, work.kept, least.get(name))
            stands[key] = unique(f"{name}_rounded", taken)
            found[stands[key]] = weight
            shape = [size if i == axis else 1 for i, size in enumerate(weight.values.shape)]
            graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.float32), stands[key]))
        node.input[place] = stands[key]
    return found


def _axis(node: onnx.NodeProto, axes: int) -> int:
    """Along which the weight has its output channels."""
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if node.op_type == "Conv" or transposed else axes - 1


def _told(weight: Rounded) -> list[dict[str, Any]]:
    """The override of a weight."""
    symmetric = weight.zero_points.dtype == np.int8
    kind = QuantType.QInt8 if symmetric else QuantType.QUInt8
    told = [
        {"quant_type": kind, "scale": scale, "zero_point": zero}
        for scale, zero in zip(weight.scales, weight.zero_points, strict=True)
    ]
    return told if weight.axis is None else [each | {"axis": weight.axis} for each in told]


def _put_in(graph: onnx.GraphProto, stands_for: Mapping[str, Rounded]) -> dict[str, npt.NDArray[Any]]:
    """Replaces each stand-in and what rounds it by integers, without values; drops what nobody reads any more."""
    integers: dict[str, npt.NDArray[Any]] = {}
    for node in [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] in stands_for]:
        name, weight = node.output[0], stands_for[node.input[0]]
        integers[name] = weight.values
        numbers = Numbers() if weight.values.dtype == np.int8 else Numbers(signed=False, symmetric=False, axis="tensor")
        graph.initializer.add(name=name, data_type=type_of(numbers), dims=weight.values.shape)
        graph.node.remove(node)
    read = {name for node in graph.node for name in (*node.input, *inner_inputs(node))}
    read |= {value.name for value in (*graph.output, *graph.input)}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
    return integers


def _name(graph: onnx.GraphProto, layers: list[onnx.NodeProto]) -> None:
    """Names INT8 nodes and what is rounded for its readers as it was agreed."""
    written = _written(layers)
    names = {node.name for node in layers}
    taken = names_of(graph)
    sources = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    new = {
        node.output[0]: unique(f"{sources[node.input[0]]}_dequantized", taken)
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in sources and sources[node.input[0]] not in written
    }
    for node in graph.node:
        if node.name in names:
            node.name = f"{node.name}_quant"
        for side in (node.input, node.output):
            for i, name in enumerate(side):
                side[i] = new.get(name, name)


def _sort(graph: onnx.GraphProto) -> None:
    """Puts each node behind those that it reads from."""
    makers = {output: i for i, node in enumerate(graph.node) for output in node.output if output}
    needs = {
        i: [makers[name] for name in (*node.input, *inner_inputs(node)) if name in makers]
        for i, node in enumerate(graph.node)
    }
    try:
        nodes = [graph.node[i] for i in TopologicalSorter(needs).static_order()]
    except CycleError:
        raise QuantizationError("the nodes of the quantized graph have no order") from None
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
