"""Any legal name beside any other."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest

from qnas_plugin.errors import UsageError
from qnas_plugin.quantizers.formats import Precisions
from qnas_plugin.request import TuneRequest
from qnas_plugin.supernets.onnx_file.onnx_model import load
from tests.any_model import (
    FLOAT,
    INT64,
    floats,
    int8_layers,
    linear,
    model,
    node,
    refused,
    save,
    searched,
    stored,
    value,
)

X = {"x": floats(30, 8)}
ENDINGS = (
    "scale",
    "zero_point",
    "quantized",
    "dequantized",
    "QuantizeLinear",
    "DequantizeLinear",
    "QuantizeInput",
    "3",
)


def unique(path: Path) -> bool:
    """Whether each name of a node, and of what nodes give or a model stores, stands once."""
    graph = onnx.load(path).graph
    tensors = Counter(name for each in graph.node for name in each.output if name)
    tensors += Counter(tensor.name for tensor in graph.initializer)
    names = Counter(each.name for each in graph.node)
    return max(tensors.values()) == 1 == max(names.values())


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("stem", ["w", "x", "x_fc", "b", "h", "c", "k"])
def test_tensors_may_be_named_like_what_quantization_adds(tmp_path: Path, stem: str, ending: str) -> None:
    """A tensor beside a weight, an input, what a layer writes, and a bias."""
    other = f"{stem}_{ending}"
    nodes = [
        node("Mul", ["x", other], ["m"], "first"),
        node("Add", ["x", "m"], ["s"], f"{stem}_{ending}"),
        node("Gemm", ["s", "w", "b"], ["h"], "fc"),
        node("Gemm", ["x", "w", "b"], ["h2"], "fc2"),
        node("Concat", ["h", "h2"], ["cat"], axis=1),
        node("Reshape", ["cat", "shape"], ["image"]),
        node("Conv", ["image", "k"], ["c"], "conv"),
        node("MatMul", ["x", "w"], ["y"], "fc3"),
    ]
    initializers = stored(
        **{"w": floats(8, 8), "b": floats(8), "k": floats(2, 1, 3, 3), "shape": [0, 1, 4, 4], other: floats(1, 8)}
    )
    made = model(
        nodes, [value("x", FLOAT, ["n", 8])], [value("y", FLOAT, ["n", 8]), value("c", FLOAT, None)], initializers
    )
    assert searched(made, X, tmp_path)["int8"] > 0.97
    assert unique(tmp_path / "int8.onnx")
    assert int8_layers(tmp_path) == 4


@pytest.mark.parametrize("ending", ENDINGS)
def test_inputs_and_outputs_keep_names_that_quantization_adds(tmp_path: Path, ending: str) -> None:
    other = f"x_{ending}"
    made = model(
        [
            node("Mul", ["x", other], ["m"]),
            node("Conv", ["x", "k"], [f"k_{ending}"], "conv"),
            node("Conv", ["m", "k"], ["y"]),
        ],
        [value("x", FLOAT, ["n", 1, 6, 6]), value(other, FLOAT, ["n", 1, 6, 6])],
        [value(f"k_{ending}", FLOAT, None), value("y", FLOAT, None)],
        stored(k=floats(2, 1, 3, 3)),
    )
    assert searched(made, {"x": floats(30, 1, 6, 6), other: floats(30, 1, 6, 6, seed=1)}, tmp_path)["int8"] > 0.97
    assert unique(tmp_path / "int8.onnx")
    assert int8_layers(tmp_path) == 2


@pytest.mark.parametrize("names", [("fc", "fc_quant", "out"), ("fc_quant", "fc", "fc_quant_1"), ("", "", "MatMul_2")])
def test_nodes_may_have_any_name_or_none(tmp_path: Path, names: tuple[str, str, str]) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["a"], names[0]),
        node("MatMul", ["a", "v"], ["b"], names[1]),
        node("MatMul", ["b", "u"], ["y"], names[2]),
    ]
    made = model(
        nodes,
        [value("x", FLOAT, ["n", 8])],
        [value("y", FLOAT, ["n", 8])],
        stored(w=floats(8, 8), v=floats(8, 8, seed=1), u=floats(8, 8, seed=2)),
    )
    assert searched(made, X, tmp_path)["int8"] > 0.97
    assert unique(tmp_path / "int8.onnx")
    assert int8_layers(tmp_path) == 3
    assert sum(map(len, load(str(save(made, tmp_path))).groups.values())) == 3


def test_nodes_of_one_name_are_what_onnx_runtime_refuses(tmp_path: Path) -> None:
    made = linear("fc")
    made.graph.node.append(node("Relu", ["y"], ["z"], "fc"))
    assert "cannot run" in (message := refused(made, X, tmp_path))
    assert "two nodes with same node name (fc)" in message


def test_two_names_that_quantization_would_join_alike(tmp_path: Path) -> None:
    """``a`` read by ``b_c`` and ``a_b`` read by ``c`` both make ``a_b_c``."""
    made = model(
        [
            node("Relu", ["x"], ["a"]),
            node("Tanh", ["x"], ["a_b"]),
            node("MatMul", ["a", "w"], ["h"], "b_c"),
            node("MatMul", ["a_b", "v"], ["k"], "c"),
            node("Add", ["h", "k"], ["y"]),
        ],
        [value("x", FLOAT, ["n", 8])],
        [value("y", FLOAT, ["n", 5])],
        stored(w=floats(8, 5), v=floats(8, 5, seed=1)),
    )
    assert searched(made, X, tmp_path)["int8"] > 0.97
    assert unique(tmp_path / "int8.onnx")


def test_the_default_domain_may_be_written_out(tmp_path: Path) -> None:
    made = linear()
    made.opset_import[0].domain = "ai.onnx"
    made.graph.node[0].domain = "ai.onnx"
    assert searched(made, X, tmp_path)["int8"] > 0.97


def test_groups_have_names_of_their_own(tmp_path: Path) -> None:
    names = ("conv", "conv_1", "conv_2", "/a", "a", "a/b/x", "a/b/y")
    nodes = [
        node("MatMul", [f"t{i}" if i else "x", f"w{i}"], [f"t{i + 1}" if i + 1 < len(names) else "y"], name)
        for i, name in enumerate(names)
    ]
    made = model(
        nodes,
        [value("x", FLOAT, ["n", 8])],
        [value("y", FLOAT, ["n", 8])],
        stored(**{f"w{i}": floats(8, 8, seed=i) for i in range(len(names))}),
    )
    path = str(save(made, tmp_path))
    for groups, most in (({"conv": "conv_*"}, 60), ({"a": "conv"}, 60), ({"a/b": "a"}, 4), ({}, 3)):
        found = load(path, precisions=Precisions(groups=groups, most=most)).groups
        assert sorted(name for layers in found.values() for name in layers) == sorted(names)
    assert load(path, precisions=Precisions(groups={"conv": "conv_*"})).groups["conv"] == ("conv_1", "conv_2")
    request = {"model": path, "data": "d.npz", "out": "o", "group": ("a=x*", "a=y*")}
    with pytest.raises(UsageError, match="--group names 'a' twice"):
        TuneRequest.build(request, None)


def test_a_name_is_a_pattern_of_itself(tmp_path: Path) -> None:
    path, name = str(save(linear("layer[0]*"), tmp_path)), "layer[0]*"
    assert load(path, precisions=Precisions(groups={"g": name})).groups == {"g": (name,)}


def test_a_model_may_take_what_is_named_like_a_setting(tmp_path: Path) -> None:
    made = linear()
    made.graph.input.append(value("mode", INT64, ["n"]))
    made.graph.input.append(value("précision", INT64, ["n"]))
    data = X | {"mode": floats(30).astype(int), "précision": floats(30).astype(int)}
    assert searched(made, data, tmp_path)["int8"] > 0.97
