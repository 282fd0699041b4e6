"""Costs that are computed against files that are written and products that are counted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qnas_plugin.build.graph import Graph
from qnas_plugin.build.slice import subnet
from qnas_plugin.data import Inputs
from qnas_plugin.errors import MaterializeError
from qnas_plugin.measure._widths import CHECKED, Widths
from qnas_plugin.measure.costs import Costs, macs
from qnas_plugin.quantizers.formats import FORMATS, Precisions, format_of
from qnas_plugin.quantizers.without_data import uncalibrated
from qnas_plugin.space import Genes
from qnas_plugin.supernets import Network, Supernet
from qnas_plugin.supernets.onnx_file import onnx_model
from tests.supernets.test_supernet_contract import ELASTIC, INPUTS, module

WITHIN = 0.005
"""What sizes may be off by, relative; the files of the tiny networks have 12 to 350 KB."""

ALL = tuple(name for name in FORMATS if name not in ("int8-kl", "int8-smooth-75"))
"""Without a second one that smooths: where layers that read one tensor differ in it, both are in the file."""


@dataclass(frozen=True)
class Case:
    """A network with the graph that its costs are of."""

    network: Network
    graph: Graph
    costs: Costs

    @classmethod
    def of(cls, network: Network, inputs: Inputs) -> Case:
        graph = network.graph(inputs)
        return cls(network, graph, Costs(network, graph, inputs))

    def file_mb(self, genes: Genes) -> float:
        """What a candidate's file really has."""
        candidate = self.network.space.decode(genes)
        policy = self.network.space.policy(candidate)
        groups = {group: names for group, names in self.graph.groups.items() if group in policy}
        model = subnet(self.graph, self.network.cut(candidate))
        return sum(len(part) for part in uncalibrated(model, groups).outline(policy).parts()) / 1e6

    def off(self, count: int) -> np.ndarray:
        """How far computed sizes are off, relative, of the corners and of random candidates."""
        space = self.network.space
        corners = np.array([space.encode(corner) for corner in space.corners.values()])
        genes = np.concatenate([corners, space.sample(count, np.random.default_rng(0))])
        return np.asarray(self.costs.size_mb(genes) / [self.file_mb(row) for row in genes] - 1)


@pytest.fixture(scope="module", params=[*INPUTS])
def case(request: pytest.FixtureRequest) -> Case:
    checkpoint: Path = request.getfixturevalue(f"{request.param}_checkpoint")
    network: Supernet = module(request.param).load(str(checkpoint), elastic=ELASTIC[request.param])
    return Case.of(network, {name: array[:1] for name, array in INPUTS[request.param].items()})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A convolution in two groups, and three products of which two read one tensor."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "conv", "bias"], ["a"], "conv", pads=[1] * 4, group=2),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Flatten", ["b"], ["c"], "flatten"),
        helper.make_node("MatMul", ["c", "first"], ["d"], "first"),
        helper.make_node("MatMul", ["c", "second"], ["e"], "second"),
        helper.make_node("Add", ["d", "e"], ["f"], "add"),
        helper.make_node("Gemm", ["f", "last"], ["y"], "last", transB=1),
    ]
    shapes = {"conv": (4, 2, 3, 3), "bias": (4,), "first": (64, 8), "second": (64, 8), "last": (5, 8)}
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 5])],
        [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), name) for name, s in shapes.items()],
    )
    path = tmp_path / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def test_size_is_that_of_the_file(case: Case) -> None:
    assert np.abs(case.off(100)).max() < WITHIN


@pytest.mark.parametrize("family", ["bert", "resnet50"])
def test_size_is_that_of_the_file_in_all_formats(family: str, request: pytest.FixtureRequest) -> None:
    checkpoint = str(request.getfixturevalue(f"{family}_checkpoint"))
    network: Supernet = module(family).load(checkpoint, elastic=ELASTIC[family], precisions=Precisions(ALL))
    off = Case.of(network, {name: array[:1] for name, array in INPUTS[family].items()}).off(40)
    assert np.abs(off).max() < WITHIN


def test_size_is_that_of_the_file_of_an_onnx_model(model: Path) -> None:
    """A file of 6 KB, of which most is names: a hundred bytes are two percent."""
    network = onnx_model.load(str(model), precisions=Precisions(("int8", "fp32"), most=9))
    case = Case.of(network, {"x": np.zeros((1, 4, 4, 4), np.float32)})
    space = network.space
    genes = np.stack(np.meshgrid(*(range(size) for size in space.sizes), indexing="ij"), -1).reshape(-1, len(space))
    off = 1e6 * (case.costs.size_mb(genes) - [case.file_mb(row) for row in genes])
    assert np.abs(off).max() < 150


def test_macs_and_bit_operations_are_those_of_the_graph(case: Case) -> None:
    network, costs = case.network, case.costs
    genes = network.space.sample(10, np.random.default_rng(1))
    groups = {name: group for group, names in case.graph.groups.items() for name in names}
    for row, got, bits in zip(genes, costs.gmacs(genes), costs.gbitops(genes), strict=True):
        candidate = network.space.decode(row)
        policy = network.space.policy(candidate)
        counted = macs(subnet(case.graph, network.cut(candidate)), costs.inputs)
        assert got == pytest.approx(sum(own for _, own in counted.values()) / 1e9)
        expected = 0.0
        for name, (_, own) in counted.items():
            format = format_of(policy[groups[name]]) if name in groups else format_of("fp32")
            expected += own * format.weight_bits * format.activation_bits
        assert bits == pytest.approx(expected / 1e9)


def test_macs_of_a_known_model(model: Path) -> None:
    """Of one run of two examples; a grouped convolution reads two of four channels."""
    network = onnx_model.load(str(model), precisions=Precisions(("int8", "fp32")))
    costs = Case.of(network, {"x": np.zeros((2, 4, 4, 4), np.float32)}).costs
    conv, product, last = 2 * 4 * 16 * 2 * 9, 2 * 64 * 8, 2 * 8 * 5
    total = conv + 2 * product + last
    int8, fp32 = (network.space.encode(network.space.corners[f"largest-{name}"])[None] for name in ("int8", "fp32"))
    assert costs.gmacs(int8)[0] * 1e9 == pytest.approx(total)
    assert costs.gbitops(fp32)[0] * 1e9 == pytest.approx(1024 * total)
    assert costs.gbitops(int8)[0] * 1e9 == pytest.approx(64 * total)
    mixed = network.space.with_policy(network.space.corners["largest-int8"], {"conv": "fp32"})
    mixed_bits = costs.gbitops(network.space.encode(mixed)[None])[0]
    assert mixed_bits * 1e9 == pytest.approx(1024 * conv + 64 * (total - conv))


def test_widths_refuse_what_single_changes_do_not_show(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    cut, space = case.network.cut, case.network.space
    known = space.decode(space.sample(CHECKED, np.random.default_rng(0))[0])

    def odd(candidate):  # type: ignore[no-untyped-def]
        found = cut(candidate)
        if candidate == known:
            path = next(iter(found.widths))
            return type(found)(found.skipped, {**found.widths, path: (1, 1)}, found.kernels)
        return found

    monkeypatch.setattr(case.network, "cut", odd)
    with pytest.raises(MaterializeError, match="by its variables alone"):
        Widths(case.network, case.graph)
