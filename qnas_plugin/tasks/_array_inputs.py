"""What an ONNX model takes, and arrays put into batches of it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from qnas_plugin.data import Batch, Inputs
from qnas_plugin.errors import CheckpointError, DataError, UsageError, door
from qnas_plugin.files import beside
from qnas_plugin.runtimes import onnxruntime as runtime

Example = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Input:
    """What a model takes.

    Args:
        name: As the model has it.
        axes: How many; None where the model does not say.
        dtype: Of its elements.
        free: Whether the first axis may have any length, and so be that of the examples.
        optional: Whether the model has a value for it.
    """

    name: str
    axes: int | None
    dtype: np.dtype[Any]
    free: bool
    optional: bool


def _input(value: Any, model: str, optional: bool) -> Input:
    """An input of a model.

    Raises:
        DataError: It is no tensor.
    """
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        what = (kind or "unknown").removesuffix("_type")
        raise DataError(f"the input '{value.name}' of {model} is a {what}; only tensors can be given as arrays")
    tensor = value.type.tensor_type
    string = tensor.elem_type == onnx.TensorProto.STRING
    dtype = np.dtype(str) if string else onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    axes = len(tensor.shape.dim) if tensor.HasField("shape") else None
    return Input(value.name, axes, dtype, _free(value), optional)


def _free(value: Any) -> bool:
    """Whether the first axis of an input or output may have any length."""
    if value.type.WhichOneof("value") != "tensor_type":
        return False
    tensor = value.type.tensor_type
    return not tensor.HasField("shape") or (len(tensor.shape.dim) > 0 and not tensor.shape.dim[0].HasField("dim_value"))


def of_model(path: Path) -> ArrayProcessor:
    """What puts examples into batches for an ONNX file.

    Raises:
        CheckpointError: It cannot be read.
        DataError: An input is no tensor.
    """
    with door(CheckpointError, f"cannot read '{path}' as an ONNX model"):
        model = onnx.load(str(path), load_external_data=False)
        stored = {initializer.name for initializer in model.graph.initializer}
        stored |= {sparse.values.name for sparse in model.graph.sparse_initializer}
        old = model.ir_version < 4  # each initializer had to be an input
        inputs = [_input(value, path.name, value.name in stored) for value in model.graph.input]
    inputs = [value for value in inputs if not (old and value.optional)]
    free = [value.free for value in inputs if not value.optional]
    return ArrayProcessor(path, tuple(inputs), all(free) and all(map(_free, model.graph.output)))


@dataclass(frozen=True)
class ArrayProcessor:
    """Puts examples into batches.

    Args:
        model: The file, beside which there may be others that its clients need.
        inputs: What the model takes.
        batched: Whether the first axis of all inputs and outputs is free, and may be that of the examples.
    """

    model: Path
    inputs: tuple[Input, ...]
    batched: bool
    _known: dict[str, bool] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the inputs."""
        return tuple(value.name for value in self.inputs)

    def batches(self, inputs: Sequence[Any], batch_size: int) -> list[Batch]:
        """Examples of equal shapes together where the model keeps them apart, those that hold a whole run alone."""
        alike: dict[object, list[int]] = {}
        examples = [self._inputs(example) for example in inputs]
        for i, (arrays, together) in enumerate(examples):
            shapes = tuple((name, array.shape) for name, array in arrays.items())
            alike.setdefault(shapes if together else i, []).append(i)
        pair = next((some[:2] for some in alike.values() if len(some) > 1), None)
        if pair and not self._keeps_apart(*(examples[i][0] for i in pair)):
            alike = {i: [i] for i in range(len(examples))}
        chunks = [
            positions[start : start + batch_size]
            for positions in alike.values()
            for start in range(0, len(positions), batch_size)
        ]
        return [
            Batch(
                {name: np.concatenate([examples[i][0][name] for i in chunk]) for name in examples[chunk[0]][0]}
                if len(chunk) > 1
                else examples[chunk[0]][0],
                np.array(chunk, dtype=np.int64),
            )
            for chunk in chunks
        ]

    def timing_inputs(self, batch_size: int, sequence_length: int | None, examples: Sequence[Any] = ()) -> Inputs:
        """The example of middle size, as often as the batch is large; ``sequence_length`` means nothing here.

        Raises:
            UsageError: The model takes only one example at a time.
        """
        assert examples
        order = sorted(examples, key=lambda example: sum(array.size for array in example.values()))
        arrays, together = self._inputs(order[len(order) // 2])
        if batch_size > 1 and not (together and self._known.get("apart", True)):
            raise UsageError(f"{self.model.name} takes one example a run, latencies were asked for {batch_size}")
        return {name: np.concatenate([array] * batch_size) for name, array in arrays.items()} if together else arrays

    def save(self, folder: Path) -> None:
        """Copies what belongs to the model from beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        for path in beside.files(self.model.parent):
            shutil.copyfile(path, folder / path.name)

    def _inputs(self, example: Example) -> tuple[dict[str, npt.NDArray[Any]], bool]:
        """An example as one run gets it, and whether it may be put together with others."""
        arrays, together = {}, self.batched
        for value in self.inputs:
            if value.name not in example and value.optional:
                continue
            if value.name not in example:
                have = ", ".join(sorted(example)) or "none"
                also = "; 'labels' in the data are what it should give, rename the input" * (value.name == "labels")
                raise DataError(
                    f"the data has no array '{value.name}', which {self.model.name} takes; have: {have}{also}"
                )
            arrays[value.name] = cast(example[value.name], value, self.model.name)
        if "whole" not in self._known and any(value.axes is None for value in self.inputs):
            self._known["whole"] = not self._runs({name: array[None] for name, array in arrays.items()})
        for value in self.inputs:
            if value.name not in arrays:
                continue
            array = arrays[value.name]
            axes = value.axes if value.axes is not None else array.ndim + (not self._known["whole"])
            if array.ndim not in (axes - 1, axes):
                raise DataError(
                    f"an example of '{value.name}' has shape {array.shape}, {self.model.name} takes {axes} axes with "
                    "that of the batch"
                )
            together &= array.ndim == axes - 1
            arrays[value.name] = array[None] if array.ndim == axes - 1 else array
        return arrays, together

    def _keeps_apart(self, first: Inputs, second: Inputs) -> bool:
        """Whether the model gives for two examples together what it gives for each; asked once for each model.

        A free axis may be another one than that of the examples, and a model may compute across examples.
        """
        if "apart" not in self._known:
            session = self._session()
            with door(DataError, f"{self.model.name} cannot be run on the data"):
                alone = [session.run(None, runtime.feed(session, inputs)) for inputs in (first, second)]
            both = {name: np.concatenate([first[name], second[name]]) for name in first}
            with suppress(Exception):  # whatever the runtime raises: the model does not take two
                joined = session.run(None, runtime.feed(session, both))
                self._known["apart"] = all(
                    np.shape(got)[:1] == (2,) and np.shape(one)[:1] == (1,) and _alike(got[i], one[0])
                    for i, outputs in enumerate(alone)
                    for got, one in zip(joined, outputs, strict=True)
                )
        return self._known.setdefault("apart", False)

    def _runs(self, inputs: Inputs) -> bool:
        """Whether the model can be run on these."""
        session = self._session()
        try:
            session.run(None, runtime.feed(session, inputs))
        except Exception:  # whatever the runtime raises
            return False
        return True

    def _session(self) -> Any:
        """Not kept: it has all weights."""
        with door(CheckpointError, f"ONNX Runtime cannot run '{self.model.name}'"):
            return runtime.session(self.model, 1, spinning=False)


def _alike(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    """Whether two outputs are equal but for rounding."""
    if a.shape != b.shape or a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    return bool(np.allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b[np.isfinite(b)]).max(initial=0), equal_nan=True))


def cast(array: npt.NDArray[Any], value: Input, model: str) -> npt.NDArray[Any]:
    """An array as the type that an input has, with the same values.

    Raises:
        DataError: They are of another kind, or do not fit.
    """
    if array.dtype == value.dtype or (array.dtype.kind == value.dtype.kind == "U"):
        return array
    numbers = array.dtype.kind in "iub" and value.dtype.kind in "iu"
    if "U" in (array.dtype.kind, value.dtype.kind) or not (
        numbers or np.can_cast(array.dtype, value.dtype, "same_kind")
    ):
        raise DataError(f"'{value.name}' is {array.dtype} in the data, {model} takes {value.dtype}")
    with np.errstate(over="ignore"):
        result = array.astype(value.dtype)
    fits = np.array_equal(result, array) if numbers else np.array_equal(np.isfinite(result), np.isfinite(array))
    if not fits:
        raise DataError(
            f"'{value.name}' has values from {array.min()} to {array.max()} in the data, {model} takes {value.dtype}, "
            "which does not hold them"
        )
    return result
