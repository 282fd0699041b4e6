"""An ONNX model as an outline and, beside it, the arrays of its weights.

Protocol buffers copy what is put in, taken out and serialised; arrays are shared: a subnet's with its supernet's, and a
running model's with both. Values enter a buffer only when a file is made.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_tensor

from qnas_plugin.runtimes.onnxruntime import make_exact

_GRAPH, _INITIALIZER, _RAW_DATA = (
    message.DESCRIPTOR.fields_by_name[name].number
    for message, name in ((onnx.ModelProto, "graph"), (onnx.GraphProto, "initializer"), (onnx.TensorProto, "raw_data"))
)


BESIDE = "_data"
"""What the name of the file of weights ends with, as Optimum's exporter names it."""

_LARGE = 2_000_000_000
_PAGE = 4096


@dataclass(frozen=True, eq=False)
class Outline:
    """A model whose weights may be shared; must not be changed.

    Args:
        model: The model; the initializers of ``weights`` have types and shapes in it, and no values.
        weights: Matrices, kernels and tables, contiguous, by the names of their initializers.
    """

    model: onnx.ModelProto
    weights: Mapping[str, npt.NDArray[Any]]

    @classmethod
    def of(cls, model: onnx.ModelProto | Outline) -> Outline:
        """A model with its weights taken out; the model stays as it is."""
        if isinstance(model, Outline):
            return model
        outline = onnx.ModelProto()
        outline.CopyFrom(model)
        return cls(outline, _take_weights(outline))

    @classmethod
    def load(cls, path: Path) -> Outline:
        """The model of a file; what lies beside it is mapped, and stays readable when the file is removed."""
        model = onnx.load(str(path), load_external_data=False)
        weights = {}
        for initializer in model.graph.initializer:
            if initializer.data_location != onnx.TensorProto.EXTERNAL:
                continue
            if initializer.data_type == onnx.TensorProto.FLOAT and len(initializer.dims) > 1:
                info = ExternalDataInfo(initializer)
                weights[initializer.name] = np.memmap(
                    path.parent / info.location, np.float32, "r", info.offset or 0, tuple(initializer.dims)
                )
            else:
                load_external_data_for_tensor(initializer, str(path.parent))
            initializer.data_location = onnx.TensorProto.DEFAULT
            del initializer.external_data[:]
        return cls(model, weights | _take_weights(model))

    @property
    def nbytes(self) -> int:
        """The bytes of the model's file, within a few for each weight, and of the one beside it where there is one."""
        return int(self.model.ByteSize()) + sum(array.nbytes for array in self.weights.values())

    def whole(self) -> onnx.ModelProto:
        """The model with all values."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        fill(model, self.weights)
        return model

    def parts(self) -> Iterator[bytes | memoryview]:
        """The content of the model's file, piece by piece, the same each time; no piece is a copy of a weight.

        All but the weights is one message, and a second one that has only them follows: what is encoded one after the
        other is read as merged (https://protobuf.dev/programming-guides/encoding/#last-one-wins).
        """
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        weights = [initializer for initializer in self.model.graph.initializer if initializer.name in self.weights]
        others = [initializer for initializer in self.model.graph.initializer if initializer.name not in self.weights]
        del model.graph.initializer[:]
        model.graph.initializer.extend(others)
        yield model.SerializeToString(deterministic=True)
        heads = []
        for initializer in weights:
            size = self.weights[initializer.name].nbytes
            head = initializer.SerializeToString(deterministic=True) + _field(_RAW_DATA, size)
            heads.append(_field(_INITIALIZER, len(head) + size) + head)
        yield _field(_GRAPH, sum(map(len, heads)) + sum(self.weights[weight.name].nbytes for weight in weights))
        for initializer, head in zip(weights, heads, strict=True):
            yield head
            yield self.weights[initializer.name].data.cast("B")
            let_go(self.weights[initializer.name])

    def files(self, name: str) -> Iterator[tuple[str, Iterator[bytes | memoryview]]]:
        """The model's files: their names and what is in them, the same each time.

        One is all that it takes, unless it were larger than protocol buffers can be: then weights come first, in a file
        of their own.
        """
        if not is_large(self.nbytes):
            yield name, self.parts()
            return
        beside, head, offset = f"{name}{BESIDE}", onnx.ModelProto(), 0
        head.CopyFrom(self.model)
        for initializer in head.graph.initializer:
            if initializer.name in self.weights:
                size = self.weights[initializer.name].nbytes
                initializer.data_location = onnx.TensorProto.EXTERNAL
                for key, value in {"location": beside, "offset": offset, "length": size}.items():
                    initializer.external_data.add(key=key, value=str(value))
                offset += size + -size % _PAGE
        yield beside, self._pages()
        yield name, iter([head.SerializeToString(deterministic=True)])

    def _pages(self) -> Iterator[bytes | memoryview]:
        for initializer in self.model.graph.initializer:
            if initializer.name in self.weights:
                yield self.weights[initializer.name].data.cast("B")
                yield bytes(-self.weights[initializer.name].nbytes % _PAGE)
                let_go(self.weights[initializer.name])

    @contextmanager
    def running(
        self, *, threads: int, outputs: Iterable[str] = (), optimized: bool = True
    ) -> Iterator[ort.InferenceSession]:
        """A session on the CPU, valid within the context, that reads the arrays where they are.

        Args:
            threads: Of each run; 0 is all cores.
            outputs: Tensors that it can give too.
            optimized: Whether nodes are fused, which may change a last bit.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        own = {value.name for value in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in own)
        for initializer in model.graph.initializer:
            if initializer.name in self.weights:
                initializer.data_location = onnx.TensorProto.EXTERNAL
                initializer.external_data.add(key="location", value="memory")
        options = ort.SessionOptions()
        if not optimized:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors alone
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others work beside it
        if is_large(self.nbytes):  # weights in the order in which products read them are copies
            options.add_session_config_entry("session.disable_prepacking", "1")
        make_exact(options)
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in self.weights.values()]
        # ONNX Runtime 1.31 takes values only for what lies elsewhere, and copies them unless they are shared too.
        options.add_external_initializers(list(self.weights), values)
        for name, value in zip(self.weights, values, strict=True):
            options.add_initializer(name, value)
        yield ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for array in self.weights.values():
            let_go(array)


def let_go(array: npt.NDArray[Any]) -> None:
    """Takes the pages of a mapped file out of this process; they are read again when they are needed."""
    if isinstance(array.base, mmap.mmap):
        array.base.madvise(mmap.MADV_DONTNEED)


def is_large(size: int) -> bool:
    """Whether so many bytes are too many for one file."""
    return size > _LARGE


def _take_weights(model: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    """Takes the values of matrices, kernels and tables out of a model."""
    weights = {}
    for initializer in model.graph.initializer:
        inside = initializer.HasField("raw_data") or len(initializer.float_data)
        if (
            inside
            and 0 not in initializer.dims
            and initializer.data_type == onnx.TensorProto.FLOAT
            and len(initializer.dims) > 1
        ):
            weights[initializer.name] = numpy_helper.to_array(initializer)
            initializer.ClearField("raw_data")
            initializer.ClearField("float_data")
    return weights


def _field(number: int, size: int) -> bytes:
    """What stands before so many bytes of a field in the encoding of protocol buffers."""
    encoded = bytearray([number << 3 | 2])
    while size > 127:
        encoded.append(size & 127 | 128)
        size >>= 7
    return bytes([*encoded, size])


def fill(model: onnx.ModelProto, weights: Mapping[str, npt.NDArray[Any]]) -> None:
    """Gives initializers of these names their values."""
    for initializer in model.graph.initializer:
        if initializer.name in weights:
            initializer.raw_data = weights[initializer.name].tobytes()
