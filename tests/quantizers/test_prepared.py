"""Formats that change an FP32 layer before it becomes INT8: ``int8-smooth``, ``int8-smooth-75``, ``int8-corrected``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from qnas_plugin import registry
from qnas_plugin.build.shared_model import Outline
from qnas_plugin.data import Batch
from qnas_plugin.errors import QuantizationError
from qnas_plugin.evaluate.lab import Lab
from qnas_plugin.hardware import RuntimeSetting
from qnas_plugin.latency.parts_alone import build as isolated
from qnas_plugin.latency.parts_alone import isolate
from qnas_plugin.latency.rows import Decomposition
from qnas_plugin.quantizers import channels, kernels, smooth
from qnas_plugin.quantizers.formats import CHANNELS, FORMATS, Precisions
from qnas_plugin.quantizers.quantize import Calibrated, calibrate, verify
from qnas_plugin.space import Precision
from tests.evaluate.test_lab import make
from tests.quantizers.test_kernels import FORMS, Form, node
from tests.sessions import session

pytestmark = pytest.mark.filterwarnings("ignore:::neural_compressor")
PREPARED = [name for name, format in FORMATS.items() if format.prepared]
TEXT = FORMS["added-to-text"][0]
OUTLIER = np.ones(8, np.float32)
OUTLIER[3] = 200


def calibrated(form: Form, batch: Batch | None = None, opset: int = 17) -> Calibrated:
    model = form.model
    model.opset_import[0].version = opset
    return calibrate(model, form.groups, [batch or form.batch], algorithms=[CHANNELS])


def error(form: Form, made: Calibrated, precision: str, batch: Batch) -> float:
    """Of the output, relative."""
    model = made.emit(dict.fromkeys(form.groups, precision))
    (wanted,), (got,) = (session(each).run(None, dict(batch.inputs)) for each in (form.model, model))
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("precision", PREPARED)
@pytest.mark.parametrize("name", FORMS)
def test_each_layer_runs_on_an_integer_kernel_and_gives_the_same(name: str, precision: str, tmp_path: Path) -> None:
    form, expected = FORMS[name]
    made, path = calibrated(form), tmp_path / "model.onnx"
    onnx.save(made.emit(dict.fromkeys(form.groups, precision)), path)
    found = kernels.executed(path, form.groups)
    assert set().union(*found.groups.values()) <= expected | {"QGemm", "MatMulIntegerToFloat"}
    assert all(found.groups.values())
    assert not found.not_integer
    inputs = dict(form.batch.inputs)
    for wanted, got in zip(session(form.model).run(None, inputs), session(path).run(None, inputs), strict=True):
        assert np.linalg.norm(got - wanted) < 0.05 * np.linalg.norm(wanted)
    again = calibrated(form).emit(dict.fromkeys(form.groups, precision))
    assert again.SerializeToString(deterministic=True) == onnx.load(path).SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_smoothed_computes_the_same_in_fp32(name: str, alpha: float) -> None:
    form = FORMS[name][0]
    made = calibrated(form)
    model = smooth.smoothed(Outline.of(form.model), dict.fromkeys(form.groups, alpha), made.channels).outline.whole()
    inputs = dict(form.batch.inputs)
    for wanted, got in zip(session(form.model).run(None, inputs), session(model).run(None, inputs), strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
def test_smooth_saves_the_layer_of_an_outlier_channel(opset: int) -> None:
    batch = Batch({"x": TEXT.batch.inputs["x"] * OUTLIER}, np.arange(4))
    weights = {"w": np.random.default_rng(2).standard_normal((8, 8)).astype(np.float32) / OUTLIER[:, None]}
    graph = helper.make_graph(
        [node("MatMul", "x w", "y")],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 5, 8])],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    groups = {"g": ("/y/MatMul",)}
    made = calibrate(model, groups, [batch], algorithms=[CHANNELS])
    errors = {}
    for precision in ("int8", "int8-smooth", "int8-smooth-75"):
        (wanted,), (got,) = (
            session(each).run(None, dict(batch.inputs)) for each in (model, made.emit({"g": precision}))
        )
        errors[precision] = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
    assert errors["int8"] > 0.3
    assert max(errors["int8-smooth"], errors["int8-smooth-75"]) < 0.05


def test_correction_takes_the_mean_error_away() -> None:
    """What is read is far from zero, so that rounding of weights moves the output."""
    for name in ("added-to-text", "conv", "gemm-transposed", "gemm-times-two", "conv-without-bias", "depthwise"):
        form = FORMS[name][0]
        batch = Batch({"x": np.abs(form.batch.inputs["x"]) + 5}, np.arange(4))
        made = calibrated(form, batch)
        shifts = {}
        for precision in ("int8", "int8-corrected"):
            model = made.emit(dict.fromkeys(form.groups, precision))
            (wanted,), (got,) = (session(each).run(None, dict(batch.inputs)) for each in (form.model, model))
            axes = (0, 2, 3) if "conv" in name or name == "depthwise" else tuple(range(wanted.ndim - 1))
            shifts[precision] = np.abs((got - wanted).mean(axis=axes)).mean()
        assert shifts["int8-corrected"] < 0.7 * shifts["int8"], name


def test_correction_leaves_fp32_layers_and_what_others_share_alone() -> None:
    form = FORMS["one-bias-for-two"][0]
    made = calibrated(form)
    first, second = form.groups
    alone = made.emit({first: "int8-corrected", second: Precision.FP32})
    plain = made.emit({first: "int8", second: Precision.FP32})
    stored = [{i.name: numpy_helper.to_array(i) for i in each.graph.initializer} for each in (alone, plain)]
    np.testing.assert_array_equal(stored[0]["b"], stored[1]["b"])
    assert "w/bias" in stored[0]


def test_verify_refuses_int8_for_smooth() -> None:
    made = calibrated(TEXT)
    with pytest.raises(QuantizationError, match="did not land"):
        verify(made.emit(dict.fromkeys(TEXT.groups, "int8")), TEXT.groups, dict.fromkeys(TEXT.groups, "int8-smooth"))


@pytest.mark.parametrize("precision", PREPARED)
def test_emit_names_the_tensor_whose_channels_are_not_known(precision: str) -> None:
    made = calibrate(TEXT.model, TEXT.groups, [TEXT.batch])
    with pytest.raises(QuantizationError, match="the channels of tensor 'x' are not known"):
        made.emit(dict.fromkeys(TEXT.groups, precision))


def test_watch_gives_extremes_and_means_over_batches_of_any_size() -> None:
    conv = FORMS["conv"][0]
    for form, axes in ((TEXT, (0, 1)), (conv, (0, 2, 3))):
        whole = form.batch.inputs["x"]
        batches = [Batch({"x": whole[:1]}, np.arange(1)), Batch({"x": whole[1:]}, np.arange(1, 4))]
        nodes = [each for each in form.nodes if each.name in form.groups]
        found = channels.watch(Outline.of(form.model), nodes, batches)["x"]
        expected = [whole.min(axis=axes), whole.max(axis=axes), whole.mean(axis=axes)]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_watch_refuses_what_is_not_finite() -> None:
    values = TEXT.batch.inputs["x"].copy()
    values[0, 0, 0] = np.nan
    with pytest.raises(QuantizationError, match="tensor 'x' is not finite"):
        channels.watch(Outline.of(TEXT.model), [TEXT.nodes[0]], [replace(TEXT.batch, inputs={"x": values})])


@pytest.mark.parametrize("precision", PREPARED)
def test_build_of_subnets_has_the_format(bert_checkpoint: Path, sentences: Path, precision: str) -> None:
    def lab() -> Lab:
        return make("bert", bert_checkpoint, str(sentences), Precisions((precision, "int8", "fp32")))

    first, second = lab(), lab()
    space = first.network.space
    built = []
    for size in ("largest", "smallest"):
        corner = space.corner(size, Precision.FP32)  # type: ignore[arg-type]
        candidate = space.candidate({n: precision if n.startswith("precision.") else v for n, v in corner.items()})
        built.append(first.build(candidate))
        exact = first.build(corner)
        inputs = dict(first.bench.calibration[0].inputs)
        runs = [session(model).run(None, inputs)[0].ravel() for model in (exact, built[-1])]
        assert np.corrcoef(*runs)[0, 1] > 0.99
    assert second.build(candidate) == built[-1]


@pytest.mark.parametrize("family", ["bert", "resnet50"])
def test_latency_tables_have_rows_of_every_format(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Parts are timed without data, whole networks too; a smoothed product has its division in its own row."""
    choices = ("int8-dynamic", *PREPARED, "fp32")
    checkpoint = request.getfixturevalue(f"{family}_checkpoint")
    supernet = registry.load("supernets", family).load(str(checkpoint), precisions=Precisions(choices))
    inputs = supernet.example(RuntimeSetting(sequence_length=6 if family == "bert" else None, resolution=8))
    graph = supernet.graph(inputs)
    decomposition = Decomposition(supernet.space, supernet.parts)
    wanted = {}
    for key in decomposition.keys:
        wanted.setdefault(tuple(value for name, value in key.values if name in ("precision", "to")), key)
    found = list(
        isolate(graph, supernet, decomposition, inputs, tmp_path, list(wanted.values())[: 5 if family == "bert" else 2])
    )
    assert found
    for part in found:
        session(part.model).run(None, dict(part.inputs))
    largest = supernet.space.corner("largest", Precision.FP32)
    for name in choices[:-1]:
        values = {key: name if key.startswith("precision.") else value for key, value in largest.items()}
        candidate = supernet.space.candidate(values)
        emitted = isolated(graph, supernet, candidate)
        groups = {group: nodes for group, nodes in graph.groups.items() if f"precision.{group}" in candidate}
        verify(emitted, groups, dict.fromkeys(groups, name))
        session(emitted).run(None, dict(inputs))
