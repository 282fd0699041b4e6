"""Neural Compressor's quantizer, with weights that are quantized once for all policies."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from qnas_plugin.build.tidy import FP32_OUTPUT, WEIGHT_INPUT
from qnas_plugin.quantizers._bias import Floors
from qnas_plugin.quantizers._indexed_model import NewNodes
from qnas_plugin.quantizers._integer_forms import inner_inputs

with warnings.catch_warnings():  # 3.7.1 imports pkg_resources, which warns
    warnings.simplefilter("ignore")
    from neural_compressor.adaptor.ox_utils.calibration import ONNXRTAugment
    from neural_compressor.adaptor.ox_utils.quantizer import Quantizer
    from neural_compressor.adaptor.ox_utils.util import (
        QuantizedInitializer,
        QuantizedValue,
        QuantizedValueType,
        _get_qrange_for_qType,
        calculate_scale_zp,
        quantize_data_with_scale_zero,
    )
    from neural_compressor.model.onnx_model import ONNXModel

Quantized = MutableMapping[tuple[str, tuple[int, ...], int, int | None], QuantizedInitializer]
"""Quantized weights by name, shape, type and channel axis; the axis is None for one scale."""

_AT_ONCE = 1 << 16  # numbers quantized together: what they need stays in the cache of a core
_SMALLEST_CHANNEL = 2.0**-16  # of the largest channel's scale
REDUCE_RANGE = False  # else Neural Compressor takes it from the CPU that it runs on


class CachedQuantizer(Quantizer):  # type: ignore[misc]
    """Neural Compressor's quantizer with weights that are quantized once, and not by way of Python lists.

    Args:
        model: The graph to quantize; its weights need no values.
        config: Node name to its settings, as the quantizer wants them.
        scales: Tensor name to zero point and scale.
        weights: The FP32 weights by name.
        quantized: The quantized weights of earlier runs; new ones are added.
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
        quantized: Quantized,
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
        self._kept = quantized
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
        weight = copy.copy(quantize_weight(name, values, dtype, scheme, axis, self._kept))
        weight.initializer = initializer
        least = self._floors.get(name, np.zeros(1))
        least = least.max() if axis is None else least
        if (weight.scales < least).any():  # not kept: it depends on what the layer reads
            weight = _quantize(initializer, values, dtype, scheme, axis, least)
        if self.model.get_initializer_share_num(name) > 1:
            weight.name = f"{name}_{dtype}"
        return weight


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


def quantize_weight(
    name: str, values: npt.NDArray[Any], dtype: int, scheme: str, axis: int | None, kept: Quantized
) -> QuantizedInitializer:
    """A weight quantized over its own minimum and maximum, once.

    Args:
        name: Of the weight.
        values: The weight in FP32.
        dtype: ``INT8`` or ``UINT8`` of ``onnx.TensorProto``.
        scheme: ``sym`` or ``asym``.
        axis: Of the channels, each with its scale; None for one scale.
        kept: What was quantized before; gets it.
    """
    key = name, values.shape, dtype, axis
    if key not in kept:
        kept[key] = _quantize(onnx.TensorProto(name=name, dims=values.shape), values, dtype, scheme, axis)
    return kept[key]


def _quantize(
    initializer: onnx.TensorProto,
    values: npt.NDArray[Any],
    dtype: int,
    scheme: str,
    axis: int | None,
    least: npt.NDArray[np.float64] | float = 0.0,
) -> QuantizedInitializer:
    """A weight quantized over its own minimum and maximum: per channel along an axis or, with None, as a whole.

    Its scales are at least those given.
    """
    span = _get_qrange_for_qType(dtype, REDUCE_RANGE)
    if axis is None:
        low, high = min(float(values.min()), 0), max(float(values.max()), 0)
    else:
        others = tuple(i for i in range(values.ndim) if i != axis)
        low, high = np.minimum(values.min(others, keepdims=True), 0), np.maximum(values.max(others, keepdims=True), 0)
    scale, zero_point = calculate_scale_zp(low, high, span, dtype, scheme)
    scale = np.maximum(scale, np.max(scale) * _SMALLEST_CHANNEL)
    if np.any(np.reshape(scale, -1) < least):
        scale = np.maximum(np.reshape(scale, -1), least).astype(np.float32).reshape(np.shape(scale))
    rounded = np.empty(values.shape, np.int8 if dtype == onnx.TensorProto.INT8 else np.uint8)
    rows = max(1, _AT_ONCE * len(values) // values.size)
    for first in range(0, len(values), rows):
        part = slice(first, first + rows)
        own = (scale[part], zero_point[part]) if axis == 0 else (scale, zero_point)
        rounded[part] = quantize_data_with_scale_zero(values[part], dtype, scheme, *own)
    return QuantizedInitializer(
        initializer.name,
        initializer,
        [],
        [],
        np.reshape(zero_point, -1),
        np.reshape(scale, -1),
        quantized_data=rounded,
        axis=axis,
        qType=dtype,
    )
