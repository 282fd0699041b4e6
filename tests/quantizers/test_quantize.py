"""Neural Compressor's own ``fit`` is the reference: graphs are compared with what it gives under the same settings."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

from qnas_plugin.build.shared_model import Outline
from qnas_plugin.data import Batch
from qnas_plugin.errors import QuantizationError
from qnas_plugin.quantizers.quantize import Calibrated, Groups, calibrate, verify
from qnas_plugin.space import Precision
from tests.sessions import session

pytestmark = pytest.mark.filterwarnings("ignore:::neural_compressor", "ignore::torch.jit.TracerWarning")

INT8, FP32 = Precision.INT8, Precision.FP32


class Bert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=60,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=24,
        )
        config._attn_implementation = "eager"
        self.model = BertForSequenceClassification(config)

    def forward(self, input_ids, attention_mask, token_type_ids):
        return self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).logits


class Vit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=16,
            patch_size=8,
            num_labels=3,
        )
        config._attn_implementation = "eager"
        self.model = ViTForImageClassification(config)

    def forward(self, pixel_values):
        return self.model(pixel_values).logits


class Convolutional(nn.Module):
    """A residual block, a depthwise convolution, and a Gemm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.depthwise, self.head = nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Linear(8, 5)

    def forward(self, pixel_values):
        x = torch.relu(self.stem(pixel_values))
        x = torch.relu(x + self.b(torch.relu(self.a(x))))
        return self.head(self.depthwise(x).mean((2, 3)))


@dataclass(frozen=True)
class Case:
    """A tiny model with one group for each quantizable node, but for one of all tables."""

    name: str
    model: onnx.ModelProto
    groups: Groups
    batches: list[Batch]

    def policy(self, int8: str) -> dict[str, Precision]:
        """INT8 for the groups that match a pattern."""
        return {group: INT8 if re.search(int8, group) else FP32 for group in self.groups}


def weighted_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    stored = {initializer.name for initializer in model.graph.initializer}
    position = {"MatMul": 1, "Gemm": 1, "Conv": 1, "Gather": 0}
    for node in model.graph.node:
        if node.op_type in position and node.input[position[node.op_type]] in stored:
            yield node


def make_case(name: str, folder: Path) -> Case:
    torch.manual_seed(0)
    module = {"bert": Bert, "vit": Vit, "conv": Convolutional}[name]().eval()
    for parameter in module.parameters():  # equal ones would be shared by the exporter
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.2)
    rng = np.random.default_rng(0)
    if name == "bert":
        names = ["input_ids", "attention_mask", "token_type_ids"]
        batches = [
            Batch(
                {
                    "input_ids": rng.integers(0, 40, (2, length)),
                    "attention_mask": np.ones((2, length), dtype=np.int64),
                    "token_type_ids": rng.integers(0, 2, (2, length)),
                },
                np.arange(2),
            )
            for length in (5, 9, 12)
        ]
        axes = {0: "batch", 1: "sequence"}
    else:
        names = ["pixel_values"]
        batches = [
            Batch({"pixel_values": rng.standard_normal((2, 3, 16, 16)).astype(np.float32)}, np.arange(2))
            for _ in range(3)
        ]
        axes = {0: "batch"}
    path = folder / f"{name}.onnx"
    torch.onnx.export(
        module,
        tuple(torch.from_numpy(batches[0].inputs[key]) for key in names),
        str(path),
        input_names=names,
        output_names=["logits"],
        dynamic_axes=dict.fromkeys(names, axes) | {"logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
    options = ort.SessionOptions()  # fit starts with this rewrite
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    model = onnx.load(path)
    nodes = list(weighted_nodes(model))
    groups = {node.name: (node.name,) for node in nodes if node.op_type != "Gather"}
    tables = tuple(node.name for node in nodes if node.op_type == "Gather")
    return Case(name, model, groups | ({"tables": tables} if tables else {}), batches)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Case]:
    return {name: make_case(name, tmp_path_factory.mktemp("models")) for name in ("bert", "vit", "conv")}


@pytest.fixture(scope="module")
def calibrated(cases: Mapping[str, Case]) -> Mapping[str, Calibrated]:
    return {name: calibrate(case.model, case.groups, case.batches) for name, case in cases.items()}


class Loader:
    """Calibration batches as ``fit`` wants them."""

    batch_size = 2

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __iter__(self):
        return ((dict(batch.inputs), None) for batch in self.batches)


def fit(case: Case, policy: Mapping[str, Precision], workspace: Path, algorithm: str = "minmax") -> onnx.ModelProto:
    from neural_compressor import PostTrainingQuantConfig, quantization
    from neural_compressor.config import options

    options.workspace = str(workspace)
    int8 = {name for group, names in case.groups.items() for name in names if policy[group] == INT8}
    off = {"weight": {"dtype": ["fp32"]}, "activation": {"dtype": ["fp32"]}}
    clipped = {re.escape(name): {"activation": {"algorithm": [algorithm]}} for name in int8}
    config = PostTrainingQuantConfig(
        quant_format="QDQ",
        quant_level=1,
        reduce_range=False,
        domain="auto",
        calibration_sampling_size=2 * len(case.batches),
        op_name_dict={re.escape(node.name): off for node in case.model.graph.node if node.name not in int8} | clipped,
        recipes={
            "graph_optimization_level": "DISABLE_ALL",
            "gemm_to_matmul": False,
            "optypes_to_exclude_output_quant": ["MatMul", "Gemm"],
        },
    )
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    return quantization.fit(model, config, calib_dataloader=Loader(case.batches)).model


def run(
    model: onnx.ModelProto, batch: Batch, outputs: list[str] | None = None, *, optimize: bool = True
) -> list[np.ndarray]:
    return session(model, optimize=optimize).run(outputs, dict(batch.inputs))


def with_observed_tables(calibrated: Calibrated, batches: list[Batch]) -> Calibrated:
    """The ranges that ``fit`` takes: what came out of a table, in place of what is in it."""
    ranges = dict(calibrated.ranges)
    probe = Outline.of(calibrated.model).whole()
    names = [node.output[0] for node in weighted_nodes(probe) if node.op_type == "Gather"]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    for i, name in enumerate(names):
        values = [run(probe, batch, names)[i] for batch in batches]
        ranges[name] = float(min(v.min() for v in values)), float(max(v.max() for v in values))
    return Calibrated(calibrated.model, calibrated.groups, ranges)


@pytest.mark.parametrize(
    ("name", "int8"),
    [
        ("bert", ""),
        ("bert", "query|intermediate|tables"),
        ("bert", "layer.1|classifier"),
        ("vit", ""),
        ("vit", "projection|key|output"),
        ("conv", ""),
        ("conv", "/b/|depthwise"),
        ("conv", "stem|/a/|head"),
    ],
)
def test_emit_equals_fit_but_for_the_inputs_of_fp32_nodes(cases, calibrated, tmp_path, name, int8):
    case = cases[name]
    policy = case.policy(int8)
    ours = with_observed_tables(calibrated[name], case.batches).emit(policy).graph
    reference = fit(case, policy, tmp_path).graph

    def stored(graph):
        return {
            initializer.name: initializer.SerializeToString(deterministic=True) for initializer in graph.initializer
        }

    assert stored(ours) == stored(reference)
    assert len(ours.initializer) == len(reference.initializer)
    assert [value.SerializeToString() for value in (*ours.input, *ours.output)] == [
        value.SerializeToString() for value in (*reference.input, *reference.output)
    ]
    assert len(ours.node) == len(reference.node)
    expected = {node.name: node for node in reference.node}
    restored = 0
    for node in ours.node:
        other = expected[node.name]
        for i, (got, theirs) in enumerate(zip(node.input, other.input, strict=True)):
            if got != theirs:
                assert not node.name.endswith("_quant")
                assert theirs.startswith(got)
                assert theirs.endswith("_dequantized")
                other.input[i] = got
                restored += 1
        assert node.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
    if int8 == "":
        assert restored == {"bert": 4, "vit": 0, "conv": 0}[name]
        if not restored:
            assert [node.name for node in ours.node] == [node.name for node in reference.node]


@pytest.mark.parametrize("name", ["vit", "conv"])
@pytest.mark.parametrize("format", ["int8-percentile", "int8-kl"])
def test_emit_has_the_scales_of_fit_by_other_calibrations(cases, calibrated, tmp_path, name, format):
    case = cases[name]
    algorithm = format.removeprefix("int8-")
    ours = calibrate(case.model, case.groups, case.batches, algorithms=[algorithm])
    emitted = ours.emit(dict.fromkeys(case.groups, format))
    reference = fit(case, dict.fromkeys(case.groups, INT8), tmp_path, algorithm)

    def scales(model):
        return {i.name: numpy_helper.to_array(i).tolist() for i in model.graph.initializer if i.name.endswith("_scale")}

    expected = scales(reference)
    assert scales(emitted).keys() == expected.keys()
    for tensor, scale in scales(emitted).items():  # fit bins all batches together
        np.testing.assert_allclose(scale, expected[tensor], rtol=0.1, err_msg=tensor)
    clipped = [tensor for tensor in ours.ranges if ours.clipped[algorithm][tensor] != ours.ranges[tensor]]
    # The 128 bins of its entropies clip only what later batches add to the first (Neural Compressor 3.7.1).
    assert clipped or algorithm == "kl"
    assert (scales(emitted) != scales(calibrated[name].emit(case.policy("")))) == bool(clipped)


def test_a_tensor_has_the_range_that_its_readers_ask_for():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
        helper.make_node("MatMul", ["h", "v"], ["a"], "second"),
        helper.make_node("MatMul", ["h", "u"], ["b"], "third"),
        helper.make_node("Add", ["a", "b"], ["y"], "sum"),
    ]
    model = linear({"w": SQUARE, "v": SQUARE + 1, "u": SQUARE - 1}, nodes)
    data = [Batch({"x": RNG.standard_normal((500, 8)).astype(np.float32) ** 9}, np.arange(500))]
    groups = {node.name: (node.name,) for node in nodes[:3]}
    calibrated = calibrate(model, groups, data, algorithms=["percentile"])
    clipped = calibrated.clipped["percentile"]
    assert all(clipped[name][1] < calibrated.ranges[name][1] for name in ("x", "h"))

    def scale(name, *formats):
        emitted = calibrated.emit(dict(zip(groups, formats, strict=True)))
        return next(float(numpy_helper.to_array(i)) for i in emitted.graph.initializer if i.name == f"{name}_scale")

    wide, narrow = (scale("h", FP32, INT8, format) for format in (INT8, "int8-percentile"))
    low, high = clipped["h"]
    assert narrow < wide
    assert narrow == pytest.approx((high - low) / 255)
    assert scale("h", FP32, "int8-percentile", INT8) == narrow
    assert scale("h", "int8-percentile", INT8, FP32) == wide
    assert scale("x", "int8-percentile", INT8, FP32) < scale("x", INT8, INT8, FP32)
    with pytest.raises(QuantizationError, match="no ranges by 'kl'"):
        calibrated.emit({"first": "int8-kl", "second": FP32, "third": FP32})


@pytest.mark.parametrize("name", ["bert", "vit", "conv"])
def test_emit_gives_nearly_the_same_outputs_and_runs_in_onnxruntime(cases, calibrated, name):
    case = cases[name]
    model = calibrated[name].emit(case.policy(""))
    onnx.checker.check_model(model, full_check=True)
    for batch in case.batches:
        expected, got = run(case.model, batch)[0], run(model, batch)[0]
        assert np.linalg.norm(got - expected) < 0.1 * np.linalg.norm(expected)
        assert not np.array_equal(got, expected)


def test_emit_stores_a_quarter_of_the_bytes_when_all_is_int8(cases, calibrated):
    def weights(model):
        return sum(len(i.raw_data) for i in model.graph.initializer if len(i.dims) > 1)

    for name, case in cases.items():
        assert weights(calibrated[name].emit(case.policy(""))) < 0.27 * weights(case.model)


@pytest.mark.parametrize("name", ["bert", "vit", "conv"])
def test_emit_equals_the_model_when_all_is_fp32(cases, calibrated, name):
    before = cases[name].model.SerializeToString(deterministic=True)
    emitted = calibrated[name].emit(cases[name].policy("^$"))
    assert emitted.SerializeToString(deterministic=True) == before
    assert emitted is not cases[name].model


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_emit_lands_every_policy_and_leaves_the_model_alone(cases, calibrated, data):
    name = data.draw(st.sampled_from(["bert", "vit", "conv"]))
    case = cases[name]
    before = case.model.SerializeToString(deterministic=True)
    policy = {group: data.draw(st.sampled_from([INT8, FP32])) for group in case.groups}
    model = calibrated[name].emit(policy)
    onnx.checker.check_model(model, full_check=True)
    verify(model, case.groups, policy)
    for group in case.groups:
        other = policy | {group: FP32 if policy[group] == INT8 else INT8}
        with pytest.raises(QuantizationError, match=re.escape(group)):
            verify(model, case.groups, other)
    assert case.model.SerializeToString(deterministic=True) == before


def test_emit_gives_the_same_bytes_in_another_process_and_leaves_no_trace(cases, calibrated, tmp_path):
    case = cases["bert"]
    policy = case.policy("query|output|tables")
    expected = calibrated["bert"].emit(policy).SerializeToString(deterministic=True)
    onnx.save(case.model, tmp_path / "m.onnx")
    (tmp_path / "m.json").write_text(json.dumps([case.groups, calibrated["bert"].ranges, policy]))
    for i, batch in enumerate(case.batches):
        np.savez(tmp_path / f"{i}.npz", **batch.inputs)
    files = sorted(path.name for path in tmp_path.iterdir())
    script = """
import hashlib, json, logging, warnings, numpy, onnx
def state():
    return logging.root.handlers[:], logging.root.level, logging.root.manager.disable, warnings.filters[:]
before = state()
from qnas_plugin.quantizers.quantize import Calibrated, calibrate
from qnas_plugin.data import Batch
model, (groups, ranges, policy) = onnx.load("m.onnx"), json.load(open("m.json"))
found = calibrate(model, groups, [Batch(dict(numpy.load(f"{i}.npz")), None) for i in range(3)]).ranges
assert {name: list(range_) for name, range_ in found.items()} == ranges
emitted = Calibrated(model, groups, ranges).emit(policy).SerializeToString(deterministic=True)
assert before == state()
print(hashlib.sha256(emitted).hexdigest())
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stderr, done.stdout) == ("", hashlib.sha256(expected).hexdigest() + "\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == files


@pytest.mark.parametrize("name", ["bert", "vit", "conv"])
def test_calibrate_finds_the_same_ranges_with_any_number_of_threads(cases, calibrated, name):
    case = cases[name]
    assert calibrate(case.model, case.groups, case.batches, threads=2).ranges == calibrated[name].ranges


def test_calibrate_keeps_the_range_of_the_whole_table(cases, calibrated):
    stored = {i.name: numpy_helper.to_array(i) for i in cases["bert"].model.graph.initializer}
    for node in weighted_nodes(cases["bert"].model):
        if node.op_type == "Gather":
            table = stored[node.input[0]]
            assert calibrated["bert"].ranges[node.output[0]] == (float(table.min()), float(table.max()))


def linear(weights: Mapping[str, np.ndarray], nodes: list[onnx.NodeProto], opset: int = 17) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


RNG = np.random.default_rng(0)
SQUARE = RNG.standard_normal((8, 8)).astype(np.float32)
BIAS = RNG.standard_normal(8).astype(np.float32)
DATA = [Batch({"x": RNG.standard_normal((4, 8)).astype(np.float32)}, np.arange(4))]
TWO = [
    helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
    helper.make_node("MatMul", ["h", "w"], ["y"], "second"),
]


@pytest.mark.parametrize("transposed", [0, 1])
def test_emit_has_one_scale_for_each_output_of_a_gemm(transposed):
    weight = SQUARE * np.geomspace(1, 100, 8, dtype=np.float32)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], "gemm", transB=transposed)
    model = linear({"w": weight.T.copy() if transposed else weight, "b": BIAS}, [node])
    emitted = calibrate(model, {"g": ("gemm",)}, DATA).emit({"g": INT8})
    scales = next(numpy_helper.to_array(i) for i in emitted.graph.initializer if i.name == "w_scale")
    np.testing.assert_allclose(scales, np.abs(weight).max(axis=0) / 127, rtol=1e-6)
    expected = run(model, DATA[0])[0]
    for optimize in (True, False):  # unfused, every node must be valid on its own
        assert np.linalg.norm(run(emitted, DATA[0], optimize=optimize)[0] - expected) < 0.02 * np.linalg.norm(expected)


def test_verify_refuses_an_fp32_node_that_reads_a_rounded_tensor(cases, tmp_path):
    case = cases["bert"]
    policy = case.policy("layer.0.*key")
    query = next(group for group in case.groups if "layer.0" in group and "query" in group)
    with pytest.raises(QuantizationError, match=re.escape(query)):
        verify(fit(case, policy, tmp_path), case.groups, policy)


def test_emit_lands_an_int8_table_before_an_fp32_matmul():
    nodes = [helper.make_node("Gather", ["v", "i"], ["h"], "table"), helper.make_node("MatMul", ["h", "w"], ["y"], "m")]
    model = linear({"w": SQUARE, "v": SQUARE}, nodes)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("i", TensorProto.INT64, ["batch"]))
    batch = Batch({"i": np.arange(8)}, np.arange(8))
    emitted = calibrate(model, {"a": ("table",), "b": ("m",)}, [batch]).emit({"a": INT8, "b": FP32})
    np.testing.assert_allclose(run(emitted, batch)[0], run(model, batch)[0], atol=0.1)


@pytest.mark.parametrize("first", [INT8, FP32])
@pytest.mark.parametrize("second", [INT8, FP32])
def test_emit_handles_a_weight_that_two_groups_share(first, second):
    model = linear({"w": SQUARE}, TWO)
    emitted = calibrate(model, {"a": ("first",), "b": ("second",)}, DATA).emit({"a": first, "b": second})
    expected = run(model, DATA[0])[0]
    assert np.linalg.norm(run(emitted, DATA[0])[0] - expected) < 0.03 * np.linalg.norm(expected)


@pytest.mark.parametrize("through_identity", [False, True])
def test_emit_handles_a_bias_that_two_nodes_share(through_identity):
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], "first"),
        helper.make_node("Gemm", ["h", "v", "c" if through_identity else "b"], ["y"], "second"),
    ]
    if through_identity:
        nodes.insert(0, helper.make_node("Identity", ["b"], ["c"], "alias"))
    model = linear({"w": SQUARE, "v": SQUARE.T.copy(), "b": BIAS}, nodes)
    calibrated = calibrate(model, {"a": ("first",), "b": ("second",)}, DATA)
    expected = run(model, DATA[0])[0]
    for policy in ({"a": INT8, "b": INT8}, {"a": FP32, "b": INT8}, {"a": INT8, "b": FP32}):
        emitted = calibrated.emit(policy)
        onnx.checker.check_model(emitted, full_check=True)
        assert np.linalg.norm(run(emitted, DATA[0])[0] - expected) < 0.03 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"a": INT8}, "no precision for 'b'"),
        ({"a": INT8, "b": INT8, "c": FP32}, "unknown group 'c'"),
    ],
)
def test_emit_refuses_a_policy_of_other_groups(policy, message):
    calibrated = calibrate(linear({"w": SQUARE}, TWO), {"a": ("first",), "b": ("second",)}, DATA)
    with pytest.raises(QuantizationError, match=message):
        calibrated.emit(policy)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"a": ("third",)}, "'third' .* 0 times"),
        ({"a": ("first",), "b": ("first",)}, "two precision groups"),
        ({"a": ("sum",)}, "is a Add"),
        ({"a": ("product",)}, "no stored FP32 weight"),
        ({"a": ("scaled",)}, "scales its bias"),
        ({"a": ("matrix",)}, "no stored FP32 bias vector"),
    ],
)
def test_calibrate_refuses_groups_that_do_not_fit_the_model(groups, message):
    nodes = [
        *TWO,
        helper.make_node("MatMul", ["x", "y"], ["z"], "product"),
        helper.make_node("Add", ["x", "x"], ["s"], "sum"),
        helper.make_node("Gemm", ["x", "w", "b"], ["t"], "scaled", beta=0.5),
        helper.make_node("Gemm", ["x", "w", "x"], ["u"], "matrix"),
    ]
    with pytest.raises(QuantizationError, match=message):
        calibrate(linear({"w": SQUARE, "b": BIAS}, nodes), groups, DATA)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_calibrate_refuses_values_that_are_not_finite(value, at):
    batches = [Batch({"x": DATA[0].inputs["x"].copy()}, np.arange(4)) for _ in range(3)]
    batches[at].inputs["x"][2, 3] = value
    with pytest.raises(QuantizationError, match="must be finite"):
        calibrate(linear({"w": SQUARE}, TWO), {"a": ("first", "second")}, batches)


def test_calibrate_refuses_data_or_a_model_that_does_not_fit():
    model, groups = linear({"w": SQUARE}, TWO), {"a": ("first",)}
    with pytest.raises(QuantizationError, match="no calibration batches"):
        calibrate(model, groups, [])
    with pytest.raises(QuantizationError, match="has no 'x'; the model needs x"):
        calibrate(model, groups, [Batch({"z": BIAS}, np.arange(1))])
    model.graph.input.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, [1]))
    with pytest.raises(QuantizationError, match="has no 'unused'; the model needs x, unused"):
        calibrate(model, groups, DATA)
    with pytest.raises(QuantizationError, match="opset 11"):
        calibrate(linear({"w": SQUARE}, TWO, opset=11), groups, DATA)


def test_calibrated_refuses_ranges_of_another_model():
    calibrated = Calibrated(linear({"w": SQUARE}, TWO), {"a": ("first",)}, {"h": (0.0, 1.0)})
    with pytest.raises(QuantizationError, match="'x' has no range"):
        calibrated.emit({"a": INT8})


def test_emit_keeps_the_bias_of_a_channel_without_weights() -> None:
    """Its scale would be next to nothing, and the bias in units of it no INT32."""
    kernel = np.random.default_rng(0).normal(size=(3, 2, 1, 1)).astype(np.float32)
    kernel[1] = 1e-30
    bias = np.array([0.5, 0.75, -1.0], dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "k", "b"], ["y"], "conv")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(kernel, "k"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = np.random.default_rng(1).normal(size=(1, 2, 4, 4)).astype(np.float32)
    groups = {"conv": ("conv",)}
    emitted = calibrate(model, groups, [Batch({"x": x}, np.arange(1))]).emit({"conv": INT8})
    (y,) = session(emitted).run(None, {"x": x})
    np.testing.assert_allclose(y[:, 1], 0.75, atol=0.05)
