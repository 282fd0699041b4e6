"""Costs against files that are written and products that are counted; those of each family are in its contract."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qnas_plugin import registry
from qnas_plugin.errors import MaterializeError
from qnas_plugin.measure._widths import CHECKED, Widths
from qnas_plugin.quantizers.formats import FORMATS, Precisions
from qnas_plugin.supernets import Tiny
from qnas_plugin.supernets.onnx_file import onnx_model
from qnas_plugin.testing._costs import WITHIN, CostsOfFiles

ALL = tuple(name for name in FORMATS if name not in ("int8-kl", "int8-smooth-75"))
"""Without a second one that smooths: where layers that read one tensor differ in it, both are in the file."""


@pytest.fixture(scope="module", params=registry.names("supernets"))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CostsOfFiles:
    return opened(request.param, tmp_path_factory.mktemp(request.param))


def opened(family: str, folder: Path, precisions: Precisions | None = None) -> CostsOfFiles:
    tiny: Tiny = registry.load("supernets", family).tiny(folder)
    network = registry.load("supernets", family).load(str(folder), elastic=tiny.elastic, precisions=precisions)
    return CostsOfFiles.of(network, {name: array[:1] for name, array in tiny.inputs.items()})


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


@pytest.mark.parametrize("family", ["bert", "resnet50"])
def test_size_is_that_of_the_file_in_all_formats(family: str, tmp_path: Path) -> None:
    assert np.abs(opened(family, tmp_path, Precisions(ALL)).off(40)).max() < WITHIN


def test_size_is_that_of_the_file_of_an_onnx_model(model: Path) -> None:
    """A file of 6 KB, of which most is names: a hundred bytes are two percent."""
    network = onnx_model.load(str(model), precisions=Precisions(("int8", "fp32"), most=9))
    case = CostsOfFiles.of(network, {"x": np.zeros((1, 4, 4, 4), np.float32)})
    space = network.space
    genes = np.stack(np.meshgrid(*(range(size) for size in space.sizes), indexing="ij"), -1).reshape(-1, len(space))
    off = 1e6 * (case.costs.size_mb(genes) - [case.file_mb(row) for row in genes])
    assert np.abs(off).max() < 150


def test_macs_of_a_known_model(model: Path) -> None:
    """Of one run of two examples; a grouped convolution reads two of four channels."""
    network = onnx_model.load(str(model), precisions=Precisions(("int8", "fp32")))
    costs = CostsOfFiles.of(network, {"x": np.zeros((2, 4, 4, 4), np.float32)}).costs
    conv, product, last = 2 * 4 * 16 * 2 * 9, 2 * 64 * 8, 2 * 8 * 5
    total = conv + 2 * product + last
    int8, fp32 = (network.space.encode(network.space.corners[f"largest-{name}"])[None] for name in ("int8", "fp32"))
    assert costs.gmacs(int8)[0] * 1e9 == pytest.approx(total)
    assert costs.gbitops(fp32)[0] * 1e9 == pytest.approx(1024 * total)
    assert costs.gbitops(int8)[0] * 1e9 == pytest.approx(64 * total)
    mixed = network.space.with_policy(network.space.corners["largest-int8"], {"conv": "fp32"})
    mixed_bits = costs.gbitops(network.space.encode(mixed)[None])[0]
    assert mixed_bits * 1e9 == pytest.approx(1024 * conv + 64 * (total - conv))


def test_widths_refuse_what_single_changes_do_not_show(case: CostsOfFiles, monkeypatch: pytest.MonkeyPatch) -> None:
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
