"""What Neural Compressor is told of a layer of some format."""

from __future__ import annotations

from typing import Any

import onnx

from qnas_plugin.errors import QuantizationError
from qnas_plugin.quantizers.formats import Numbers, format_of

_UNSIGNED = Numbers(signed=False, symmetric=False, axis="tensor")
_WEIGHTS = (Numbers(), Numbers(axis="tensor"), _UNSIGNED)
_TABLE = {"dtype": onnx.TensorProto.UINT8, "scheme": "asym", "granularity": "per_tensor", "algorithm": "minmax"}
ACTIVATION = _TABLE | {"quant_mode": "static"}


def weight_settings(node: onnx.NodeProto, precision: str) -> dict[str, Any]:
    """What Neural Compressor is told of the weight of a node.

    Raises:
        QuantizationError: It has no such weights or activations.
    """
    chosen = format_of(precision)
    weights = chosen.weights
    if weights is None or weights not in _WEIGHTS or chosen.activations != _UNSIGNED:
        raise QuantizationError(f"Neural Compressor cannot quantize to '{precision}'; take another quantizer or format")
    if node.op_type == "Gather":
        return _TABLE
    return {
        "dtype": onnx.TensorProto.INT8 if weights.signed else onnx.TensorProto.UINT8,
        "scheme": "sym" if weights.symmetric else "asym",
        "granularity": f"per_{weights.axis}",
        "algorithm": "minmax",
    }


def at_run_time(node: onnx.NodeProto, precision: str | None) -> bool:
    """Whether a node of this precision, None for FP32, gets the scale of what it reads in each run."""
    return precision is not None and format_of(precision).dynamic and node.op_type != "Gather"
