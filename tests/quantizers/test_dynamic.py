"""``int8-dynamic``: integer kernels for each form of layer, without calibration data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qnas_plugin.data import Batch
from qnas_plugin.errors import QuantizationError
from qnas_plugin.evaluate import bench
from qnas_plugin.quantizers import kernels
from qnas_plugin.quantizers.formats import Precisions
from qnas_plugin.quantizers.quantize import Calibrated, verify
from qnas_plugin.space import Precision
from tests.evaluate.test_lab import make
from tests.quantizers.test_kernels import FORMS, Form, node
from tests.sessions import session

pytestmark = pytest.mark.filterwarnings("ignore:::neural_compressor")
DYNAMIC = "int8-dynamic"
KERNELS = {"DynamicQuantizeMatMul", "MatMulIntegerToFloat", "ConvInteger", "Gather"}
TWO = Form([node("MatMul", "x w", "h"), node("MatMul", "x v", "g"), node("Add", "h g", "y")], ("n", 5, 8))


def emitted(form: Form, precision: str = DYNAMIC) -> onnx.ModelProto:
    return Calibrated(form.model, form.groups, {}).emit(dict.fromkeys(form.groups, precision))


@pytest.mark.parametrize("name", FORMS)
def test_each_layer_runs_on_an_integer_kernel_and_gives_the_same(name: str, tmp_path: Path) -> None:
    form, _ = FORMS[name]
    model, path = emitted(form), tmp_path / "model.onnx"
    onnx.save(model, path)
    if form.shape:  # the checker wants one
        onnx.checker.check_model(model)
    found = kernels.executed(path, form.groups)
    assert set().union(*found.groups.values()) <= KERNELS
    assert all(found.groups.values())
    assert not found.not_integer
    assert not [
        i.name
        for i in model.graph.initializer
        if len(i.dims) > 1
        and i.data_type == onnx.TensorProto.FLOAT
        and i.name in ("w", "v", "k", "k2", "depth", "line", "table")
    ]
    inputs = dict(form.batch.inputs)
    for wanted, got in zip(session(form.model).run(None, inputs), session(path).run(None, inputs), strict=True):
        np.testing.assert_allclose(got, wanted, atol=0.06 * np.abs(wanted).max())
    assert emitted(form) == model


def test_layers_that_read_one_tensor_round_it_once() -> None:
    operators = [each.op_type for each in emitted(TWO).graph.node]
    assert operators.count("DynamicQuantizeLinear") == 1
    assert operators.count("MatMulInteger") == 2


def test_scales_follow_the_data_of_each_run() -> None:
    """What is a thousand times as large as anything before is as exact."""
    form = FORMS["added-to-text"][0]
    read = session(emitted(form))
    small = form.batch.inputs["x"]
    for factor in (1e-3, 1e3):
        (wanted,), (got,) = (runs.run(None, {"x": small * np.float32(factor)}) for runs in (session(form.model), read))
        np.testing.assert_allclose(got, wanted, atol=0.02 * np.abs(wanted).max())


def test_names_of_the_model_may_be_those_that_would_be_made() -> None:
    plain = FORMS["product"][0]
    nodes = [
        node("Identity", "x", "x_dynamic_scale"),
        node("MatMul", "x w", "w_quantized"),
        node("Add", "w_quantized x_dynamic_scale", "y"),
    ]
    form = Form(nodes, plain.shape)
    (wanted,), (got,) = (session(model).run(None, dict(form.batch.inputs)) for model in (form.model, emitted(form)))
    np.testing.assert_allclose(got, wanted, atol=0.05 * np.abs(wanted).max())


def test_a_policy_may_have_static_dynamic_and_fp32_layers_on_one_tensor() -> None:
    form = TWO
    ranges = {"x": (-4.0, 4.0)}
    calibrated = Calibrated(form.model, form.groups, ranges)
    for pair in ((DYNAMIC, "int8"), ("int8", DYNAMIC), (DYNAMIC, "fp32"), (DYNAMIC, DYNAMIC)):
        policy = dict(zip(form.groups, pair, strict=True))
        model = calibrated.emit(policy)
        verify(model, form.groups, policy)
        for wrong in ((DYNAMIC, "int8"), ("int8", DYNAMIC), ("fp32", DYNAMIC)):
            if wrong != pair:
                with pytest.raises(QuantizationError, match="did not land"):
                    verify(model, form.groups, dict(zip(form.groups, wrong, strict=True)))
        (wanted,), (got,) = (session(m).run(None, dict(form.batch.inputs)) for m in (form.model, model))
        np.testing.assert_allclose(got, wanted, atol=0.05 * np.abs(wanted).max())


def test_verify_refuses_a_weight_that_is_not_stored_in_8_bits() -> None:
    form = TWO
    model = emitted(form)
    product = next(each for each in model.graph.node if each.op_type == "MatMulInteger")
    weight = next(i for i in model.graph.initializer if i.name == product.input[1])
    product.input[1] = "moved"
    model.graph.node.insert(0, onnx.helper.make_node("Identity", [weight.name], ["moved"]))
    with pytest.raises(QuantizationError, match="did not land"):
        verify(model, form.groups, dict.fromkeys(form.groups, DYNAMIC))


def test_build_without_static_layers_needs_no_ranges(
    bert_checkpoint: Path, sentences: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lab = make("bert", bert_checkpoint, str(sentences), Precisions((DYNAMIC, "int8", "fp32")))
    space = lab.network.space
    largest = space.corner("largest", Precision.FP32)
    dynamic = space.candidate({n: DYNAMIC if n.startswith("precision.") else v for n, v in largest.items()})

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(bench, "observe", never)
        built = lab.build(dynamic)
        lab.build(largest)
    weights = {i.name: numpy_helper.to_array(i) for i in built.graph.initializer if len(i.dims) > 1}
    assert all(array.dtype in (np.int8, np.uint8) for name, array in weights.items() if name.endswith("_quantized"))
    path = tmp_path / "model.onnx"
    onnx.save(built, path)
    found = kernels.executed(path, lab.graph.groups)
    assert all(found.groups.values())
    assert not found.not_integer
    batch: Batch = lab.bench.calibration[0]
    wanted = lab.build(largest)
    runs = [session(model).run(None, dict(batch.inputs))[0] for model in (wanted, built)]
    assert np.corrcoef(runs[0].ravel(), runs[1].ravel())[0, 1] > 0.99
