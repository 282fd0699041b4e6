"""Sparse tensors, of which a model stores what is not zero and where, made whole: quantization takes no other.

They are initializers of the graph. Others, constants of nodes and what branches and functions store, are refused: ONNX
Runtime 1.31 can end with a segmentation fault while it loads a file that has such.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from qnas_plugin.build.shared_model import is_large
from qnas_plugin.build.tidy import graphs
from qnas_plugin.errors import CheckpointError, door

_WHOLE = "store it whole, not sparse"


def densify(model: onnx.ModelProto, file: Path) -> None:
    """Makes the sparse initializers of a model whole.

    Args:
        model: Is changed.
        file: Where it came from; parts of a sparse tensor may be stored beside it.

    Raises:
        CheckpointError: One is damaged, of a type that cannot be filled in, too large for a file when it is whole, or
            no initializer of the graph itself.
    """
    for outer in (model.graph, *model.functions):
        for inner in graphs(outer):
            names = [node.output[0] for node in inner.node for each in node.attribute if each.name == "sparse_value"]
            if isinstance(inner, onnx.GraphProto) and inner is not model.graph:
                names += [sparse.values.name for sparse in inner.sparse_initializer]
            if names:
                raise CheckpointError(
                    f"the constant '{names[0]}' of '{file}' is sparse, which ONNX Runtime may not survive; {_WHOLE}"
                )
    for sparse in model.graph.sparse_initializer:
        model.graph.initializer.append(_whole(sparse, str(sparse.values.name), model, file))
    del model.graph.sparse_initializer[:]


def _whole(sparse: onnx.SparseTensorProto, name: str, model: onnx.ModelProto, file: Path) -> onnx.TensorProto:
    with door(CheckpointError, f"cannot read the sparse tensor '{name}' of '{file}'", _WHOLE):
        kind, shape = sparse.values.data_type, tuple(sparse.dims)
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        if dtype.kind not in "iufb" or helper.np_dtype_to_tensor_dtype(dtype) != kind:
            raise ValueError(f"it is of type {onnx.TensorProto.DataType.Name(kind)}")
        count = math.prod(shape)
        if is_large(model.ByteSize() + count * dtype.itemsize):
            raise CheckpointError(
                f"the sparse tensor '{name}' of '{file}' takes {count * dtype.itemsize / 1e9:.1f} GB when it is whole, "
                "more than fits into one file; store it whole in a file beside the model"
            )
        values, places = (numpy_helper.to_array(part, str(file.parent)) for part in (sparse.values, sparse.indices))
        if places.ndim == 2:  # a row of indices for each value, else one that counts through all axes
            places = np.ravel_multi_index(tuple(places.T), shape)
        if len(places) != len(values) or ((places < 0) | (places >= count)).any():
            raise ValueError(f"its indices do not fit {len(values)} values of {shape}")
        whole = np.zeros(count, dtype)
        whole[places] = values
        return numpy_helper.from_array(whole.reshape(shape), name)
