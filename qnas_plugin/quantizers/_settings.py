"""What the numbers of a layer become under a format, whatever quantizer does it."""

from __future__ import annotations

import onnx

from qnas_plugin.quantizers.formats import Format, Numbers

UNSIGNED = Numbers(signed=False, symmetric=False, axis="tensor")
"""Activations, and tables under any format."""

WEIGHTS = (Numbers(), Numbers(axis="tensor"), UNSIGNED)
"""What weights are in 8 bits."""


def in_8_bits(format: Format) -> bool:
    """Whether a format has weights and activations of 8 bits, of the kinds that ONNX Runtime has kernels for."""
    return format.weights in WEIGHTS and format.activations == UNSIGNED


def weights_of(node: onnx.NodeProto, format: Format) -> Numbers | None:
    """The numbers of the weight of a node; those of a table are the same under all formats."""
    return UNSIGNED if node.op_type == "Gather" else format.weights


def type_of(numbers: Numbers | None) -> int | None:
    """The type of a stored weight; None where there is none of 8 bits."""
    if numbers not in WEIGHTS:
        return None
    return int(onnx.TensorProto.INT8 if numbers.signed else onnx.TensorProto.UINT8)


def at_run_time(node: onnx.NodeProto, format: Format | None) -> bool:
    """Whether a node of this format, None for FP32, gets the scale of what it reads in each run."""
    return format is not None and format.dynamic and node.op_type != "Gather"
