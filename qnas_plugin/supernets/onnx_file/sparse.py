"""Sparse tensors, of which a model stores what is not zero and where, made whole: quantization takes no other.

They are initializers, and constants of nodes, also in branches and functions.
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
    """Makes all sparse tensors of a model whole.

    Args:
        model: Is changed.
        file: Where it came from; parts of a sparse tensor may be stored beside it.

    Raises:
        CheckpointError: One is damaged, of a type that cannot be filled in, or too large for a file when it is whole.
    """
    for outer in (model.graph, *model.functions):
        for inner in graphs(outer):
            if isinstance(inner, onnx.GraphProto):
                for sparse in inner.sparse_initializer:
                    inner.initializer.append(_whole(sparse, str(sparse.values.name), model, file))
                del inner.sparse_initializer[:]
            for node in inner.node:
                for attribute in node.attribute if node.op_type == "Constant" else ():
                    if attribute.name == "sparse_value":
                        whole = _whole(attribute.sparse_tensor, str(node.output[0]), model, file)
                        attribute.CopyFrom(helper.make_attribute("value", whole))


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
