from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qnas_plugin.build import shared_model
from qnas_plugin.build.shared_model import Outline

TABLE = np.arange(600, dtype=np.float32).reshape(200, 3)


def model() -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Gather", ["t", "i"], ["g"]), helper.make_node("Add", ["g", "b"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("i", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.ones(3, np.float32), "b"), numpy_helper.from_array(TABLE, "t")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_whole_gives_the_model_back() -> None:
    original = model()
    outline = Outline.of(original)
    assert outline.model.ByteSize() < TABLE.nbytes < original.ByteSize()
    assert outline.whole() == original == model()


def test_parts_are_read_as_the_model() -> None:
    """Also where a length needs several bytes, and with no weight at all."""
    for weights in (["t"], []):
        outline = Outline.of(model())
        if not weights:
            outline = Outline(model(), {})
        content = b"".join(outline.parts())
        read = onnx.load_from_string(content)
        assert read == model()
        onnx.checker.check_model(read, full_check=True)
        assert content == b"".join(outline.parts())


def test_running_reads_the_arrays_where_they_are() -> None:
    table = TABLE.copy()
    outline = Outline(Outline.of(model()).model, {"t": table})
    with outline.running(threads=1, outputs=["g"]) as session:
        table[2] = 7  # seen only if nothing was copied
        rows, result = session.run(["g", "y"], {"i": np.array([2, 1])})
    np.testing.assert_array_equal(rows, table[[2, 1]])
    np.testing.assert_array_equal(result, rows + 1)


def mapped(folder: Path) -> tuple[Outline, Path]:
    """A product with a weight of 16 MB in a file beside it."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2048])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2048])],
        [numpy_helper.from_array(np.ones((2048, 2048), np.float32), "w")],
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return Outline.load(path), folder / "weights.bin"


def resident(file: Path) -> int:
    """Bytes of a mapped file that this process has in memory."""
    lines = Path(f"/proc/{os.getpid()}/smaps").read_text().splitlines()
    starts = [i for i, line in enumerate(lines) if line.endswith(str(file))]
    sizes = (next(line for line in lines[i:] if line.startswith("Rss:")) for i in starts)
    return sum(int(line.split()[1]) * 1024 for line in sizes)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell what is in memory")
@pytest.mark.parametrize("large", [False, True])
def test_what_is_mapped_leaves_memory_after_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    if large:
        monkeypatch.setattr(shared_model, "_LARGE", 1000)
    outline, file = mapped(tmp_path)
    assert outline.weights["w"].sum() == 2048**2
    assert resident(file) == file.stat().st_size
    size = sum(len(part) for _, parts in outline.files("model.onnx") for part in parts)
    assert size > 2048**2 * 4
    assert resident(file) < 1e6
    with outline.running(threads=1) as session:
        assert session.run(None, {"x": np.ones((1, 2048), np.float32)})[0][0, 0] == 2048
        assert not large or resident(file) == file.stat().st_size
    assert resident(file) < 1e6
