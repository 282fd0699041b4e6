from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qnas_plugin.network import Network

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
    network = Network.of(original)
    assert network.outline.ByteSize() < TABLE.nbytes < original.ByteSize()
    assert network.whole() == original == model()


def test_parts_are_read_as_the_model() -> None:
    """Also where a length needs several bytes, and with no weight at all."""
    for weights in (["t"], []):
        network = Network.of(model())
        if not weights:
            network = Network(model(), {})
        content = b"".join(network.parts())
        read = onnx.load_from_string(content)
        assert read == model()
        onnx.checker.check_model(read, full_check=True)
        assert content == b"".join(network.parts())


def test_running_reads_the_arrays_where_they_are() -> None:
    table = TABLE.copy()
    network = Network(Network.of(model()).outline, {"t": table})
    with network.running(threads=1, outputs=["g"]) as session:
        table[2] = 7  # seen only if nothing was copied
        rows, result = session.run(["g", "y"], {"i": np.array([2, 1])})
    np.testing.assert_array_equal(rows, table[[2, 1]])
    np.testing.assert_array_equal(result, rows + 1)
