"""Biases of INT8 layers: INT32, in units of the scale of the input times the scale of the weights.

Integer kernels leave no choice of these units. In a channel whose weights are next to nothing, as batch normalisation
with weight decay leaves them, they are so small that the bias is no INT32 in them, wraps around, and the channel is
garbage. A larger scale of that channel's weights costs nothing that could be seen beside its bias.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from qnas_plugin.errors import QuantizationError

_LARGEST = 2.0**30  # half of INT32: the other half is for the products that are added to the bias
_ROUNDED = 1e-6  # steps are FP32
_SMALLEST = float(np.finfo(np.float32).tiny)

Floors = Mapping[str, npt.NDArray[np.float64]]
"""Weight to the scales that its channels ``(n,)``, or all of them ``(1,)``, have at least."""


def floors(graph: onnx.GraphProto, int8: Collection[str], scales: Mapping[str, float]) -> Floors:
    """The scales of weights below which some bias is no INT32.

    Args:
        graph: In FP32, with biases stored in it.
        int8: Names of the nodes that become INT8.
        scales: Of tensors.
    """
    biases = _biases(graph, int8)
    found: dict[str, npt.NDArray[np.float64]] = {}
    for node in graph.node:
        if node.name in biases:
            scale = scales[node.input[0]]
            least = np.maximum(np.abs(biases[node.name]) / (scale * _LARGEST), _SMALLEST / scale)
            found[node.input[1]] = np.maximum(found.get(node.input[1], 0.0), least)
    return found


def check(quantized: onnx.GraphProto, graph: onnx.GraphProto, int8: Collection[str]) -> None:
    """Checks that each INT8 bias is that of the FP32 graph, to one step.

    Raises:
        QuantizationError: One is not.
    """
    stored = {initializer.name: initializer for initializer in quantized.initializer}
    made_by = {node.output[0]: node for node in quantized.node if node.op_type == "DequantizeLinear"}
    biases = {f"{name}_quant": bias for name, bias in _biases(graph, int8).items()}
    for node in quantized.node:
        maker = made_by.get(node.input[2]) if node.name in biases and len(node.input) > 2 else None
        if maker is None:
            continue
        integers, steps = (numpy_helper.to_array(stored[name]).astype(np.float64) for name in maker.input[:2])
        off = np.abs(integers * steps - biases[node.name])
        if not (off <= steps + _ROUNDED * np.abs(biases[node.name])).all():
            channel = int(np.argmax(np.nan_to_num(off, nan=np.inf)))
            raise QuantizationError(
                f"the bias of '{node.name.removesuffix('_quant')}' is {biases[node.name].flat[channel]:.4g} in channel "
                f"{channel}, and {integers.flat[channel] * steps.flat[channel % steps.size]:.4g} as INT32; keep this "
                "layer FP32"
            )


def _biases(graph: onnx.GraphProto, names: Collection[str]) -> dict[str, npt.NDArray[np.float64]]:
    """Name of a Conv or Gemm to its stored bias."""
    stored = {initializer.name: initializer for initializer in graph.initializer}
    return {
        node.name: numpy_helper.to_array(stored[node.input[2]]).astype(np.float64)
        for node in graph.node
        if node.name in names and node.op_type in ("Conv", "Gemm") and len(node.input) > 2 and node.input[2] in stored
    }
