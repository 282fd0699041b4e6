"""The seam of the quantizers: what each of them has to do, on the same graphs, under the same policies."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from qnas_plugin import registry
from qnas_plugin.errors import QuantizationError
from qnas_plugin.quantizers import kernels, quantize
from qnas_plugin.quantizers.formats import CHANNELS, FORMATS, Format, Numbers
from qnas_plugin.quantizers.quantize import Calibrated, calibrate, verify
from qnas_plugin.quantizers.weights import rounded
from tests.quantizers.test_kernels import FORMS, Form, node
from tests.sessions import session
from tests.test_missing import installed

pytestmark = pytest.mark.filterwarnings("ignore:::neural_compressor")

PACKAGE = {"neural_compressor": "neural-compressor"}
QUANTIZERS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(not installed(PACKAGE.get(name, "onnxruntime")), reason=f"{name} is not installed"),
    )
    for name in registry.names("quantizers")
]
STATIC = [name for name, format in FORMATS.items() if format.quantized]


@pytest.fixture(params=QUANTIZERS)
def quantizer(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def calibrated(form: Form, quantizer: str) -> Calibrated:
    return calibrate(
        form.model, form.groups, [form.batch], algorithms=("percentile", "kl", CHANNELS), quantizer=quantizer
    )


def outputs(model: onnx.ModelProto, form: Form) -> list[np.ndarray]:
    return [np.asarray(each) for each in session(model).run(None, dict(form.batch.inputs))]


def policies(form: Form) -> Iterator[dict[str, str]]:
    """All INT8, each group alone, and all but each."""
    yield dict.fromkeys(form.groups, "int8")
    for group in form.groups:
        yield {other: "int8" if other == group else "fp32" for other in form.groups}
        yield {other: "fp32" if other == group else "int8" for other in form.groups}


def test_the_room_has_these_quantizers_and_other_files() -> None:
    assert registry.names("quantizers") == ("neural_compressor", "onnxruntime")
    assert {path.stem for path in Path(quantize.__file__).parent.glob("*.py")} > {"dynamic", "formats", "smooth"}


def test_a_quantizer_has_a_version_and_says_what_it_can_emit(quantizer: str) -> None:
    module = quantize.load(quantizer)
    assert module.version()[0].isdigit()
    assert all(module.can_emit(FORMATS[name]) for name in STATIC)
    assert not module.can_emit(Format("four bits", Numbers(4)))


@pytest.mark.parametrize("form", FORMS)
def test_each_policy_lands_runs_and_leaves_fp32_alone(form: str, quantizer: str) -> None:
    given = FORMS[form][0]
    ready = calibrated(given, quantizer)
    expected = outputs(given.model, given)
    for policy in policies(given):
        model = ready.emit(policy)
        verify(model, given.groups, policy)
        if set(policy.values()) == {"fp32"}:
            assert model == given.model
        for got, want in zip(outputs(model, given), expected, strict=True):
            assert got.shape == want.shape
            assert np.abs(got - want).max() <= 0.15 * np.abs(want).max() + 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_int8_layers_have_the_kernels_that_they_have_by_any_quantizer(
    form: str, quantizer: str, tmp_path: Path
) -> None:
    given, expected = FORMS[form]
    path = tmp_path / "model.onnx"
    onnx.save(calibrated(given, quantizer).emit(dict.fromkeys(given.groups, "int8")), path)
    found = kernels.executed(path, given.groups)
    assert not found.not_integer
    assert {kernel for group in found.groups.values() for kernel in group} == expected


@pytest.mark.parametrize("precision", STATIC)
def test_each_format_lands(precision: str, quantizer: str) -> None:
    given = Form([node("MatMul", "x w", "h"), node("Add", "h b", "g"), node("Gemm", "g v b", "y")], ("n", 8))
    ready = calibrated(given, quantizer)
    for first, second in ((precision, precision), (precision, "fp32"), ("fp32", precision), (precision, "int8")):
        policy = dict(zip(given.groups, (first, second), strict=True))
        model = ready.emit(policy)
        verify(model, given.groups, policy)
        (got,), (want,) = outputs(model, given), outputs(given.model, given)
        assert np.abs(got - want).max() <= 0.15 * np.abs(want).max()


def test_the_same_work_gives_the_same_bytes(quantizer: str) -> None:
    given = FORMS["added"][0]
    first, second = (calibrated(given, quantizer).emit(dict.fromkeys(given.groups, "int8")) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_a_weight_of_two_kinds_is_stored_twice_and_fp32_readers_keep_theirs(quantizer: str) -> None:
    layers = [("MatMul", "h"), ("MatMul", "g"), ("MatMul", "f")]
    nodes = [node(operator, "x w", name) for operator, name in layers]
    given = Form([*nodes, node("Sum", "h g f", "y")], ("n", 8))
    policy = dict(zip(given.groups, ("int8", "int8-asym", "fp32"), strict=True))
    model = calibrated(given, quantizer).emit(policy)
    verify(model, given.groups, policy)
    kinds = [tensor.data_type for tensor in model.graph.initializer if list(tensor.dims) == [8, 8]]
    assert sorted(kinds) == sorted([onnx.TensorProto.FLOAT, onnx.TensorProto.INT8, onnx.TensorProto.UINT8])


def test_a_tensor_that_the_model_gives_too_stays_fp32(quantizer: str) -> None:
    given = Form([node("MatMul", "x w", "h"), node("MatMul", "h v", "y")], ("n", 8), ("h", "y"))
    groups = list(given.groups)
    model = calibrated(given, quantizer).emit({groups[0]: "fp32", groups[1]: "int8"})
    assert np.array_equal(outputs(model, given)[0], outputs(given.model, given)[0])


def test_weights_are_rounded_as_the_quantizer_of_onnx_runtime_does() -> None:
    from onnxruntime.quantization.quant_utils import compute_data_quant_params, quantize_onnx_initializer

    values = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32) * np.arange(5, dtype=np.float32)
    for symmetric, axis in ((True, None), (True, 1), (True, 0), (False, None)):
        numbers = Numbers(signed=symmetric, symmetric=symmetric, axis="tensor" if axis is None else "channel")
        kind = onnx.TensorProto.INT8 if symmetric else onnx.TensorProto.UINT8
        found = rounded("w", values, numbers, axis, {})
        channels = [values] if axis is None else [values.take(i, axis) for i in range(values.shape[axis])]
        pairs = [compute_data_quant_params(channel, kind, symmetric, False, None) for channel in channels]
        scales = np.array([scale for _, scale in pairs], np.float32).reshape(-1)
        dead = np.array([not channel.any() for channel in channels])
        assert np.array_equal(found.scales[~dead], scales[~dead])
        zeros, steps = found.zero_points, found.scales
        if axis is None:
            zeros, steps = zeros.reshape(()), steps.reshape(())
        theirs = quantize_onnx_initializer(onnx.numpy_helper.from_array(values, "w"), kind, zeros, steps, axis)
        assert np.array_equal(onnx.numpy_helper.to_array(theirs), found.values)


def test_onnx_runtime_gives_a_conv_before_a_relu_the_range_that_this_lets_through() -> None:
    given = Form([node("Conv", "x k", "h", pads=[1, 1, 1, 1]), node("Relu", "h", "y")], ("n", 8, 6, 6))
    ready = calibrated(given, "onnxruntime")
    model = ready.emit(dict.fromkeys(given.groups, "int8"))
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    (step,) = (each for each in model.graph.node if each.op_type == "QuantizeLinear" and each.input[0] == "h")
    assert stored[step.input[2]] == 0
    assert stored[step.input[1]] == np.float32(np.float64(np.float32(ready.ranges["h"][1])) / 255)


def test_calibrated_refuses_a_format_that_a_quantizer_lacks(quantizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "w4a8", Format("four bits", Numbers(4)))
    given = FORMS["product"][0]
    with pytest.raises(QuantizationError, match=f"'{quantizer}' cannot quantize to 'w4a8'"):
        calibrated(given, quantizer).emit(dict.fromkeys(given.groups, "w4a8"))


def test_onnx_runtime_quantizes_without_neural_compressor() -> None:
    code = (
        "import sys; sys.modules['neural_compressor'] = None\n"
        "from tests.quantizers.test_quantizers import FORMS, calibrated\n"
        "given = FORMS['added'][0]\n"
        "calibrated(given, 'onnxruntime').emit(dict.fromkeys(given.groups, 'int8-percentile'))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
