"""Weights of any type, and those of which only what is not zero is stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qnas_plugin.errors import CheckpointError
from qnas_plugin.quantizers import kernels
from qnas_plugin.supernets.onnx_file.onnx_model import load
from tests.any_model import FLOAT, floats, int8_layers, linear, model, node, refused, save, searched, stored, value

X = {"x": floats(30, 8)}
DOUBLE, HALF, BRAIN = TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16


def sparse(array: np.ndarray, name: str, *, rows: bool) -> onnx.SparseTensorProto:
    """A tensor with a row of indices for each value, or with one that counts through all axes."""
    places = np.argwhere(array) if rows else np.flatnonzero(array)
    values = numpy_helper.from_array(array[array != 0], name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(places.astype(np.int64)), array.shape)


def half_empty(*shape: int) -> np.ndarray:
    return np.where(np.arange(np.prod(shape)).reshape(shape) % 3 == 0, 0, floats(*shape)).astype(np.float32)


def pruned(*, rows: bool = True) -> onnx.ModelProto:
    """``y = x w`` with a sparse weight."""
    made = linear()
    del made.graph.initializer[:]
    made.graph.sparse_initializer.append(sparse(half_empty(8, 5), "w", rows=rows))
    return made


@pytest.mark.parametrize("rows", [True, False])
def test_sparse_weights_become_whole(tmp_path: Path, rows: bool) -> None:
    path = save(pruned(rows=rows), tmp_path)
    assert [layer.kernels for layer in kernels.layers(path)] == [("MatMul",)]
    scores = searched(path, X, tmp_path)
    assert scores["fp32"] == 1 > scores["int8"] > 0.99
    assert int8_layers(tmp_path) == 1
    stored_ = onnx.load(tmp_path / "fp32.onnx").graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(stored_[0]), half_empty(8, 5))


@pytest.mark.parametrize("place", ["graph", "branch", "function"])
def test_sparse_constants_are_refused_before_onnx_runtime_sees_them(tmp_path: Path, place: str) -> None:
    """ONNX Runtime 1.31 ended with a segmentation fault on some of them."""

    def constant(name: str, where: str) -> onnx.NodeProto:
        values = half_empty(8, 8)
        if where == place:
            return node("Constant", [], [name], f"c_{name}", sparse_value=sparse(values, "", rows=True))
        return node("Constant", [], [name], f"c_{name}", value=numpy_helper.from_array(values))

    branches = {
        f"{name}_branch": helper.make_graph(
            [constant(f"c{name}", "branch"), node(kind, ["h", f"c{name}"], [name])],
            name,
            [],
            [value(name, FLOAT, None)],
        )
        for name, kind in (("then", "Add"), ("else", "Sub"))
    }
    layer = helper.make_function(
        *("mine", "Layer", ["x"], ["y"], [constant("v", "function"), node("MatMul", ["x", "v"], ["y"])]),
        [helper.make_opsetid("", 17)],
    )
    made = model(
        [
            constant("w", "graph"),
            node("MatMul", ["x", "w"], ["g"], "fc"),
            node("Layer", ["g"], ["h"], "own", domain="mine"),
            node("If", ["flag"], ["y"], **branches),
        ],
        [value("x", FLOAT, [8, 8]), value("flag", TensorProto.BOOL, [])],
        [value("y", FLOAT, [8, 8])],
        domains=[("mine", 1)],
        functions=[layer],
    )
    name = {"graph": "w", "branch": "celse", "function": "v"}[place]
    data = {"x": floats(30, 8, 8), "flag": np.arange(30) % 2 > 0}
    assert f"the constant '{name}' of" in refused(made, data, tmp_path)


def test_parts_of_a_sparse_weight_may_lie_beside_the_model(tmp_path: Path) -> None:
    made = pruned()
    values = made.graph.sparse_initializer[0].values
    (tmp_path / "values.bin").write_bytes(values.raw_data)
    values.ClearField("raw_data")
    values.data_location = TensorProto.EXTERNAL
    values.external_data.add(key="location", value="values.bin")
    path = save(made, tmp_path)
    assert load(str(path)).groups == {"fc": ("fc",)}
    (tmp_path / "values.bin").unlink()
    with pytest.raises(CheckpointError, match=r"no file '.*values.bin', in which 'model.onnx' has 'w'"):
        load(str(path))
    values.external_data[0].value = "../values.bin"
    (tmp_path.parent / "values.bin").touch()
    with pytest.raises(CheckpointError, match="which is no file of its folder"):
        load(str(save(made, tmp_path)))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("outside", "cannot read the sparse tensor 'w' of"),
        ("few", "its indices do not fit 26 values of (8, 5); store it whole"),
        ("brain", "it is of type BFLOAT16; store it whole"),
        ("large", "takes 4000.0 GB when it is whole, more than fits into one file"),
        ("no shape", "cannot read the sparse tensor 'w' of"),
        ("twice", "has two initializers named 'w'"),
    ],
)
def test_damaged_sparse_weights_are_refused_by_name(tmp_path: Path, fault: str, message: str) -> None:
    made = pruned(rows=fault == "outside")
    weight = made.graph.sparse_initializer[0]
    if fault in ("outside", "few"):
        places = numpy_helper.to_array(weight.indices)
        places = places + 7 if fault == "outside" else places[:-1]
        weight.indices.CopyFrom(numpy_helper.from_array(places))
    elif fault == "brain":
        weight.values.data_type = BRAIN
    elif fault == "twice":
        made.graph.initializer.extend(stored(w=floats(8, 5)))
    else:
        weight.dims[:] = [10**6, 10**6] if fault == "large" else [-8, 5]
    with pytest.raises(CheckpointError) as error:
        load(str(save(made, tmp_path)))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def of_type(kind: int, operator: str, *, constant: bool) -> onnx.ModelProto:
    """One layer whose weight is of a type."""
    shapes = {"MatMul": (8, 5), "Gemm": (8, 5), "Conv": (4, 3, 3, 3), "Gather": (9, 5)}
    weight = helper.make_tensor("w", kind, shapes[operator], floats(*shapes[operator]).reshape(-1))
    inputs = ["w", "x"] if operator == "Gather" else ["x", "w"]
    axes = {"Conv": ["n", 3, 6, 6], "Gather": ["n"]}.get(operator, ["n", 8])
    made = model(
        [node(operator, inputs, ["y"], "layer")],
        [value("x", TensorProto.INT64 if operator == "Gather" else kind, axes)],
        [value("y", kind, None)],
    )
    if constant:
        made.graph.node.insert(0, node("Constant", [], ["w"], "c", value=weight))
    else:
        made.graph.initializer.append(weight)
    return made


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("operator", ["MatMul", "Gemm", "Conv", "Gather"])
@pytest.mark.parametrize(("kind", "name"), [(DOUBLE, "float64"), (HALF, "float16"), (BRAIN, "bfloat16")])
def test_layers_of_other_floats_are_refused_by_name_with_the_way_out(
    tmp_path: Path, kind: int, name: str, operator: str, constant: bool
) -> None:
    """Whether ONNX Runtime has a kernel for them, or none."""
    with pytest.raises(CheckpointError) as error:
        load(str(save(of_type(kind, operator, constant=constant), tmp_path)))
    line = str(error.value)
    assert "\n" not in line
    assert line.endswith("export the model in FP32, in PyTorch with model.float()")
    expected = (
        "has 16-bit weights, like 'w'" if kind != DOUBLE and not constant else f"'layer' has its weight 'w' in {name}"
    )
    assert expected in line


def test_layers_of_doubles_stay_beside_those_of_fp32(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["h"], "fc"),
        node("Cast", ["h"], ["d"], "wide", to=DOUBLE),
        node("MatMul", ["d", "v"], ["y"], "exact"),
    ]
    made = model(
        nodes,
        [value("x", FLOAT, ["n", 8])],
        [value("y", DOUBLE, ["n", 5])],
        stored(w=floats(8, 5), v=floats(5, 5).astype(np.float64)),
    )
    assert searched(made, X, tmp_path)["int8"] > 0.98
    assert int8_layers(tmp_path) == 1


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (floats(8), "the MatMul 'fc' has a weight 'w' of 1 axis, only one of 2 can be quantized"),
        (floats(2, 8, 5), "the MatMul 'fc' has a weight 'w' of 3 axes, only one of 2 can be quantized"),
        (np.full((8, 5), np.inf, np.float32), "the MatMul 'fc' has an infinite weight 'w'"),
        (floats(8, 0), "the MatMul 'fc' has a weight 'w' without numbers"),
    ],
)
def test_what_is_nearly_a_layer_is_named(tmp_path: Path, weight: np.ndarray, message: str) -> None:
    made = linear()
    made.graph.initializer[0].CopyFrom(stored(w=weight)[0])
    made.graph.output[0].CopyFrom(value("y", FLOAT, None))
    assert f"has no layer to quantize: {message}" in refused(made, X, tmp_path)
