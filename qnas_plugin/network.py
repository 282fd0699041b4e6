"""An ONNX model as an outline and, beside it, the arrays of its weights.

Protocol buffers copy what is put in, taken out and serialised; arrays are shared: a subnet's with its supernet's, and a
running model's with both. Values enter a buffer only when a file is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import numpy_helper


@dataclass(frozen=True, eq=False)
class Network:
    """An FP32 model whose weights may be shared; must not be changed.

    Args:
        outline: The model; the initializers of ``weights`` have types and shapes in it, and no values.
        weights: Matrices, kernels and tables by the names of their initializers.
    """

    outline: onnx.ModelProto
    weights: Mapping[str, npt.NDArray[Any]]

    @classmethod
    def of(cls, model: onnx.ModelProto | Network) -> Network:
        """A model with its weights taken out; the model stays as it is."""
        if isinstance(model, Network):
            return model
        outline = onnx.ModelProto()
        outline.CopyFrom(model)
        weights = {}
        for initializer in outline.graph.initializer:
            if initializer.data_type == onnx.TensorProto.FLOAT and len(initializer.dims) > 1:
                weights[initializer.name] = numpy_helper.to_array(initializer)
                initializer.ClearField("raw_data")
                initializer.ClearField("float_data")
        return cls(outline, weights)

    def whole(self) -> onnx.ModelProto:
        """The model with all values."""
        model = onnx.ModelProto()
        model.CopyFrom(self.outline)
        fill(model, self.weights)
        return model

    def session(self, *, threads: int, outputs: Iterable[str] = (), optimized: bool = True) -> ort.InferenceSession:
        """A session on the CPU that reads the arrays where they are.

        Args:
            threads: Of each run; 0 is all cores.
            outputs: Tensors that it can give too.
            optimized: Whether nodes are fused, which may change a last bit.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self.outline)
        own = {value.name for value in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in own)
        for initializer in model.graph.initializer:
            if initializer.name in self.weights:  # ONNX Runtime 1.31 takes values only for those that lie elsewhere
                initializer.data_location = onnx.TensorProto.EXTERNAL
                initializer.external_data.add(key="location", value="memory")
        options = ort.SessionOptions()
        if not optimized:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors alone
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others work beside it
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in self.weights.values()]
        options.add_external_initializers(list(self.weights), values)
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def fill(model: onnx.ModelProto, weights: Mapping[str, npt.NDArray[Any]]) -> None:
    """Gives initializers of these names their values."""
    for initializer in model.graph.initializer:
        if initializer.name in weights:
            initializer.raw_data = weights[initializer.name].tobytes()
