"""Neural Compressor's quantizer, with weights that are quantized once for all policies.

The graphs are those of ``neural_compressor.quantization.fit`` under the same settings, except for what ``quantize``
says, and that the scales of a bias lie along its only axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version as version_of
from typing import Any

import numpy.typing as npt
import onnx

from qnas_plugin.build.tidy import FP32_OUTPUT, WEIGHT_INPUT
from qnas_plugin.errors import QuantizationError, door
from qnas_plugin.quantizers import Emitted, Work
from qnas_plugin.quantizers._bias import Floors, floors
from qnas_plugin.quantizers._importing import importing
from qnas_plugin.quantizers._indexed_model import IndexedModel, NewNodes
from qnas_plugin.quantizers._integer_forms import inner_inputs
from qnas_plugin.quantizers._settings import UNSIGNED, in_8_bits, type_of, weights_of
from qnas_plugin.quantizers.formats import Format, Numbers
from qnas_plugin.quantizers.weights import Kept, rounded

with importing():
    from neural_compressor.adaptor.ox_utils.calibration import ONNXRTAugment
    from neural_compressor.adaptor.ox_utils.calibrator import CALIBRATOR
    from neural_compressor.adaptor.ox_utils.quantizer import Quantizer
    from neural_compressor.adaptor.ox_utils.util import (
        QuantizedInitializer,
        QuantizedValue,
        QuantizedValueType,
    )
    from neural_compressor.model.onnx_model import ONNXModel

REDUCE_RANGE = False  # else Neural Compressor takes it from the CPU that it runs on


class Histogram:
    """The range of a tensor without its outliers, by Neural Compressor's algorithm of this name."""

    def __init__(self, algorithm: str) -> None:
        self._found = CALIBRATOR[algorithm]()

    def collect(self, values: npt.NDArray[Any]) -> None:
        """Adds values, which must be finite."""
        self._found.collect(values)

    def range(self) -> tuple[float, float]:
        """The smallest and the largest that is kept."""
        low, high = self._found.calib_range
        return float(low), float(high)


histogram = Histogram


def version() -> str:
    """Of Neural Compressor."""
    return version_of("neural-compressor")


def can_emit(format: Format) -> bool:
    """Whether layers can become this: 8 bits, of which it computes no asymmetric scale per channel."""
    return in_8_bits(format)


def emit(work: Work) -> Emitted:
    """Quantizes the model in place.

    Raises:
        QuantizationError: Neural Compressor cannot.
    """
    graph = work.model.graph
    config = {
        node.name: {"weight": _settings(weights_of(node, work.formats[node.name])), "activation": _ACTIVATION}
        for node in graph.node
        if node.name in work.formats
    }
    wrapped = IndexedModel(work.model)
    scales = activation_scales(wrapped, config, work.ranges)
    steps = {name: float(pair[1]) for name, pair in scales.items()}
    least = floors(graph, work.formats.keys(), steps)
    quantizer = CachedQuantizer(wrapped, config, scales, work.weights, work.kept, least)
    with door(QuantizationError, "Neural Compressor cannot quantize the model"):
        quantizer.quantize_model()
    wrapped.topological_sort()
    return Emitted(quantizer.int8, steps)


def _settings(numbers: Numbers | None) -> dict[str, Any]:
    """What it is told of the weight of a node."""
    assert numbers is not None
    return {
        "dtype": type_of(numbers),
        "scheme": "sym" if numbers.symmetric else "asym",
        "granularity": f"per_{numbers.axis}",
        "algorithm": "minmax",
    }


_ACTIVATION = _settings(UNSIGNED) | {"quant_mode": "static"}


class CachedQuantizer(Quantizer):  # type: ignore[misc]
    """Neural Compressor's quantizer with weights that are quantized once, and not by way of Python lists.

    Args:
        model: The graph to quantize; its weights need no values.
        config: Node name to its settings, as the quantizer wants them.
        scales: Tensor name to zero point and scale.
        weights: The FP32 weights by name.
        kept: The quantized weights of earlier runs; new ones are added.
        floors: The scales that weights have at least.

    Attributes:
        int8: The quantized weights of this run by the names of their initializers, which have no values.
    """

    def __init__(
        self,
        model: ONNXModel,
        config: Mapping[str, Any],
        scales: Mapping[str, Any],
        weights: Mapping[str, npt.NDArray[Any]],
        kept: Kept,
        floors: Floors,
    ) -> None:
        super().__init__(
            model,
            config,
            "qdq",
            True,
            scales,
            list(WEIGHT_INPUT),
            reduce_range=REDUCE_RANGE,
            optypes_to_exclude_output_quant=FP32_OUTPUT,
        )
        self._weights = weights
        self._kept = kept
        self._floors = floors
        self.int8: dict[str, npt.NDArray[Any]] = {}

    @property
    def new_nodes(self) -> NewNodes:
        """What is to be added to the graph."""
        return self._new_nodes

    @new_nodes.setter
    def new_nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        self._new_nodes = NewNodes(nodes)

    def quantize_bias_tensor(self, node: onnx.NodeProto) -> None:
        super().quantize_bias_tensor(node)
        for axis in self.new_nodes[-1].attribute:
            axis.i = 0  # 3.7.1 gives the bias the axis of the weight, which is 1 in a Gemm with transB=0

    def quantize_weight_per_channel(
        self, weight_name: str, weight_qType: int, scheme: str, channel_axis: int
    ) -> tuple[str, str, str]:
        weight = self._quantized(self.model.get_initializer(weight_name), weight_qType, scheme, channel_axis)
        names = f"{weight.name}_quantized", f"{weight.name}_zero_point", f"{weight.name}_scale"
        self._update_weight(weight)
        self.quantized_value_map[weight.name] = QuantizedValue(
            weight.name, names[0], names[2], names[1], QuantizedValueType.Initializer, None, weight_qType
        )
        return names

    def _get_quantized_weight(self, initializer: onnx.TensorProto, qType: int, scheme: str) -> QuantizedInitializer:
        return self._quantized(initializer, qType, scheme, None)

    def _update_weight(self, weight: QuantizedInitializer) -> None:
        if weight.name in self.quantized_value_map:
            return
        name, dims = f"{weight.name}_quantized", weight.initializer.dims
        self.int8[name] = weight.quantized_data
        shape = [] if weight.axis is None else [dims[weight.axis]]
        initializers = self.model.initializer()
        initializers.add(name=name, data_type=weight.qType, dims=dims)
        initializers.append(
            onnx.helper.make_tensor(f"{weight.name}_scale", onnx.TensorProto.FLOAT, shape, weight.scales)
        )
        initializers.append(
            onnx.helper.make_tensor(f"{weight.name}_zero_point", weight.qType, shape, weight.zero_points)
        )

    def _quantized(
        self, initializer: onnx.TensorProto, dtype: int, scheme: str, axis: int | None
    ) -> QuantizedInitializer:
        name, values = initializer.name, self._weights[initializer.name]
        numbers = Numbers(
            signed=scheme == "sym", symmetric=scheme == "sym", axis="tensor" if axis is None else "channel"
        )
        found = rounded(name, values, numbers, axis, self._kept, self._floors.get(name))
        if self.model.get_initializer_share_num(name) > 1:
            name = f"{name}_{dtype}"
        return QuantizedInitializer(
            name,
            initializer,
            [],
            [],
            found.zero_points,
            found.scales,
            quantized_data=found.values,
            axis=axis,
            qType=dtype,
        )


def activation_scales(
    model: ONNXModel, config: Mapping[str, Any], ranges: Mapping[str, tuple[float, float]]
) -> dict[str, Any]:
    """Zero point and scale of each tensor.

    Neural Compressor 3.7.1 takes the part of a range that a Relu or Clip lets through if that alone reads the tensor.
    It overlooks that the tensor may be an output of the model too, or be read inside of an If or a Loop, and that what
    a Clip lets through may lack the zero that a scale must have. These keep their whole range.
    """
    augment = ONNXRTAugment(model, None, [], reduce_range=REDUCE_RANGE)
    scales: dict[str, Any] = augment.dump_calibration(config, ranges)
    graph = model.model.graph
    seen = {output.name for output in graph.output} | {name for node in graph.node for name in inner_inputs(node)}
    seen |= {node.input[0] for node in graph.node if node.op_type == "Clip" and not _lets_zero_through(node, graph)}
    for name in sorted(ranges.keys() & seen):
        scales[name] = augment.calculate_scale_zeropoint(None, None, *ranges[name], "asym", onnx.TensorProto.UINT8, 255)
    return scales


def _lets_zero_through(clip: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    bounds = {
        initializer.name: float(onnx.numpy_helper.to_array(initializer).reshape(-1)[0])
        for initializer in graph.initializer
        if initializer.name in clip.input[1:]
    }
    low, high = (bounds.get(name, 0.0) for name in [*clip.input[1:], "", ""][:2])
    return low <= 0 <= high
