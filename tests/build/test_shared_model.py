from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

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
