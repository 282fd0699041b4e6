"""Inputs and data of any kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from qnas_plugin.space import Precision
from tests.any_model import (
    BOOL,
    FLOAT,
    INT32,
    INT64,
    STRING,
    floats,
    int8_layers,
    linear,
    model,
    node,
    prepare,
    refused,
    save,
    searched,
    session,
    stored,
    value,
)

RNG = np.random.default_rng(0)
X = {"x": floats(30, 8)}


def test_an_input_that_nothing_reads_stays_an_input(tmp_path: Path) -> None:
    """Exported DistilBERTs have token_type_ids."""
    made = linear()
    made.graph.input.append(value("token_type_ids", INT64, ["n", 8]))
    scores = searched(made, X | {"token_type_ids": RNG.integers(0, 2, (30, 8))}, tmp_path)
    assert scores["fp32"] == 1 > scores["int8"] > 0.99
    assert "no array 'token_type_ids'" in refused(made, X, tmp_path)


def test_an_input_may_be_read_in_a_branch_alone_or_folded_away(tmp_path: Path) -> None:
    branches = {
        f"{name}_branch": helper.make_graph([node(kind, ["h", "bias"], [name])], name, [], [value(name, FLOAT, None)])
        for name, kind in (("then", "Add"), ("else", "Sub"))
    }
    nodes = [
        node("MatMul", ["x", "w"], ["h"], "fc"),
        node("If", ["flag"], ["k"], **branches),
        node("Shape", ["unseen"], ["shape"]),  # of fixed sizes: it is a constant
        node("Reshape", ["k", "shape"], ["y"]),
    ]
    made = model(
        nodes,
        [value("x", FLOAT, [1, 8]), value("flag", BOOL, []), value("bias", FLOAT, [5]), value("unseen", FLOAT, [1, 5])],
        [value("y", FLOAT, [1, 5])],
        stored(w=floats(8, 5)),
    )
    data = {
        "x": floats(30, 1, 8),
        "flag": RNG.integers(0, 2, 30) > 0,
        "bias": floats(30, 5),
        "unseen": floats(30, 1, 5),
    }
    assert searched(made, data, tmp_path)["int8"] > 0.99
    assert int8_layers(tmp_path) == 1


def test_branches_read_what_int8_layers_give_and_their_weights(tmp_path: Path) -> None:
    """ONNX demands an order of nodes in which a branch comes after what it reads."""
    then = helper.make_graph([node("MatMul", ["h", "v"], ["a"])], "t", [], [value("a", FLOAT, None)])
    other = helper.make_graph([node("Neg", ["c"], ["b"])], "e", [], [value("b", FLOAT, None)])
    nodes = [
        node("MatMul", ["x", "w"], ["h"], "fc"),
        node("MatMul", ["h", "v"], ["c"], "second"),
        node("If", ["flag"], ["k"], then_branch=then, else_branch=other),
        node("MatMul", ["k", "v"], ["y"], "third"),
    ]
    made = model(
        nodes,
        [value("x", FLOAT, ["n", 8]), value("flag", BOOL, [])],
        [value("y", FLOAT, ["n", 5])],
        stored(w=floats(8, 5), v=floats(5, 5)),
    )
    data = {"x": floats(30, 3, 8), "flag": RNG.integers(0, 2, 30) > 0}
    assert searched(made, data, tmp_path)["int8"] > 0.98
    assert int8_layers(tmp_path) == 3


def test_words_are_an_input(tmp_path: Path) -> None:
    nodes = [
        node(
            *("LabelEncoder", ["s"], ["i"]), domain="ai.onnx.ml", keys_strings=["a", "b", "c"], values_int64s=[0, 1, 2]
        ),
        node("Gather", ["t", "i"], ["e"], "table"),
        node("MatMul", ["e", "w"], ["y"], "fc"),
    ]
    made = model(
        nodes,
        [value("s", STRING, ["n", 4])],
        [value("y", FLOAT, ["n", 4, 5])],
        stored(t=floats(3, 8), w=floats(8, 5)),
        domains=[("ai.onnx.ml", 2)],
    )
    words = RNG.choice(["a", "b", "c"], (60, 4))
    assert searched(made, {"s": words}, tmp_path)["int8"] > 0.98
    assert "'s' is int64 in the data" in refused(made, {"s": RNG.integers(0, 3, (60, 4))}, tmp_path)


def test_what_is_no_tensor_is_refused_by_name(tmp_path: Path) -> None:
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, ["n", 8]))
    nodes = [node("ConcatFromSequence", ["x"], ["c"], axis=0), node("MatMul", ["c", "w"], ["y"], "fc")]
    made = model(nodes, [helper.make_value_info("x", sequence)], [value("y", FLOAT, None)], stored(w=floats(8, 5)))
    message = refused(made, X, tmp_path)
    assert message == "the input 'x' of model.onnx is a sequence; only tensors can be given as arrays"


def test_inputs_and_outputs_may_have_no_shape(tmp_path: Path) -> None:
    """Items lack the batch axis where the model takes them with one, else they are what a run gets."""
    made = linear()
    made.graph.input[0].CopyFrom(value("x", FLOAT, None))
    made.graph.output[0].CopyFrom(value("y", FLOAT, None))
    right = (X["x"] @ floats(8, 5)).argmax(-1)
    assert searched(made, X | {"labels": right}, tmp_path)["fp32"] == 1
    conv = model(
        [node("Conv", ["x", "k"], ["y"], "conv")],
        [value("x", FLOAT, None)],
        [value("y", FLOAT, None)],
        stored(k=floats(4, 3, 3, 3)),
    )
    images = floats(30, 2, 3, 6, 6)
    assert searched(conv, {"x": images[:, 0]}, tmp_path)["int8"] > 0.99
    assert searched(conv, {"x": images}, tmp_path)["int8"] > 0.99


def test_a_fixed_batch_has_a_label_for_each_of_its_rows(tmp_path: Path) -> None:
    made = linear()
    made.graph.input[0].CopyFrom(value("x", FLOAT, [3, 8]))
    made.graph.output[0].CopyFrom(value("y", FLOAT, [3, 5]))
    x = floats(30, 3, 8)
    right = (x @ floats(8, 5)).argmax(-1)
    assert searched(made, {"x": x, "labels": right}, tmp_path)["fp32"] == 1
    wrong = right.copy()
    wrong[:, 0] = (wrong[:, 0] + 1) % 5
    np.testing.assert_allclose(searched(made, {"x": x, "labels": wrong}, tmp_path)["fp32"], 2 / 3)
    assert "there are labels (1, 2)" in refused(made, {"x": x, "labels": right[:, :2]}, tmp_path)


def optional(ir: int = 8) -> onnx.ModelProto:
    """An input with a default value."""
    return model(
        [node("MatMul", ["x", "w"], ["a"], "fc"), node("Add", ["a", "shift"], ["y"])],
        [value("x", FLOAT, ["n", 8]), value("shift", FLOAT, [5])],
        [value("y", FLOAT, ["n", 5])],
        stored(w=floats(8, 5), shift=np.zeros(5, np.float32)),
        ir=ir,
    )


def test_an_optional_input_takes_the_values_of_the_data(tmp_path: Path) -> None:
    shift = np.tile(np.array([0, 50, 0, 0, 0], np.float32), (30, 1))
    data = X | {"labels": np.ones(30, int)}
    assert searched(optional(), data | {"shift": shift}, tmp_path) == {"fp32": 1, "int8": 1}
    after = session(tmp_path / "int8.onnx")
    assert [each.name for each in after.get_overridable_initializers()] == ["shift"]
    assert after.run(None, {"x": X["x"][:1], "shift": shift[0]})[0].argmax() == 1
    assert searched(optional(), data, tmp_path)["fp32"] < 0.5
    assert session(tmp_path / "int8.onnx").get_overridable_initializers() == []


def test_values_for_the_weight_of_a_layer_are_refused(tmp_path: Path) -> None:
    """Exporters that keep initializers as inputs make every weight one; it is none while nobody gives values."""
    made = linear()
    made.graph.input.append(value("w", FLOAT, [8, 5]))
    assert searched(made, X, tmp_path)["int8"] > 0.99
    assert int8_layers(tmp_path) == 1
    message = refused(made, X | {"w": floats(30, 8, 5)}, tmp_path)
    assert message == "the data has values for 'w', the stored weight of 'fc'; take them out"


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (INT32, np.full((30, 8), 1 << 40), "'x' has values from 1099511627776 to 1099511627776 in the data"),
        (FLOAT, np.full((30, 8), 1e300), "takes float32, which does not hold them"),
        (INT64, np.full((30, 8), 0.5), "'x' is float64 in the data, model.onnx takes int64"),
        (FLOAT, np.full((30, 8), "a"), "'x' is <U1 in the data, model.onnx takes float32"),
        (FLOAT, np.zeros((30, 2, 2, 8)), "an example of 'x' has shape (2, 2, 8), model.onnx takes 2 axes"),
        (FLOAT, np.zeros((30, 7)), "cannot be run on the"),
    ],
)
def test_data_that_does_not_fit_is_refused_by_name(tmp_path: Path, kind: int, values: np.ndarray, message: str) -> None:
    made = model(
        [node("Cast", ["x"], ["f"], to=FLOAT), node("MatMul", ["f", "w"], ["y"], "fc")],
        [value("x", kind, ["n", 8])],
        [value("y", FLOAT, ["n", 5])],
        stored(w=floats(8, 5)),
    )
    values = values.copy()
    if values.dtype.kind != "U" and message.startswith("an example"):
        values[:, 0, 0, 0] = np.arange(30)
    assert message in refused(made, {"x": values, "n": np.arange(30)}, tmp_path)


def test_integers_that_fit_are_taken_as_the_model_wants_them(tmp_path: Path) -> None:
    made = model(
        [node("Gather", ["t", "x"], ["e"], "table"), node("MatMul", ["e", "w"], ["y"], "fc")],
        [value("x", INT32, ["n", 4])],
        [value("y", FLOAT, ["n", 4, 5])],
        stored(t=floats(9, 8), w=floats(8, 5)),
    )
    for dtype in (np.int64, np.uint8):
        assert searched(made, {"x": RNG.integers(0, 9, (60, 4)).astype(dtype)}, tmp_path)["int8"] > 0.98
    assert "indices element out of data bounds" in refused(made, {"x": RNG.integers(8, 12, (60, 4))}, tmp_path)


def test_examples_have_the_same_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "uneven.py").write_text(
        "import numpy as np\n"
        "def data():\n    return [{'x': np.ones(8) * i} | ({'z': 1} if i == 7 else {}) for i in range(30)]\n"
        "def ragged():\n    return {'x': [[1, 2], [3]]}\n"
        "def number():\n    return 7\n"
        "def objects():\n    return {'x': [object()] * 9}\n"
    )
    monkeypatch.chdir(tmp_path)
    from qnas_plugin.data import SplitSizes
    from qnas_plugin.errors import DataError
    from qnas_plugin.tasks.arrays import load

    for name, message in (
        ("data", "example 0 has no 'z', others have"),
        ("ragged", "must give a mapping of arrays"),
        ("number", "must give a mapping of arrays"),
        ("objects", "'x' holds object objects"),
    ):
        with pytest.raises(DataError, match=message):
            load(f"uneven:{name}", sizes=SplitSizes())


def test_latency_is_timed_on_inputs_of_any_kind(tmp_path: Path) -> None:
    """The timing process gets words and optional inputs too."""
    from qnas_plugin.measure.latency import time_models

    made = optional()
    made.graph.input.append(value("s", STRING, ["n"]))
    lab = prepare(made, X | {"shift": floats(30, 5), "s": np.array(["ab"] * 30)}, tmp_path)
    path = tmp_path / "member.onnx"
    lab.write(lab.network.space.corner("largest", Precision.INT8), path)
    inputs = lab.bench.timing_inputs
    assert sorted(inputs) == ["s", "shift", "x"]
    (latency,) = time_models([path], inputs, lab.setting, minimum_runs=1, minimum_seconds=0.01, rounds=1)
    assert latency.median > 0
    assert lab.bench.fingerprint
    assert save(made, tmp_path).is_file()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(30) % 5 + 1, "the label 5 is no class of the output 'y', which has 5, counted from 0"),
        (np.full(30, 0.5), "the labels are no numbers of classes, like 0.5"),
        (np.full(30, np.nan), "the labels are no numbers of classes, like nan"),
        (floats(30, 5), "there are labels"),
    ],
)
def test_labels_that_nothing_can_predict_are_refused(tmp_path: Path, labels: np.ndarray, message: str) -> None:
    """Else the accuracy of every candidate is 0."""
    assert message in refused(linear(), X | {"labels": labels}, tmp_path)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_data_that_is_not_finite_is_refused_by_its_name(tmp_path: Path, odd: float) -> None:
    x = floats(30, 8)
    x[:, 3] = odd
    assert "in its output 'y', as the data has in 'x'; it must be finite" in refused(linear(), {"x": x}, tmp_path)


def test_no_example_is_no_data(tmp_path: Path) -> None:
    assert "there are no examples" in refused(linear(), {"x": floats(0, 8)}, tmp_path)
    assert "there are no examples" in refused(linear(), {"x": np.float32(3)}, tmp_path)
    assert "2 different examples are too few" in refused(linear(), {"x": floats(2, 8)}, tmp_path)
