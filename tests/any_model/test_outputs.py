"""Outputs of any kind: how they are compared, and what cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.any_model import (
    BOOL,
    FLOAT,
    INT64,
    STRING,
    floats,
    int8_layers,
    linear,
    model,
    node,
    refused,
    searched,
    stored,
    value,
)

X = {"x": floats(30, 8)}
LABELS = np.random.default_rng(0).integers(0, 3, 30)


def classifier(nodes: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto], **more: object) -> onnx.ModelProto:
    """A layer ``fc`` from ``x`` to ``h``, three classes, and what follows."""
    return model(
        [node("MatMul", ["x", "w"], ["h"], "fc"), *nodes],
        [value("x", FLOAT, ["n", 8])],
        outputs,
        [*stored(w=floats(8, 3)), *more.pop("initializers", [])],
        domains=[("ai.onnx.ml", 2)],
        **more,
    )


def named(classes: str = "values_strings") -> list[onnx.NodeProto]:
    """The class as a name, as scikit-learn's converter writes it."""
    return [
        node("ArgMax", ["h"], ["i"], axis=-1, keepdims=0),
        node(
            *("LabelEncoder", ["i"], ["label"]),
            domain="ai.onnx.ml",
            keys_int64s=[0, 1, 2],
            values_strings=["a", "b", "c"],
        ),
    ]


def test_time_before_the_batch_is_scored_example_by_example(tmp_path: Path) -> None:
    """All axes are free, so nothing but the values tells that the first one is no batch."""
    made = model(
        [node("MatMul", ["x", "w"], ["h"], "fc"), node("Transpose", ["h"], ["y"], perm=[1, 0, 2])],
        [value("x", FLOAT, ["n", "t", 8])],
        [value("y", FLOAT, ["t", "n", 5])],
        stored(w=floats(8, 5)),
    )
    for length in (7, 2):  # with two examples of length 2 even the shapes agree
        scores = searched(made, {"x": floats(30, length, 8)}, tmp_path)
        assert scores["fp32"] == 1 > scores["int8"] > 0.9
    labels = np.random.default_rng(0).integers(0, 5, (30, 7))
    assert 0 < searched(made, {"x": floats(30, 7, 8), "labels": labels}, tmp_path)["fp32"] < 1


def test_what_a_model_computes_across_examples_is_left_to_single_ones(tmp_path: Path) -> None:
    made = classifier([node("Softmax", ["h"], ["y"], axis=0)], [value("y", FLOAT, ["n", 3])])
    assert searched(made, {"x": floats(30, 1, 8)}, tmp_path)["fp32"] == 1


def test_shapes_that_depend_on_the_data_are_compared_where_they_agree(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["h"], "fc"),
        node("Greater", ["h", "zero"], ["g"]),
        node("NonZero", ["g"], ["i"]),
        node("Transpose", ["i"], ["t"], perm=[1, 0]),
        node("GatherND", ["h", "t"], ["y"]),
    ]
    initializers = stored(w=floats(8, 5), zero=np.float32(0))
    made = model(nodes, [value("x", FLOAT, [4, 8])], [value("y", FLOAT, ["k"])], initializers)
    scores = searched(made, {"x": floats(60, 4, 8)}, tmp_path)
    assert scores["fp32"] == 1
    assert 0 < scores["int8"] < 1


def test_integers_alone_need_agreement_or_labels(tmp_path: Path) -> None:
    made = classifier([node("ArgMax", ["h"], ["y"], axis=-1, keepdims=0)], [value("y", INT64, ["n"])])
    assert "no output of the model is an array of floats, only y; give labels, --metric agreement" in refused(
        made, X, tmp_path
    )
    assert searched(made, X, tmp_path, "agreement")["fp32"] == 1
    right = (X["x"] @ floats(8, 3)).argmax(-1)
    assert searched(made, X | {"labels": right}, tmp_path)["fp32"] == 1
    assert searched(made, X | {"labels": right[:, None]}, tmp_path)["fp32"] == 1  # a column of labels


def test_sequences_and_maps_stay_outputs(tmp_path: Path) -> None:
    """Scikit-learn's classifiers give probabilities as a list of dictionaries."""
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None))
    made = classifier(
        [node("SplitToSequence", ["h"], ["s"], axis=0)],
        [value("h", FLOAT, ["n", 3]), helper.make_value_info("s", sequence)],
    )
    assert searched(made, X, tmp_path)["fp32"] == 1
    maps = helper.make_sequence_type_proto(helper.make_map_type_proto(INT64, helper.make_tensor_type_proto(FLOAT, [])))
    zipped = classifier(
        [
            node("ArgMax", ["h"], ["label"], axis=-1, keepdims=0),
            node("ZipMap", ["h"], ["p"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
        ],
        [value("label", INT64, ["n"]), helper.make_value_info("p", maps)],
    )
    right = (X["x"] @ floats(8, 3)).argmax(-1)
    assert searched(zipped, X | {"labels": right}, tmp_path)["fp32"] == 1
    assert "no output of the model is an array of floats, only label, p" in refused(zipped, X, tmp_path)


def test_names_are_predictions_where_labels_are_names(tmp_path: Path) -> None:
    made = classifier(named(), [value("h", FLOAT, ["n", 3]), value("label", STRING, ["n"])])
    assert searched(made, X, tmp_path)["fp32"] == 1
    names = np.array(list("abc"))[(X["x"] @ floats(8, 3)).argmax(-1)]
    assert searched(made, X | {"labels": names}, tmp_path)["fp32"] == 1
    message = refused(linear(), X | {"labels": np.array(list("abc"))[LABELS]}, tmp_path)
    assert message.startswith("the labels are names, like '")
    assert "give the numbers of classes" in message


def test_a_weight_a_constant_or_an_input_may_be_an_output(tmp_path: Path) -> None:
    made = linear()
    made.graph.output.extend([value("w", FLOAT, [8, 5]), value("x", FLOAT, ["n", 8])])
    made.graph.node.append(node("Constant", [], ["c"], value=stored(c=floats(3))[0]))
    made.graph.output.append(value("c", FLOAT, [3]))
    scores = searched(made, X, tmp_path)
    assert scores["fp32"] == 1
    assert int8_layers(tmp_path) == 1


def test_an_output_of_an_int8_convolution_may_be_read_too(tmp_path: Path) -> None:
    made = model(
        [node("Conv", ["x", "k"], ["c"], "conv"), node("Relu", ["c"], ["y"])],
        [value("x", FLOAT, ["n", 3, 6, 6])],
        [value("c", FLOAT, None), value("y", FLOAT, None)],
        stored(k=floats(4, 3, 3, 3)),
    )
    assert searched(made, {"x": floats(30, 3, 6, 6)}, tmp_path)["int8"] > 0.8


def test_bools_are_outputs_beside_floats(tmp_path: Path) -> None:
    made = classifier(
        [node("Greater", ["h", "zero"], ["g"])],
        [value("g", BOOL, ["n", 3]), value("h", FLOAT, ["n", 3])],
        initializers=stored(zero=np.float32(0)),
    )
    assert searched(made, X, tmp_path)["fp32"] == 1


@pytest.mark.parametrize("metric", ["cosine", "agreement"])
def test_infinite_logits_of_masked_classes_are_compared(tmp_path: Path, metric: str) -> None:
    from qnas_plugin.measure.metrics import Scorer
    from qnas_plugin.measure.metrics.references import References

    outputs = np.array([[1.0, 2.0, -np.inf], [2.0, 1.0, -np.inf]])
    scorer = Scorer(metric, References(lambda: [(np.arange(2), {"y": outputs})]))
    np.testing.assert_allclose(scorer.statistics({"y": outputs}, np.arange(2)), [[1], [1]])
    assert scorer.statistics({"y": outputs[:, ::-1]}, np.arange(2)).min() < 1
