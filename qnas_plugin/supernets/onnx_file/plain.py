"""Any valid FP32 ONNX model, brought into the one form that grouping, calibration and quantization take.

Functions are part of the graph, the default domain has one name, the opset has scales per channel, constants are
folded, batch normalisation stands in the convolution before it, every node has a name of its own, biases are vectors, a
weight is read by nodes alone, and no name is one that quantization would make. Inputs and outputs stay what they are.

Weights of a large model stay in files: ONNX Runtime reads them where they are, and what it writes is mapped.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnxruntime as ort
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import numpy_helper
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_tensor

from qnas_plugin.build.shared_model import Outline, is_large, let_go
from qnas_plugin.build.tidy import nodes, tidy
from qnas_plugin.errors import CheckpointError, door, reason
from qnas_plugin.files.beside import check_weights
from qnas_plugin.files.locks import scratch
from qnas_plugin.supernets.onnx_file.refusal import other_float, refuse_quantized
from qnas_plugin.supernets.onnx_file.sparse import densify

_OPSET = 13
_SMALL = 1 << 14  # bytes of an initializer that the version converter may look at
_AT_ONCE = 1 << 24


@dataclass(frozen=True, eq=False)
class Plain:
    """A model in its plain form.

    Args:
        outline: The model.
        layers: The names of the nodes that can be quantized, in the order of the graph.
        optional: Inputs with a default value.
        content: A hash of the file and of the weights beside it.
    """

    outline: Outline
    layers: tuple[str, ...]
    optional: frozenset[str]
    content: str


def plain(file: Path) -> Plain:
    """The plain form of the model of a file.

    Raises:
        CheckpointError: There is no such file, or the model is quantized already, not in FP32, has weights that are no
            numbers, or cannot be run.
    """
    model = _read(file)
    with door(CheckpointError, f"cannot read the weights of '{file}'"):
        large = is_large(sum(map(_bytes, model.graph.initializer)))
        content = _content(model, file, large=large)
    refuse_quantized(model, file)
    optional = _optional_inputs(model)
    with door(CheckpointError, f"cannot bring '{file}' into a plain form"):
        _one_default_domain(model)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model, convert_version=True)
    model = _raised(model, file)
    with scratch() as folder:
        outline = _optimized(model, file, folder, large=large)
    infinite = _infinite(outline, file)
    with door(CheckpointError, f"cannot bring '{file}' into a plain form"):
        _declare(outline.model, optional)
        outline, layers = tidy(outline, optional, infinite)
    return Plain(outline, layers, frozenset(optional), content)


def _read(file: Path) -> onnx.ModelProto:
    """The model without the weights that stand beside it."""
    try:
        model = onnx.load(str(file), load_external_data=False)
    except FileNotFoundError:
        raise CheckpointError(f"no file '{file}'; give --model FILE.onnx") from None
    except (OSError, DecodeError, ValueError) as error:
        large = ", it is larger than the 2 GB that one file can have" if _size(file) >= 1 << 31 else ""
        raise CheckpointError(f"cannot read '{file}' as an ONNX model{large}: {reason(error)}") from error
    if not model.graph.node:
        raise CheckpointError(f"cannot read '{file}' as an ONNX model: it has no nodes")
    check_weights(model, file)
    densify(model, file)
    seen: set[str] = set()
    for initializer in model.graph.initializer:
        if initializer.name in seen:
            raise CheckpointError(f"'{file}' has two initializers named '{initializer.name}'; ONNX allows one")
        seen.add(initializer.name)
    return model


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _bytes(tensor: onnx.TensorProto) -> int:
    """The bytes of a tensor's values, in the file or beside it."""
    if tensor.data_type in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED):
        return int(tensor.ByteSize())
    return int(math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _content(model: onnx.ModelProto, file: Path, *, large: bool) -> str:
    """A hash of the model with its weights; those of a model that is not large are taken in."""
    outside = [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    if not large:
        for tensor in outside:
            _take_in(tensor, file)
        return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    digest = hashlib.sha256(model.SerializeToString(deterministic=True))
    for name in dict.fromkeys(ExternalDataInfo(tensor).location for tensor in outside):
        with (file.parent / name).open("rb") as stored:
            while part := stored.read(_AT_ONCE):
                digest.update(part)
    return digest.hexdigest()


def _take_in(tensor: onnx.TensorProto, file: Path) -> None:
    load_external_data_for_tensor(tensor, str(file.parent))
    tensor.data_location = onnx.TensorProto.DEFAULT
    del tensor.external_data[:]


def _one_default_domain(model: onnx.ModelProto) -> None:
    """ONNX's own domain has two names, '' and 'ai.onnx'; here it has the first."""
    for holder in (model, *model.functions):
        versions = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in holder.opset_import}
        if len(versions) < len(holder.opset_import) or any(entry.domain == "ai.onnx" for entry in holder.opset_import):
            del holder.opset_import[:]
            holder.opset_import.extend(onnx.helper.make_opsetid(*entry) for entry in versions.items())
    inside = (node for function in model.functions for node in function.node)
    for node in (*nodes(model.graph), *inside):
        if node.domain == "ai.onnx":
            node.domain = ""


def _raised(model: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    """The model with an opset that has scales per channel."""
    opset = next((entry.version for entry in model.opset_import if not entry.domain), 0)
    if opset >= _OPSET:
        return model
    outside = {
        tensor.name: list(tensor.external_data)
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }
    for tensor in model.graph.initializer:  # the converter loses what lies elsewhere
        if tensor.name in outside and _bytes(tensor) <= _SMALL:
            _take_in(tensor, file)
            del outside[tensor.name]
    with door(
        CheckpointError,
        f"'{file}' has ONNX opset {opset}; export it with {_OPSET} or later, as it cannot be brought to {_OPSET}",
    ):
        model = onnx.version_converter.convert_version(model, _OPSET)
    for tensor in model.graph.initializer:
        if tensor.name in outside:
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.extend(outside[tensor.name])
    return model


def _optimized(model: onnx.ModelProto, file: Path, folder: Path, *, large: bool) -> Outline:
    """What ONNX Runtime makes of the model without fusing layers."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "plain.onnx")
    options.log_severity_level = 4
    beside = str(file.parent.absolute())
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", beside)
    if large:
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "plain.data")
        options.add_session_config_entry("session.disable_prepacking", "1")
    with door(CheckpointError, f"ONNX Runtime cannot run '{file}'", other_float(model.graph)):
        ort.InferenceSession(
            model.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["MatMulAddFusion"],  # it renames layers
        )
    return Outline.load(folder / "plain.onnx")


def _optional_inputs(model: onnx.ModelProto) -> set[str]:
    """The inputs with a default value; before IR version 4 each initializer had to be an input, and none is."""
    stored = {tensor.name for tensor in model.graph.initializer} if model.ir_version >= 4 else set()
    return {value.name for value in model.graph.input if value.name in stored}


def _declare(model: onnx.ModelProto, optional: set[str]) -> None:
    """Leaves no more in the head of a model than it needs, and a version of the format that has all of it."""
    graph = model.graph
    used = {node.domain for node in nodes(graph)}
    domains = {entry.domain: entry.version for entry in model.opset_import if entry.domain in used | {""}}
    stored = {tensor.name for tensor in graph.initializer} - optional
    inputs = [value for value in graph.input if value.name not in stored]  # before IR 4 each initializer is an input
    del model.opset_import[:], graph.value_info[:], graph.input[:]
    model.opset_import.extend(onnx.helper.make_opsetid(*entry) for entry in domains.items())
    graph.input.extend(inputs)
    needed = onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    model.ir_version = max(model.ir_version, needed)


def _infinite(outline: Outline, file: Path) -> set[str]:
    """The weights in which a number is infinite.

    Raises:
        CheckpointError: A value is no number.
    """
    vectors = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in outline.model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name not in outline.weights
    }
    found = set()
    for name, array in (vectors | dict(outline.weights)).items():
        flat = array.reshape(-1)
        for part in (flat[first : first + _AT_ONCE] for first in range(0, flat.size, _AT_ONCE)):
            if np.isnan(part).any():
                raise CheckpointError(f"the weight '{name}' of '{file}' has values that are no numbers (NaN)")
            if not np.isfinite(part).all():
                found.add(name)
        let_go(array)
    return found
