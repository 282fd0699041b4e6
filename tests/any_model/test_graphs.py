"""Graphs of any form that ONNX allows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.any_model import (
    BOOL,
    FLOAT,
    floats,
    int8_layers,
    linear,
    model,
    node,
    prepare,
    refused,
    searched,
    session,
    stored,
    valid,
    value,
)

X = {"x": floats(30, 8)}
IMAGES = {"x": floats(30, 3, 6, 6)}


def conv(inputs: list[str], **attributes: object) -> onnx.ModelProto:
    return model(
        [node("Conv", inputs, ["y"], "conv", **attributes)],
        [value("x", FLOAT, ["n", 3, 6, 6])],
        [value("y", FLOAT, None)],
        stored(k=floats(4, 3, 3, 3)),
    )


def gemm(bias: object, **attributes: object) -> onnx.ModelProto:
    weight = floats(5, 8) if attributes.get("transB") else floats(8, 5)
    return model(
        [node("Gemm", ["x", "w", "b"], ["y"], "fc", **attributes)],
        [value("x", FLOAT, ["n", 8])],
        [value("y", FLOAT, ["n", 5])],
        stored(w=weight, b=np.asarray(bias, np.float32)),
    )


def test_an_empty_name_is_no_bias(tmp_path: Path) -> None:
    assert searched(conv(["x", "k", ""]), IMAGES, tmp_path)["int8"] > 0.99
    assert int8_layers(tmp_path) == 1
    made = gemm(np.zeros(5))
    made.graph.node[0].input[2] = ""
    assert searched(made, X, tmp_path)["int8"] > 0.99


@pytest.mark.parametrize(
    "bias", [np.full(5, 2), np.full(1, 2), 2, np.full((1, 5), 2), np.full((1, 1), 2)], ids=["5", "1", "-", "1x5", "1x1"]
)
@pytest.mark.parametrize("attributes", [{}, {"beta": 0.5}, {"alpha": 3.0}, {"transB": 1, "alpha": 0.5, "beta": -2.0}])
def test_a_bias_may_have_any_form_that_broadcasts(tmp_path: Path, bias: object, attributes: dict[str, object]) -> None:
    assert searched(gemm(bias, **attributes), X, tmp_path)["int8"] > 0.99
    assert int8_layers(tmp_path) == 1


def test_a_bias_may_differ_by_row_or_come_from_a_node(tmp_path: Path) -> None:
    """The layer stays FP32 then; another one is searched."""
    made = gemm(floats(3, 5))
    made.graph.node.add(op_type="MatMul", name="second", input=["y", "v"], output=["z"])
    made.graph.initializer.extend(stored(v=floats(5, 5)))
    made.graph.output[0].CopyFrom(value("z", FLOAT, [3, 5]))
    made.graph.input[0].CopyFrom(value("x", FLOAT, [3, 8]))
    assert searched(made, {"x": floats(30, 3, 8)}, tmp_path)["int8"] > 0.99
    assert int8_layers(tmp_path) == 1


def test_biases_and_weights_may_be_shared(tmp_path: Path) -> None:
    made = gemm(floats(1))
    made.graph.node.add(op_type="Gemm", name="second", input=["x", "w", "b"], output=["y2"])
    made.graph.node.add(op_type="Gemm", name="third", input=["x", "w", "b"], output=["y3"])
    made.graph.node.add(op_type="Add", name="sum", input=["b", "y3"], output=["y4"])
    made.graph.output.extend(value(name, FLOAT, ["n", 5]) for name in ("y2", "y4"))
    assert searched(made, X, tmp_path)["int8"] > 0.99
    assert int8_layers(tmp_path) == 3


@pytest.mark.parametrize(
    ("ir", "opset"), [(3, 7), (3, 9), (4, 9), (5, 10), (6, 11), (7, 12), (8, 13), (10, 21), (11, 23)]
)
def test_members_are_valid_whatever_version_the_input_has(tmp_path: Path, ir: int, opset: int) -> None:
    """Before IR version 4 each initializer has to be an input, afterwards it may be one."""
    made = linear(opset=opset, ir=ir)
    if ir < 4:
        made.graph.input.append(value("w", FLOAT, [8, 5]))
    assert valid(made)
    assert searched(made, X, tmp_path)["int8"] > 0.97
    assert [each.name for each in session(tmp_path / "int8.onnx").get_inputs()] == ["x"]


def function(*nodes: onnx.NodeProto, opset: int) -> onnx.FunctionProto:
    return helper.make_function(
        "mine",
        "Layer",
        ["x", "w"],
        ["y"],
        list(nodes),
        [helper.make_opsetid("", opset), helper.make_opsetid("mine", 1)],
    )


@pytest.mark.parametrize("opset", [11, 17])
def test_functions_become_part_of_the_graph(tmp_path: Path, opset: int) -> None:
    layer = function(node("MatMul", ["x", "w"], ["y"]), opset=opset)
    made = model(
        [node("Layer", ["x", "w"], ["h"], "a", domain="mine"), node("Layer", ["h", "v"], ["y"], "b", domain="mine")],
        [value("x", FLOAT, ["n", 8])],
        [value("y", FLOAT, ["n", 5])],
        stored(w=floats(8, 8), v=floats(8, 5)),
        opset=opset,
        domains=[("mine", 1)],
        functions=[layer],
    )
    assert searched(made, X, tmp_path)["int8"] > 0.97
    assert int8_layers(tmp_path) == 2


def test_what_is_quantized_already_is_refused_wherever_it_is(tmp_path: Path) -> None:
    rounded = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("MatMul", ["d", "w"], ["y"]),
    ]
    made = model(
        [node("Layer", ["x", "w"], ["y"], "a", domain="mine")],
        [value("x", FLOAT, ["n", 8])],
        [value("y", FLOAT, ["n", 5])],
        stored(w=floats(8, 5)),
        domains=[("mine", 1)],
        functions=[function(*rounded, opset=17)],
    )
    assert "is quantized already, it has a DynamicQuantizeLinear" in refused(made, X, tmp_path)
    branches = {
        name: helper.make_graph([*rounded[:2], node("Identity", ["d"], [name])], name, [], [value(name, FLOAT, None)])
        for name in ("then_branch", "else_branch")
    }
    made = model(
        [node("If", ["flag"], ["k"], **branches), node("MatMul", ["k", "w"], ["y"], "fc")],
        [value("x", FLOAT, ["n", 8]), value("flag", BOOL, [])],
        [value("y", FLOAT, ["n", 5])],
        stored(w=floats(8, 5)),
    )
    assert "is quantized already" in refused(made, X | {"flag": np.ones(30, bool)}, tmp_path)


def test_weights_that_are_no_numbers_are_refused_and_infinite_ones_stay_fp32(tmp_path: Path) -> None:
    made = linear()
    made.graph.initializer[0].CopyFrom(stored(w=np.full((8, 5), np.nan, np.float32))[0])
    assert (
        refused(made, X, tmp_path) == f"the weight 'w' of '{tmp_path}/model.onnx' has values that are no numbers (NaN)"
    )
    table = np.where(np.eye(4), 0, -np.inf).astype(np.float32)  # of attention: what may be seen from where
    made = model(
        [
            node("Gather", ["table", "i"], ["mask"], "mask"),
            node("MatMul", ["x", "w"], ["h"], "fc"),
            node("Add", ["h", "mask"], ["m"]),
            node("Softmax", ["m"], ["y"], axis=-1),
        ],
        [value("x", FLOAT, ["n", 8]), value("i", onnx.TensorProto.INT64, ["n"])],
        [value("y", FLOAT, ["n", 4])],
        stored(table=table, w=floats(8, 4)),
    )
    assert searched(made, X | {"i": np.arange(30) % 4}, tmp_path)["int8"] > 0.99
    assert int8_layers(tmp_path) == 1


def test_layers_without_numbers_are_left_alone(tmp_path: Path) -> None:
    made = model(
        [
            node("MatMul", ["x", "w"], ["h"], "fc"),
            node("MatMul", ["x", "none"], ["e"], "empty"),
            node("Concat", ["h", "e"], ["y"], axis=1),
        ],
        [value("x", FLOAT, ["n", 8])],
        [value("y", FLOAT, ["n", 5])],
        stored(w=floats(8, 5), none=floats(8, 0)),
    )
    assert searched(made, X, tmp_path)["int8"] > 0.97
    assert int8_layers(tmp_path) == 1


def selected(limit: float) -> onnx.ModelProto:
    """A layer that reads the rows with a sum above a limit, and another one."""
    nodes = [
        node("ReduceSum", ["x", "one"], ["s"], keepdims=0),
        node("Greater", ["s", "limit"], ["c"]),
        node("Compress", ["x", "c"], ["k"], axis=0),
        node("MatMul", ["k", "w"], ["h"], "fc"),
        node("ReduceSum", ["h", "zero"], ["a"], keepdims=0),
        node("MatMul", ["x", "v"], ["q"], "fc2"),
        node("ReduceSum", ["q", "zero"], ["b"], keepdims=0),
        node("Add", ["a", "b"], ["y"]),
    ]
    initializers = stored(w=floats(8, 5), v=floats(8, 5, seed=1), one=[1], zero=[0], limit=np.float32(limit))
    return model(nodes, [value("x", FLOAT, [4, 8])], [value("y", FLOAT, [5])], initializers)


def test_tensors_may_be_empty_for_some_examples_but_not_for_all(tmp_path: Path) -> None:
    data = {"x": floats(60, 4, 8)}
    assert searched(selected(4), data, tmp_path)["int8"] > 0.97
    message = refused(selected(1e6), data, tmp_path)
    assert message.startswith("the tensor 'k' of the layer 'fc' has no values for any of the calibration data")
    assert message.endswith("--keep-fp32 'fc'")


def test_what_onnx_runtime_does_not_run_is_refused(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "k"], ["c"], "c1"),
        node("Resize", ["c", "", "s"], ["u"], mode="nearest"),
        node("Conv", ["u", "v"], ["y"], "c2"),
    ]
    made = model(
        nodes,
        [value("x", FLOAT, ["n", 3, 6, 6])],
        [value("y", FLOAT, None)],
        stored(k=floats(4, 3, 3, 3), v=floats(2, 4, 3, 3), s=np.array([1, 1, 2, 2], np.float32)),
        opset=11,
        ir=6,
    )
    assert "ONNX Runtime cannot run 'model.onnx'" in refused_data(made, IMAGES, tmp_path)
    unknown = linear()
    unknown.graph.node[0].op_type = "Unknown"
    assert "cannot run" in refused_data(unknown, X, tmp_path)


def refused_data(made: onnx.ModelProto, data: dict[str, np.ndarray], folder: Path) -> str:
    from qnas_plugin.errors import QnasError

    with pytest.raises(QnasError) as error:
        prepare(made, data, folder).check({})
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("content", [b"", b"\x08", b"\x3a\x00" * 3, bytes(range(256)), b"text"])
def test_files_that_are_no_models_are_refused(tmp_path: Path, content: bytes) -> None:
    from qnas_plugin.errors import CheckpointError
    from qnas_plugin.supernets.onnx_file.onnx_model import load

    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        load(str(path))
    assert "\n" not in str(error.value)


def test_what_libraries_raise_is_one_line() -> None:
    from qnas_plugin.errors import CheckpointError, UsageError, door

    for raised, line in (
        (KeyError("x"), "cannot: there is no 'x'"),
        (AssertionError(), "cannot: AssertionError"),
        (RuntimeError("a\nb " * 30), "cannot: RuntimeError: a"),
        (MemoryError(), "cannot: it takes more memory than there is"),
    ):
        with pytest.raises(CheckpointError) as error, door(CheckpointError, "cannot"):
            raise raised
        assert str(error.value).startswith(line)
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="^ours$"), door(CheckpointError, "cannot"):
        raise UsageError("ours")
    with pytest.raises(KeyboardInterrupt), door(CheckpointError, "cannot"):
        raise KeyboardInterrupt
