"""Any valid ONNX model and any data: each kind is searched, or refused in one line; docs/onnx_models.md lists them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from qnas_plugin import registry
from qnas_plugin.data import SplitSizes
from qnas_plugin.errors import QnasError
from qnas_plugin.evaluate.lab import Lab
from qnas_plugin.hardware import RuntimeSetting
from qnas_plugin.space import Precision
from qnas_plugin.supernets.onnx_file.onnx_model import load
from tests.sessions import HERE

FLOAT, INT32, INT64, BOOL, STRING = (
    TensorProto.FLOAT,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.BOOL,
    TensorProto.STRING,
)
node, value = helper.make_node, helper.make_tensor_value_info


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def stored(**arrays: Any) -> list[onnx.TensorProto]:
    """Initializers by name."""
    return [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
    *,
    opset: int = 17,
    ir: int = 8,
    domains: Sequence[tuple[str, int]] = (),
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(initializers))
    imports = [helper.make_opsetid(*entry) for entry in (("", opset), *domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir, functions=list(functions))


def linear(name: str = "fc", **fields: Any) -> onnx.ModelProto:
    """``y = x w``, 8 numbers to 5."""
    return model(
        [node("MatMul", ["x", "w"], ["y"], name)],
        [value("x", FLOAT, ["n", 8])],
        [value("y", FLOAT, ["n", 5])],
        stored(w=floats(8, 5)),
        **fields,
    )


def save(made: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def prepare(made: onnx.ModelProto | Path, data: dict[str, Any], folder: Path, metric: str | None = None) -> Lab:
    """What evaluates candidates of a model."""
    path = made if isinstance(made, Path) else save(made, folder)
    np.savez(folder / "data.npz", **data)
    task = registry.load("tasks", "arrays")
    dataset = task.load(str(folder / "data.npz"), sizes=SplitSizes(calibration=8))
    dataset = replace(dataset, metric=metric or dataset.metric)
    return Lab(load(str(path)), dataset, task.processor(str(path)), HERE, RuntimeSetting())


def searched(
    made: onnx.ModelProto | Path, data: dict[str, Any], folder: Path, metric: str | None = None
) -> dict[str, float]:
    """The scores of the FP32 and the INT8 model, which are built, checked and run as a search does.

    Members pass ONNX's checker where the input does, and take and give what it does.
    """
    lab = prepare(made, data, folder, metric)
    space = lab.network.space
    lab.check(space.corner("largest", Precision.FP32))
    scores = {}
    for precision in (Precision.FP32, Precision.INT8):
        path = folder / f"{precision.value}.onnx"
        lab.write(space.corner("largest", precision), path)
        scores[precision.value] = float(lab.scores(path, "search").scores.mean())
        assert len(lab.scores(path, "report").scores) == len(lab.dataset.report)
        if valid(made):
            onnx.checker.check_model(str(path))
        after = session(path)
        original = session(made)
        for ours, theirs in (
            (after.get_inputs(), original.get_inputs()),
            (after.get_outputs(), original.get_outputs()),
        ):
            assert [(each.name, each.type) for each in ours] == [(each.name, each.type) for each in theirs]
    assert all(0 <= score <= 1 for score in scores.values())
    return scores


def int8_layers(folder: Path) -> int:
    """How many layers of the INT8 model of `searched` read a stored 8-bit weight."""
    graph = onnx.load(folder / "int8.onnx").graph
    eight = {
        i.name for i in graph.initializer if i.data_type in (TensorProto.INT8, TensorProto.UINT8) and len(i.dims) > 1
    }
    weights = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in eight}
    return sum(bool(weights.intersection(n.input)) for n in graph.node)


def refused(made: onnx.ModelProto | Path, data: dict[str, Any], folder: Path, metric: str | None = None) -> str:
    """The line that says why a model or its data is not searched."""
    try:
        searched(made, data, folder, metric)
    except QnasError as error:
        assert "\n" not in str(error)
        return str(error)
    raise AssertionError("it was searched")


def valid(made: onnx.ModelProto | Path) -> bool:
    try:
        onnx.checker.check_model(str(made) if isinstance(made, Path) else made)
    except onnx.checker.ValidationError:
        return False
    return True


def session(made: onnx.ModelProto | Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    source = str(made) if isinstance(made, Path) else made.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
