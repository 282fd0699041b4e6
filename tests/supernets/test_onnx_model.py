"""Any ONNX model: what becomes a layer and a group, what is refused, and the real pipeline on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from qnas_plugin import registry
from qnas_plugin.build.shared_model import Outline
from qnas_plugin.data import SplitSizes
from qnas_plugin.errors import CheckpointError, UsageError
from qnas_plugin.evaluate.lab import Lab
from qnas_plugin.hardware import RuntimeSetting
from qnas_plugin.measure.accuracy import run
from qnas_plugin.quantizers.formats import FORMATS, Precisions
from qnas_plugin.space import Precision
from qnas_plugin.supernets.onnx_file.onnx_model import OnnxModel, group, load
from tests.sessions import HERE

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
RNG = np.random.default_rng(0)


def weight(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.random.default_rng(len(name)).normal(size=shape).astype(np.float32), name)


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[onnx.TensorProto],
    *,
    inputs: Sequence[onnx.ValueInfoProto] = (helper.make_tensor_value_info("x", FLOAT, ["b", 8]),),
    output: tuple[str, list[str | int]] = ("y", ["b", 8]),
    opset: int = 17,
    **saving: object,
) -> Path:
    graph = helper.make_graph(
        list(nodes), "g", list(inputs), [helper.make_tensor_value_info(output[0], FLOAT, output[1])], list(weights)
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, str(path), **saving)
    return path


def chain(path: Path, names: Sequence[str], **options: object) -> Path:
    """MatMuls one after the other."""
    nodes = [
        helper.make_node("MatMul", [f"t{i}" if i else "x", f"w{i}"], [f"t{i + 1}" if i + 1 < len(names) else "y"], name)
        for i, name in enumerate(names)
    ]
    return write(path, nodes, [weight(f"w{i}", 8, 8) for i in range(len(names))], **options)


@pytest.fixture
def attention(tmp_path: Path) -> Path:
    """Two blocks with query, key and value of one tensor, and an output layer."""
    nodes, weights, source = [], [], "x"
    for block in range(2):
        for part in ("query", "key", "value"):
            nodes.append(
                helper.make_node("MatMul", [source, f"{part}{block}"], [f"{part}{block}.y"], f"/{block}/{part}")
            )
            weights.append(weight(f"{part}{block}", 8, 8))
        nodes.append(helper.make_node("Mul", [f"query{block}.y", f"key{block}.y"], [f"qk{block}"]))
        nodes.append(helper.make_node("Add", [f"qk{block}", f"value{block}.y"], [f"sum{block}"]))
        source = "y" if block else "z"
        nodes.append(helper.make_node("MatMul", [f"sum{block}", f"out{block}"], [source], f"/{block}/output/dense"))
        weights.append(weight(f"out{block}", 8, 8))
    return write(tmp_path / "attention.onnx", nodes, weights)


def lab(model: OnnxModel, arrays: dict[str, np.ndarray], folder: Path, *, metric: str = "cosine") -> Lab:
    np.savez(folder / "data.npz", **arrays)
    task = registry.load("tasks", "arrays")
    dataset = task.load(str(folder / "data.npz"), sizes=SplitSizes(calibration=8))
    assert dataset.metric == metric
    return Lab(model, dataset, task.processor(str(model.file)), HERE, RuntimeSetting())


def test_group_puts_layers_that_read_one_tensor_together(attention: Path) -> None:
    assert load(str(attention)).groups == {
        "0": ("/0/query", "/0/key", "/0/value"),
        "0/output/dense": ("/0/output/dense",),
        "1": ("/1/query", "/1/key", "/1/value"),
        "1/output/dense": ("/1/output/dense",),
    }


def test_group_takes_patterns_and_leaves_out_what_stays_fp32(attention: Path) -> None:
    precisions = Precisions(fp32=("/1/output/*",), groups={"all-keys": "*/key"})
    assert load(str(attention), precisions=precisions).groups == {
        "0": ("/0/query", "/0/value"),
        "all-keys": ("/0/key", "/1/key"),
        "0/output/dense": ("/0/output/dense",),
        "1": ("/1/query", "/1/value"),
    }


def test_group_joins_neighbours_of_one_name_first(attention: Path) -> None:
    groups = load(str(attention), precisions=Precisions(most=2)).groups
    assert [len(names) for names in groups.values()] == [4, 4]
    assert list(groups) == ["0", "1"]


def test_group_keeps_every_layer_and_the_limit_when_there_are_many() -> None:
    layers = [helper.make_node("Conv", [f"t{i}", f"w{i}"], [f"t{i + 1}"], f"Conv_{i}") for i in range(500)]
    groups = group(layers, Precisions(groups={"first": "Conv_0"}))
    assert len(groups) == 60
    assert groups["first"] == ("Conv_0",)
    assert [name for names in groups.values() for name in names] == [node.name for node in layers]
    assert max(map(len, groups.values())) < 20


def test_group_puts_layers_with_one_weight_together(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "/a/first"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"], "/b/second"),
    ]
    model = load(str(write(tmp_path / "m.onnx", nodes, [weight("w", 8, 8)])))
    assert list(model.groups.values()) == [("/a/first", "/b/second")]


@pytest.mark.parametrize(
    ("precisions", "message"),
    [
        (Precisions(fp32=("*/nothing",)), r"pattern '\*/nothing' matches none of the 8 names: /0/query"),
        (Precisions(groups={"a": "*/nothing"}), r"pattern '\*/nothing' matches none"),
        (Precisions(groups={"a": "*/key", "b": "/0/*"}), "'/0/key' is in the groups 'a' and 'b'"),
        (Precisions(fp32=("*",)), "no layer is left"),
    ],
)
def test_load_raises_when_a_pattern_is_wrong(attention: Path, precisions: Precisions, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(str(attention), precisions=precisions)


def test_load_raises_one_line_for_what_it_cannot_take(tmp_path: Path) -> None:
    quantized = [
        helper.make_node("DequantizeLinear", ["w8", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"], "m"),
    ]
    eight = [numpy_helper.from_array(np.ones((8, 8), np.int8), "w8"), numpy_helper.from_array(np.float32(1), "scale")]
    half = [numpy_helper.from_array(np.ones((8, 8), np.float16), "h")]
    cast = [helper.make_node("Cast", ["h"], ["w"], to=FLOAT), helper.make_node("MatMul", ["x", "w"], ["y"])]
    (tmp_path / "text.onnx").write_text("no model")
    chain(tmp_path / "external.onnx", ["m"], save_as_external_data=True, location="gone.data", size_threshold=0)
    (tmp_path / "gone.data").unlink()
    for path, message in {
        write(tmp_path / "quantized.onnx", quantized, eight): "is quantized already, it has a DequantizeLinear",
        write(tmp_path / "half.onnx", cast, half): "has 16-bit weights, like 'h'",
        write(tmp_path / "relu.onnx", [helper.make_node("Relu", ["x"], ["y"])], []): "no layer to quantize.*only Relu",
        write(tmp_path / "own.onnx", [helper.make_node("Mine", ["x"], ["y"], domain="me")], []): "cannot run.*Mine",
        tmp_path / "text.onnx": "cannot read",
        tmp_path / "missing.onnx": "no file",
        tmp_path / "external.onnx": "gone.data",
    }.items():
        with pytest.raises(CheckpointError, match=message) as error:
            load(str(path))
        assert "\n" not in str(error.value)


def test_load_folds_batch_normalisation_and_raises_old_opsets(tmp_path: Path) -> None:
    image = helper.make_tensor_value_info("x", FLOAT, ["b", 3, 8, 8])
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "s", "o", "m", "v"], ["y"]),
    ]
    vectors = [
        numpy_helper.from_array(np.full(4, value, np.float32), name)
        for name, value in {"s": 2, "o": 1, "m": 0, "v": 1}.items()
    ]
    path = write(
        *(tmp_path / "conv.onnx", nodes, [weight("k", 4, 3, 3, 3), *vectors]),
        inputs=[image],
        output=("y", ["b", 4, 8, 8]),
        opset=11,
    )
    model = load(str(path))
    assert [node.op_type for node in model.outline.model.graph.node] == ["Conv"]
    assert model.groups == {"conv": ("conv",)}
    made = lab(model, {"x": RNG.normal(size=(30, 3, 8, 8)).astype(np.float32)}, tmp_path)
    made.check(model.space.corner("largest", Precision.FP32))


def test_lab_takes_external_data_several_inputs_and_whole_runs(tmp_path: Path) -> None:
    """The state has its batch axis elsewhere and the factor has none, so an example holds all that a run gets."""
    inputs = [
        helper.make_tensor_value_info("x", FLOAT, ["b", 8]),
        helper.make_tensor_value_info("state", FLOAT, [2, "b", 8]),
        helper.make_tensor_value_info("factor", FLOAT, []),
    ]
    nodes = [
        helper.make_node("Add", ["x", "state"], ["s"]),
        helper.make_node("Mul", ["s", "factor"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"], "m"),
    ]
    path = write(
        *(tmp_path / "m.onnx", nodes, [weight("w", 8, 8)]),
        inputs=inputs,
        output=("y", [2, "b", 8]),
        save_as_external_data=True,
        location="m.data",
        size_threshold=0,
    )
    arrays = {
        "x": RNG.normal(size=(30, 1, 8)).astype(np.float32),
        "state": RNG.normal(size=(30, 2, 1, 8)).astype(np.float32),
        "factor": np.full(30, 2.0, dtype=np.float32),
    }
    made = lab(load(str(path)), arrays, tmp_path)
    made.check(made.network.space.corner("largest", Precision.FP32))
    assert 0.9 < made.accuracy(made.network.space.corner("largest", Precision.INT8), tmp_path).metrics["accuracy"] < 1
    assert all(len(batch.positions) == 1 for batch in made.bench.search)


def test_emit_leaves_what_a_branch_captures(tmp_path: Path) -> None:
    """A subgraph reads a tensor of the graph around it, which quantization must keep."""
    scalar = numpy_helper.from_array(np.array(True), "always")
    branches = {
        name: helper.make_graph(
            [helper.make_node(kind, ["a"], [f"{name}.y"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}.y", FLOAT, None)],
        )
        for name, kind in (("then", "Relu"), ("else", "Neg"))
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], "first"),
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["largest", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["i"], then_branch=branches["then"], else_branch=branches["else"]),
        helper.make_node("MatMul", ["i", "w1"], ["y"], "second"),
    ]
    zero = numpy_helper.from_array(np.float32(0), "zero")
    model = load(str(write(tmp_path / "if.onnx", nodes, [scalar, zero, weight("w0", 8, 8), weight("w1", 8, 8)])))
    made = lab(model, {"x": RNG.normal(size=(30, 8)).astype(np.float32)}, tmp_path)
    made.check(model.space.corner("largest", Precision.FP32))
    for genes in model.space.sample(4, np.random.default_rng(0)):
        assert made.accuracy(model.space.decode(genes), tmp_path).metrics["accuracy"] > 0.9


@pytest.mark.parametrize("name", [name for name, format in FORMATS.items() if format.quantized])
def test_build_gives_weights_of_the_format_that_was_chosen(attention: Path, tmp_path: Path, name: str) -> None:
    model = load(str(attention), precisions=Precisions((name, "fp32")))
    made = lab(model, {"x": RNG.normal(size=(30, 8)).astype(np.float32)}, tmp_path)
    emitted = made.build(model.space.corners["largest-int8"])
    stored = {i.name: numpy_helper.to_array(i) for i in emitted.graph.initializer}
    weights = [stored[i] for i in stored if i.endswith("_quantized") and stored[i].ndim == 2]
    zeros = [stored[i] for i in stored if i.endswith("_zero_point") and i.startswith(("query", "key", "value", "out"))]
    expected = FORMATS[name]
    weights_of = expected.weights
    assert weights_of is not None
    assert len(weights) == 8
    assert len(zeros) == (0 if expected.dynamic else 8)  # zero is what a product without one subtracts
    assert all(values.dtype == (np.int8 if weights_of.signed else np.uint8) for values in weights)
    for values, zero in zip(weights, zeros, strict=not expected.dynamic):
        assert values.dtype == zero.dtype == (np.int8 if weights_of.signed else np.uint8)
        assert zero.shape == ((8,) if weights_of.axis == "channel" else ())
        assert (np.all(zero == 0)) == weights_of.symmetric
    batch = made.bench.calibration[0]
    ((_, outputs),) = run(Outline.of(emitted), [batch], threads=1)
    exact = onnxruntime.InferenceSession(str(attention)).run(None, dict(batch.inputs))[0]
    assert np.corrcoef(outputs["y"].ravel(), exact.ravel())[0, 1] > 0.99
