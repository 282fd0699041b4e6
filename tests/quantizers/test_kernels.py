"""Each layer that is called INT8 has an integer kernel in the graph that ONNX Runtime runs, whatever is around it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from qnas_plugin.data import Batch
from qnas_plugin.errors import MeasurementError
from qnas_plugin.quantizers import kernels
from qnas_plugin.quantizers.quantize import calibrate
from qnas_plugin.runtimes import onnxruntime as runtime
from qnas_plugin.space import Precision
from tests.sessions import session

pytestmark = pytest.mark.filterwarnings("ignore:::neural_compressor")

RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": RNG.standard_normal((8, 8)),
    "v": RNG.standard_normal((8, 8)),
    "b": RNG.standard_normal(8),
    "row": RNG.standard_normal((1, 8)),
    "one": RNG.standard_normal(1),
    "half": np.array(0.5),
    "k": RNG.standard_normal((8, 8, 3, 3)),
    "k2": RNG.standard_normal((8, 8, 3, 3)),
    "depth": RNG.standard_normal((8, 1, 3, 3)),
    "line": RNG.standard_normal((8, 8, 3)),
    "table": RNG.standard_normal((20, 8)),
    "norm": np.abs(RNG.standard_normal(8)) + 1,
}
STORED = {name: array.astype(np.float32) for name, array in WEIGHTS.items()} | {
    name: np.array(value, np.float32) for name, value in (("three", 3), ("six", 6))
}
PLAIN, TEXT, IMAGE = ("n", 8), ("n", 5, 8), ("n", 8, 6, 6)


def node(operator: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(
        operator, inputs.split(), outputs.split(), f"/{outputs.split()[0]}/{operator}", **attributes
    )


@dataclass(frozen=True)
class Form:
    """A small graph from ``x`` to ``y``.

    Args:
        nodes: With these names: ``/<first output>/<operator>``.
        shape: Of the input; empty if the model does not say.
        outputs: Names of the outputs.
        inputs: Type of the input; indices below 20 where it is an integer.
    """

    nodes: Sequence[onnx.NodeProto]
    shape: Sequence[int | str]
    outputs: Sequence[str] = ("y",)
    inputs: int = TensorProto.FLOAT

    @property
    def model(self) -> onnx.ModelProto:
        read = {name for each in self.nodes for name in each.input}
        graph = helper.make_graph(
            list(self.nodes),
            "g",
            [helper.make_tensor_value_info("x", self.inputs, self.shape or None)],
            [onnx.ValueInfoProto(name=name) for name in self.outputs],
            [numpy_helper.from_array(array, name) for name, array in STORED.items() if name in read],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return onnx.shape_inference.infer_shapes(model)

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        layers = ("MatMul", "Gemm", "Conv", "Gather")
        return {each.name: (each.name,) for each in self.nodes if each.op_type in layers}

    @property
    def batch(self) -> Batch:
        shape = [size if isinstance(size, int) else 4 for size in self.shape or PLAIN]
        rng = np.random.default_rng(1)
        array = rng.standard_normal(shape).astype(np.float32)
        return Batch({"x": array if self.inputs == TensorProto.FLOAT else rng.integers(0, 20, shape)}, np.arange(4))


def added(bias: str, shape: Sequence[int | str], between: Sequence[onnx.NodeProto] = ()) -> Form:
    """A MatMul, something between, and an Add."""
    return Form([node("MatMul", "x w", "h"), *between, node("Add", f"{'g' if between else 'h'} {bias}", "y")], shape)


GEMM, MATMUL, CONV = {"QGemm"}, {"MatMulIntegerToFloat"}, {"QLinearConv"}
FORMS: Mapping[str, tuple[Form, set[str]]] = {
    "product": (Form([node("MatMul", "x w", "y")], PLAIN), MATMUL),
    "product-of-text": (Form([node("MatMul", "x w", "y")], TEXT), MATMUL),
    "product-and-relu": (Form([node("MatMul", "x w", "h"), node("Relu", "h", "y")], PLAIN), MATMUL),
    "product-is-output": (Form([node("MatMul", "x w", "y"), node("Relu", "y", "z")], PLAIN, ("y", "z")), MATMUL),
    "product-read-twice": (
        Form([node("MatMul", "x w", "h"), node("Add", "h b", "g"), node("Mul", "h g", "y")], PLAIN),
        MATMUL,
    ),
    "added": (added("b", PLAIN), GEMM),
    "added-row": (added("row", PLAIN), GEMM),
    "added-one": (added("one", PLAIN), MATMUL),
    "added-input": (added("x", PLAIN), GEMM),
    "added-to-text": (added("b", TEXT), MATMUL),
    "added-to-text-of-fixed-shape": (added("b", (4, 5, 8)), MATMUL),
    "added-to-one-text": (added("b", (1, 5, 8)), MATMUL),
    "added-to-images-of-fixed-shape": (added("b", (2, 2, 2, 8)), MATMUL),
    "added-to-any-shape": (added("b", ()), MATMUL),
    "added-behind-identity": (added("b", PLAIN, [node("Identity", "h", "g")]), GEMM),
    "added-behind-dropout": (added("b", PLAIN, [node("Dropout", "h", "g")]), GEMM),
    "added-behind-cast": (added("b", PLAIN, [node("Cast", "h", "g", to=TensorProto.FLOAT)]), GEMM),
    "added-and-relu": (
        Form([node("MatMul", "x w", "h"), node("Add", "h b", "g"), node("Relu", "g", "y")], PLAIN),
        GEMM,
    ),
    "two-added": (Form([node("MatMul", "x w", "h"), node("MatMul", "x v", "g"), node("Add", "h g", "y")], PLAIN), GEMM),
    "one-bias-for-two": (
        Form(
            [
                node("MatMul", "x w", "h"),
                node("Add", "h b", "g"),
                node("MatMul", "g v", "i"),
                node("Add", "b i", "y"),
            ],
            (1, 5, 8),
        ),
        MATMUL,
    ),
    "one-weight-for-two": (
        Form([node("MatMul", "x w", "h"), node("Add", "h b", "g"), node("MatMul", "g w", "y")], PLAIN),
        GEMM | MATMUL,
    ),
    "summed": (Form([node("MatMul", "x w", "h"), node("Sum", "h b", "y")], PLAIN), MATMUL),
    "scaled": (Form([node("MatMul", "x w", "h"), node("Mul", "h half", "y")], TEXT), MATMUL),
    "normalised": (
        Form([node("MatMul", "x w", "h"), node("BatchNormalization", "h norm b b norm", "y")], PLAIN),
        MATMUL,
    ),
    "gemm": (Form([node("Gemm", "x w b", "y")], PLAIN), GEMM),
    "gemm-transposed": (Form([node("Gemm", "x w b", "y", transB=1)], PLAIN), GEMM),
    "gemm-of-columns": (Form([node("Gemm", "x w b", "y", transA=1)], (8, "n")), GEMM),
    "gemm-times-two": (Form([node("Gemm", "x w b", "y", alpha=2.0, transB=1)], PLAIN), GEMM),
    "gemm-times-minus-two": (Form([node("Gemm", "x w b", "h", alpha=-2.0), node("Relu", "h", "y")], PLAIN), GEMM),
    "gemm-times-two-without-bias": (Form([node("Gemm", "x w", "y", alpha=2.0)], PLAIN), GEMM),
    "gemm-summed": (Form([node("Gemm", "x w", "h"), node("Sum", "b h", "y")], PLAIN), GEMM),
    "gemm-summed-with-input": (Form([node("Gemm", "x w", "h"), node("Sum", "h x", "y")], PLAIN), GEMM),
    "gemm-and-tanh": (Form([node("Gemm", "x w b", "h"), node("Tanh", "h", "y")], PLAIN), GEMM),
    "gemm-is-output": (Form([node("Gemm", "x w b", "y"), node("Relu", "y", "z")], PLAIN, ("y", "z")), GEMM),
    "conv": (Form([node("Conv", "x k b", "y")], IMAGE), CONV),
    "conv-without-bias": (Form([node("Conv", "x k", "y")], IMAGE), CONV),
    "conv-is-output": (Form([node("Conv", "x k b", "y"), node("Relu", "y", "z")], IMAGE, ("y", "z")), CONV),
    "conv-and-relu": (Form([node("Conv", "x k b", "h"), node("Relu", "h", "y")], IMAGE), CONV),
    "conv-and-clip": (Form([node("Conv", "x k b", "h"), node("Clip", "h half six", "y")], IMAGE), CONV),
    "conv-and-clip-above-zero": (Form([node("Conv", "x k b", "h"), node("Clip", "h three six", "y")], IMAGE), CONV),
    "two-convs": (
        Form([node("Conv", "x k b", "h"), node("HardSwish", "h", "g"), node("Conv", "g k2 b", "y")], IMAGE),
        CONV,
    ),
    "residual": (
        Form([node("Conv", "x k b", "h", pads=[1] * 4), node("Add", "h x", "g"), node("Relu", "g", "y")], IMAGE),
        CONV,
    ),
    "depthwise": (Form([node("Conv", "x depth b", "y", group=8)], IMAGE), CONV),
    "conv-of-lines": (Form([node("Conv", "x line b", "y")], ("n", 8, 6)), CONV),
    "table": (Form([node("Gather", "table x", "y")], ("n", 3), inputs=TensorProto.INT64), {"Gather"}),
    "table-and-product": (
        Form([node("Gather", "table x", "h"), node("MatMul", "h w", "y")], ("n",), inputs=TensorProto.INT64),
        {"Gather"} | MATMUL,
    ),
}


def written(form: Form, precision: str, folder: Path) -> Path:
    model = calibrate(form.model, form.groups, [form.batch]).emit(dict.fromkeys(form.groups, precision))
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("precision", ["int8", "int8-asym"])
@pytest.mark.parametrize("name", FORMS)
def test_each_int8_layer_runs_on_an_integer_kernel_and_gives_the_same(name, precision, tmp_path):
    form, expected = FORMS[name]
    path = written(form, precision, tmp_path)
    if form.shape:  # the checker wants one
        onnx.checker.check_model(onnx.load(path))
    found = kernels.executed(path, form.groups)
    assert set().union(*found.groups.values()) == expected
    assert not found.not_integer
    assert not kernels.in_name_only([found])
    graph = kernels.optimised(path).graph
    matrices = {initializer.name for initializer in graph.initializer if len(initializer.dims) > 1}
    assert not [each.name for each in graph.node if each.op_type == "DequantizeLinear" and each.input[0] in matrices]
    inputs = dict(form.batch.inputs)
    for wanted, got in zip(session(form.model).run(None, inputs), session(path).run(None, inputs), strict=True):
        assert got.shape == wanted.shape
        assert np.linalg.norm(got - wanted) < 0.04 * np.linalg.norm(wanted)


@pytest.mark.parametrize("name", FORMS)
def test_fp32_layers_are_named_by_what_runs(name, tmp_path):
    form, _ = FORMS[name]
    path = tmp_path / "model.onnx"
    onnx.save(form.model, path)
    found = kernels.executed(path, form.groups)
    assert not found.not_integer
    for operators in found.groups.values():
        assert re.fullmatch("(Fused)?(MatMul|Gemm|Conv)|Gather", " ".join(operators))


def dequantized_in_each_run(path: Path) -> None:
    """A MatMul and an Add as Neural Compressor writes them, which ONNX Runtime joins to a Gemm in FP32."""
    form = added("b", PLAIN)
    model = calibrate(form.model, form.groups, [form.batch]).emit(dict.fromkeys(form.groups, Precision.INT8))
    next(each for each in model.graph.node if each.op_type == "Gemm").op_type = "MatMul"
    onnx.save(model, path)


def test_executed_names_the_group_that_is_int8_by_name_only(tmp_path):
    path = tmp_path / "model.onnx"
    dequantized_in_each_run(path)
    found = kernels.executed(path, {"head": ("/h/MatMul",)})
    assert found.to_dict() == {"groups": {"head": ["Gemm"]}, "not_integer": ["head"]}
    assert "computed in FP32 by ONNX Runtime: head;" in kernels.in_name_only([found, found])
    (layer,) = kernels.layers(path)
    assert (layer.int8, layer.integer) == (True, False)
    assert str(layer) == "Gemm in FP32, the weight is converted in every run"


@pytest.mark.parametrize("name", ["added", "two-convs", "one-weight-for-two", "gemm-times-two"])
def test_layers_are_found_where_kernels_rearrange_their_weights(name, tmp_path, monkeypatch):
    """On CPUs without VNNI a session that computes exactly gets weights of another type under another name."""

    def widened(options: ort.SessionOptions) -> None:
        options.add_session_config_entry("session.x64quantprecision", "1")

    monkeypatch.setattr(runtime, "make_exact", widened)
    form, expected = FORMS[name]
    found = kernels.executed(written(form, "int8", tmp_path), form.groups)
    assert set().union(*found.groups.values()) == expected
    assert not found.not_integer


def test_a_file_that_does_not_run_is_one_line(tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(MeasurementError, match=r"cannot read 'model.onnx'"):
        kernels.layers(path)
    path.write_bytes(b"no model")
    with pytest.raises(MeasurementError, match=r"'model.onnx'"):
        kernels.layers(path)
    model = FORMS["product"][0].model
    model.graph.node[0].op_type = "NoOperator"
    onnx.save(model, path)
    with pytest.raises(MeasurementError, match=r"ONNX Runtime cannot run 'model.onnx': .*NoOperator"):
        kernels.layers(path)
