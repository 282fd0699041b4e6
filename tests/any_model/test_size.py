"""Models of thousands of layers, and of more than one file can hold."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from qnas_plugin.build import shared_model
from qnas_plugin.data import Batch
from qnas_plugin.quantizers._indexed_model import IndexedModel
from qnas_plugin.quantizers.quantize import calibrate
from qnas_plugin.supernets.onnx_file.onnx_model import _join, load
from tests.any_model import FLOAT, INT64, floats, int8_layers, model, node, save, searched, stored, value


def chain(count: int) -> onnx.ModelProto:
    """So many unnamed layers, one after the other."""
    nodes = []
    for i in range(count):
        nodes += [node("MatMul", [f"t{i}", f"w{i}"], [f"m{i}"]), node("Tanh", [f"m{i}"], [f"t{i + 1}"])]
    return model(
        nodes,
        [value("t0", FLOAT, ["n", 4])],
        [value(f"t{count}", FLOAT, ["n", 4])],
        stored(**{f"w{i}": floats(4, 4, seed=i) for i in range(count)}),
    )


def test_look_ups_grow_with_the_number_of_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with its square; counted, as time is another one under load."""
    looked: Counter[str] = Counter()
    seen: Counter[int] = Counter()

    def counting(name: str) -> None:
        plain = getattr(IndexedModel, name)

        def counted(self: IndexedModel, *arguments: object) -> object:
            looked[name] += 1
            return plain(self, *arguments)

        monkeypatch.setattr(IndexedModel, name, counted)

    for name in ("nodes", "initializer", "remove_nodes", "remove_initializers", "update"):
        counting(name)
    for count in (40, 80):
        looked.clear()
        found = load(str(save(chain(count), tmp_path)))
        calibrated = calibrate(found.outline, found.groups, [Batch({"t0": floats(4, 4)}, np.arange(4))])
        calibrated.outline(dict.fromkeys(found.groups, "int8"))
        seen[count] = sum(looked[name] for name in ("remove_nodes", "remove_initializers", "update"))
    assert seen[40] == seen[80] < 20  # once a stage, whatever the number of layers


def test_two_thousand_layers_are_joined_to_sixty_groups(tmp_path: Path) -> None:
    groups = load(str(save(chain(2000), tmp_path))).groups
    assert len(groups) == 60
    assert sum(map(len, groups.values())) == 2000
    assert max(map(len, groups.values())) < 70


def test_join_takes_the_neighbours_that_a_search_of_all_pairs_takes() -> None:
    rng = np.random.default_rng(0)
    names = [f"/{rng.integers(3)}/{rng.integers(3)}/x{rng.integers(2)}/{i}" for i in range(60)]
    for most in (1, 7, 30):
        groups = [[node("MatMul", ["x", "w"], ["y"], name)] for name in names]
        expected = [[name] for name in names]
        while len(expected) > most:

            def common(nodes: list[str]) -> int:
                paths = [name.strip("/").split("/")[:-1] for name in nodes]
                return sum(len(set(parts)) == 1 for parts in zip(*paths, strict=False))

            pairs = [expected[i] + expected[i + 1] for i in range(len(expected) - 1)]
            best = min(range(len(pairs)), key=lambda i: (-common(pairs[i]), len(pairs[i])))
            expected[best : best + 2] = [pairs[best]]
        _join(groups, most)
        assert [[each.name for each in nodes] for nodes in groups] == expected


def words(rows: int, width: int, layers: int, opset: int = 17) -> onnx.ModelProto:
    """A table of words and layers, with weights of no values yet."""
    nodes = [node("Gather", ["table", "ids"], ["h0"], "table")]
    shapes = {"table": (rows, width)}
    for i in range(layers):
        nodes += [node("MatMul", [f"h{i}", f"w{i}"], [f"m{i}"], f"fc{i}"), node("Tanh", [f"m{i}"], [f"h{i + 1}"])]
        shapes[f"w{i}"] = (width, width)
    nodes.append(node("ReduceMean", [f"h{layers}"], ["y"], axes=[1], keepdims=0))
    made = model(nodes, [value("ids", INT64, ["n", 4])], [value("y", FLOAT, ["n", width])], opset=opset)
    for name, shape in shapes.items():
        made.graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=shape)
    return made


def with_weights_beside(made: onnx.ModelProto, folder: Path) -> Path:
    """Writes a model and, in a file beside it, random weights."""
    path, offset = folder / "model.onnx", 0
    rng = np.random.default_rng(0)
    with (folder / "weights.bin").open("wb") as file:
        for tensor in made.graph.initializer:
            rows, width = tensor.dims
            tensor.data_location = TensorProto.EXTERNAL
            entries = {"location": "weights.bin", "offset": offset, "length": rows * width * 4}
            for key, entry in entries.items():
                tensor.external_data.add(key=key, value=str(entry))
            for first in range(0, rows, 100_000):
                part = rng.random((min(100_000, rows - first), width), dtype=np.float32)
                part -= 0.5
                file.write(part * (4 / width**0.5))
            offset += rows * width * 4
    path.write_bytes(made.SerializeToString())
    return path


def members_are_large(folder: Path) -> bool:
    """Whether the FP32 model has its weights in a file beside it."""
    graph = onnx.load(folder / "fp32.onnx", load_external_data=False).graph
    return all(
        any(entry.value == "fp32.onnx_data" for entry in tensor.external_data)
        for tensor in graph.initializer
        if len(tensor.dims) > 1
    )


@pytest.mark.parametrize("opset", [11, 17])
def test_large_models_have_their_weights_beside_them_in_and_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opset: int
) -> None:
    """The way of models over 2 GB, with a small one."""
    path = with_weights_beside(words(50, 8, 3, opset), tmp_path)
    data = {"ids": np.random.default_rng(0).integers(0, 50, (60, 4))}
    monkeypatch.setattr(shared_model, "_LARGE", 100)
    scores = searched(path, data, tmp_path)
    assert scores["fp32"] == 1 > scores["int8"] > 0.95
    assert members_are_large(tmp_path)
    first = (tmp_path / "fp32.onnx_data").read_bytes()
    scores = searched(path, data, tmp_path)
    assert first == (tmp_path / "fp32.onnx_data").read_bytes()
    monkeypatch.undo()
    assert searched(path, data, tmp_path) == scores
    assert not members_are_large(tmp_path)


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    from qnas_plugin.errors import CheckpointError

    path = with_weights_beside(words(50, 8, 1), tmp_path)
    (tmp_path / "weights.bin").write_bytes(bytes(10))
    with pytest.raises(CheckpointError, match="cannot"):
        load(str(path))
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(CheckpointError, match=r"weights.bin', in which 'model.onnx' has 'table'"):
        load(str(path))


@pytest.mark.slow
def test_a_model_of_more_than_two_gigabytes_is_searched(tmp_path: Path) -> None:
    path = with_weights_beside(words(2_000_000, 256, 4), tmp_path)
    assert (tmp_path / "weights.bin").stat().st_size > 2_000_000_000
    scores = searched(path, {"ids": np.random.default_rng(0).integers(0, 2_000_000, (60, 4))}, tmp_path)
    assert scores["fp32"] == 1 > scores["int8"] > 0.95
    assert members_are_large(tmp_path)
    assert int8_layers(tmp_path) == 5
    assert (tmp_path / "int8.onnx").stat().st_size < 600_000_000
