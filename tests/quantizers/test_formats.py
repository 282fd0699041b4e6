"""Formats as data."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from qnas_plugin.errors import QuantizationError, UnknownNameError, UsageError
from qnas_plugin.quantizers.formats import FORMATS, Format, Numbers, add, check_choices, format_of
from qnas_plugin.quantizers.quantize import calibrate


def test_fp32_is_a_format_that_leaves_everything_as_it_is() -> None:
    fp32 = format_of("fp32")
    assert not fp32.quantized
    assert (fp32.weight_bits, fp32.activation_bits) == (32, 32)
    assert not fp32.needs
    assert [name for name, format in FORMATS.items() if not format.quantized] == ["fp32"]


@pytest.mark.parametrize(
    ("name", "weights", "needs"),
    [
        ("int8", (8, True, True, "channel"), {"minmax"}),
        ("int8-asym", (8, False, False, "tensor"), {"minmax"}),
        ("int8-per-tensor", (8, True, True, "tensor"), {"minmax"}),
        ("int8-percentile", (8, True, True, "channel"), {"percentile"}),
        ("int8-dynamic", (8, True, True, "channel"), set()),
        ("int8-smooth", (8, True, True, "channel"), {"minmax", "channels"}),
        ("int8-corrected", (8, True, True, "channel"), {"minmax", "channels"}),
    ],
)
def test_names_keep_their_meaning(name: str, weights: tuple[object, ...], needs: set[str]) -> None:
    format = FORMATS[name]
    assert format.weights is not None
    assert (format.weights.bits, format.weights.signed, format.weights.symmetric, format.weights.axis) == weights
    assert format.activations == Numbers(signed=False, symmetric=False, axis="tensor")
    assert format.needs == needs


def test_numbers_refuse_what_is_no_format_of_numbers() -> None:
    for numbers in ({"bits": 0}, {"bits": 32}, {"axis": "block"}, {"block": 32}, {"axis": "block", "block": 0}):
        with pytest.raises(UsageError):
            Numbers(**numbers)  # type: ignore[arg-type]
    assert Numbers(bits=4, axis="block", block=32).block == 32


def test_add_opens_the_choices_and_keeps_names_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qnas_plugin.quantizers.formats.FORMATS", dict(FORMATS))
    low = Format("two and four bits", Numbers(2), Numbers(4, False, False, "tensor"), "learned")
    with pytest.raises(UnknownNameError, match="unknown precision 'w2a4'"):
        check_choices(("w2a4", "fp32"))
    add("w2a4", low)
    add("w2a4", low)
    assert check_choices(("w2a4", "fp32")) == ("w2a4", "fp32")
    assert (format_of("w2a4").weight_bits, format_of("w2a4").activation_bits) == (2, 4)
    with pytest.raises(UsageError, match="another format 'int8'"):
        add("int8", low)


def test_emit_refuses_a_format_that_the_quantizer_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "w4a8", Format("four bits", Numbers(4)))
    weight = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        "graph",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, 4])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None, 4])],
        [weight],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    from qnas_plugin.data import Batch

    batch = Batch({"x": np.ones((2, 4), np.float32)}, np.arange(2))
    calibrated = calibrate(model, {"only": ("product",)}, [batch])
    with pytest.raises(QuantizationError, match="cannot quantize to 'w4a8'"):
        calibrated.emit({"only": "w4a8"})
