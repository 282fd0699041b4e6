"""Numbers that follow from names alone: weights of checkpoints, and what is observed on calibration data.

All are small whole numbers over a power of two. Sums and products of such are exact in FP32, so that nothing depends on
the order in which the kernels of some CPU add.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper
from safetensors.numpy import load_file, save_file

Array = npt.NDArray[Any]


def given(name: str, shape: Sequence[int], least: int, most: int, over: int) -> npt.NDArray[np.float32]:
    """Whole numbers from ``least`` to ``most`` over a power of two, always the same for a name and a shape."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    whole = np.random.default_rng(seed).integers(least, most, tuple(shape), endpoint=True)
    return (whole / over).astype(np.float32)


def give_weights(checkpoint: Path) -> None:
    """Replaces all floats of a checkpoint."""
    path = checkpoint / "model.safetensors"
    save_file({name: _weight(name, array) for name, array in load_file(path).items()}, path, {"format": "pt"})


def _weight(name: str, array: Array) -> Array:
    if array.dtype.kind != "f":
        return array
    if name.endswith("running_var"):
        return given(name, array.shape, 16, 96, 64)
    if name.endswith("_matrix"):  # multiplies kernels
        return given(name, array.shape, -2, 2, 4)
    return given(name, array.shape, -32, 32, 64)


def write_model(path: Path) -> None:
    """An ONNX model of two convolutions, two MatMuls and a Gemm, for 8x8 images."""
    shapes = {
        "conv1.weight": (8, 1, 3, 3),
        "conv1.bias": (8,),
        "conv2.weight": (8, 8, 3, 3),
        "conv2.bias": (8,),
        "up.weight": (128, 32),
        "up.bias": (32,),
        "gemm.weight": (16, 32),
        "gemm.bias": (16,),
        "head.weight": (16, 10),
    }
    nodes = [
        helper.make_node("Conv", ["pixels", "conv1.weight", "conv1.bias"], ["a"], "/conv1/Conv", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], "/conv1/Relu"),
        helper.make_node(
            "Conv", ["b", "conv2.weight", "conv2.bias"], ["c"], "/conv2/Conv", pads=[1] * 4, strides=[2, 2]
        ),
        helper.make_node("Relu", ["c"], ["d"], "/conv2/Relu"),
        helper.make_node("Flatten", ["d"], ["e"], "/Flatten"),
        helper.make_node("MatMul", ["e", "up.weight"], ["f"], "/up/MatMul"),
        helper.make_node("Add", ["f", "up.bias"], ["g"], "/up/Add"),
        helper.make_node("Relu", ["g"], ["h"], "/up/Relu"),
        helper.make_node("Gemm", ["h", "gemm.weight", "gemm.bias"], ["i"], "/gemm/Gemm", transB=1),
        helper.make_node("Relu", ["i"], ["j"], "/gemm/Relu"),
        helper.make_node("MatMul", ["j", "head.weight"], ["logits"], "/head/MatMul"),
    ]
    graph = helper.make_graph(
        nodes,
        "plain",
        [helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(given(name, shape, -32, 32, 64), name) for name, shape in shapes.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


@contextmanager
def given_observations(place: tuple[type, str]) -> Iterator[None]:
    """Sessions of one place give values inside that follow from the tensor's name and the number of the run.

    Shapes and whole numbers are those of the real run.

    Args:
        place: A class, and its method that opens a session.
    """
    real: Callable[..., Any] = getattr(*place)

    @contextmanager
    def running(holder: Any, **options: Any) -> Iterator[_Given]:
        with real(holder, **options) as session:
            yield _Given(holder.model, session)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*place, running)
        yield


class _Given:
    """A session over another one."""

    def __init__(self, model: onnx.ModelProto, session: Any) -> None:
        self._makers = {name: node for node in model.graph.node for name in node.output}
        self._session = session
        self._runs = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, outputs: Sequence[str], inputs: Any) -> list[Array]:
        found = self._session.run(outputs, inputs)
        values = [self._value(name, array) for name, array in zip(outputs, found, strict=True)]
        self._runs += 1
        return values

    def _value(self, name: str, real: Array) -> Array:
        if real.dtype.kind != "f":
            return real
        maker = self._makers.get(name)
        kind = maker.op_type if maker is not None else ""
        if kind == "BatchNormalization" and name in maker.output[1:3]:
            variance = name == maker.output[2]
            return given(f"{name} {self._runs}", real.shape, *((16, 96) if variance else (-64, 64)), 64)
        if kind in ("ReduceMin", "ReduceMax", "ReduceSum"):
            name = self._reduced(maker.input[0])
            if kind == "ReduceSum":
                return given(f"sum {name} {self._runs}", real.shape, -64, 64, 32)
            low, high = self._ends(name, real.shape)
            return low if kind == "ReduceMin" else high
        low, high = (32 * float(end) for end in self._ends(name, ()))
        whole = given(f"{name} {self._runs}", real.shape, int(low), int(high), 32)
        whole.reshape(-1)[:1], whole.reshape(-1)[-1:] = low / 32, high / 32
        return whole

    def _ends(self, name: str, shape: Sequence[int]) -> tuple[Array, Array]:
        """The smallest and the largest value of a tensor, or of each of its channels."""
        low = given(f"low {name} {self._runs}", shape, -128, 8, 32)
        return low, given(f"high {name} {self._runs}", shape, 32, 128, 32)

    def _reduced(self, name: str) -> str:
        """A tensor in its own shape."""
        while name in self._makers and self._makers[name].op_type == "Reshape" and name.endswith("/flat"):
            name = self._makers[name].input[0]
        return name
