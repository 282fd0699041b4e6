"""What Neural Compressor is told of a layer of some format."""

from __future__ import annotations

from typing import Any

import onnx

from qnas_plugin.quantizers.formats import FORMATS
from qnas_plugin.space import Precision

_DTYPES = {"sym": onnx.TensorProto.INT8, "asym": onnx.TensorProto.UINT8}
_TABLE = {"dtype": onnx.TensorProto.UINT8, "scheme": "asym", "granularity": "per_tensor", "algorithm": "minmax"}
ACTIVATION = _TABLE | {"quant_mode": "static"}


def weight_settings(node: onnx.NodeProto, precision: str) -> dict[str, Any]:
    """What Neural Compressor is told of the weight of a node."""
    if node.op_type == "Gather":
        return _TABLE
    chosen = FORMATS[precision]
    return {
        "dtype": _DTYPES[chosen.scheme],
        "scheme": chosen.scheme,
        "granularity": chosen.granularity,
        "algorithm": "minmax",
    }


def at_run_time(node: onnx.NodeProto, precision: str | None) -> bool:
    """Whether a node of this precision, None for FP32, gets the scale of what it reads in each run."""
    return (
        precision is not None
        and precision != Precision.FP32
        and FORMATS[precision].dynamic
        and node.op_type != "Gather"
    )
