"""Arrays as a model takes them, by the names of its inputs: an .npz file, a folder of them, or a Python function.

``data`` is one of

- an ``.npz`` file with one array for each input of the model, and one named ``labels`` where there are labels;
- a folder with ``train.npz`` and ``test.npz`` or ``validation.npz`` (see `qnas_plugin.tasks.held_out_and_report`);
- ``module:function``, a function without arguments that gives a mapping of such arrays, or a list of examples: each a
  mapping of the model's inputs, and ``labels`` where there are any, that may differ in shape from the next.

Item i of an array belongs to example i. An item that lacks only the batch axis of the model's input is put in batches;
an item with all axes of the input is what one run gets, alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qnas_plugin.doors import door, read_npz
from qnas_plugin.errors import CheckpointError, DataError, UsageError
from qnas_plugin.functions import call, load_function
from qnas_plugin.tasks import (
    SPLITS,
    Batch,
    Dataset,
    Inputs,
    Pool,
    SplitSizes,
    content_key,
    held_out_and_report,
)

LABELS = "labels"

BESIDE = ("*.json", "*.txt", "*.model", "*.jinja")
"""What is copied from beside the input model: configuration, tokenizer and processor files, dictionaries."""

Example = Mapping[str, npt.NDArray[Any]]


def load(data: str, *, sizes: SplitSizes) -> Dataset:
    """The arrays at a path, or those that a function gives, in parts that share no content; training gets what is left.

    The metric is accuracy where there are labels, else the cosine similarity with the FP32 model.

    Raises:
        DataError: There is no such file, it is malformed, or there are too few examples.
        UsageError: The function cannot be imported.
    """
    path = Path(data)
    report: Pool | None = None
    if path.is_dir():
        pools = {split: _read(path / f"{split}.npz") for split in SPLITS if (path / f"{split}.npz").is_file()}
        held_out, name = held_out_and_report(pools, data)
        report = pools[name]
        pool = pools[held_out or "train"].without(report)
        if sizes.report is not None:
            report, _ = report.cut(sizes.report)
    elif path.is_file():
        pool = _read(path)
    elif ":" in data:
        pool = _call(data)
    else:
        raise DataError(f"no file or folder '{data}'; allowed: an .npz file, a folder of them, or module:function")
    calibration, rest = pool.cut(sizes.calibration, one_in=3)
    if report is None:
        report, rest = rest.cut(sizes.report, one_in=2)
    apart, train = rest.cut(sizes.held_out)
    search, selection = apart.divided(sizes)
    parts = {"calibration": calibration, "search": search, "selection": selection, "report": report}
    for name, part in parts.items():
        if not len(part) and name != "selection":
            raise DataError(
                f"{data}: {len(frozenset(pool.keys))} different examples are too few for calibration, search and "
                f"report, none is left for {name}; give 3 at the very least"
            )
    content = [b"".join((*part.keys, *_fields(LABELS, part.labels))) for part in (train, *parts.values()) if len(part)]
    return Dataset(
        train=train.examples(),
        **{name: part.examples() for name, part in parts.items()},
        label_names=(),
        metric="accuracy" if pool.labels.size else "cosine",
        fingerprint=content_key(*content).hex()[:12],
        source=data,
    )


def processor(checkpoint: str, *, max_length: int | None = None) -> ArrayProcessor:
    """What puts examples into batches for an ONNX file.

    Raises:
        CheckpointError: There is no such file.
        UsageError: A maximal length is given, which arrays do not have.
    """
    import onnx

    if max_length is not None:
        raise UsageError(f"arrays have no max_length, got {max_length}; leave it out")
    path = Path(checkpoint)
    if not path.is_file():
        raise CheckpointError(f"the task 'arrays' needs an ONNX file, '{checkpoint}' is none; give --model FILE.onnx")
    graph = onnx.load(str(path), load_external_data=False).graph
    stored = {initializer.name for initializer in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    first = [value.type.tensor_type.shape.dim[:1] for value in (*inputs, *graph.output)]
    return ArrayProcessor(
        path,
        {value.name: len(value.type.tensor_type.shape.dim) for value in inputs},
        {value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) for value in inputs},
        all(len(dim) == 1 and not dim[0].HasField("dim_value") for dim in first),
    )


@dataclass(frozen=True)
class ArrayProcessor:
    """Puts examples into batches.

    Args:
        model: The file, beside which there may be others that its clients need.
        axes: The number of axes of each input.
        dtypes: Of each input.
        batched: Whether the first axis of all inputs and outputs is free, and so that of the examples.
    """

    model: Path
    axes: Mapping[str, int]
    dtypes: Mapping[str, np.dtype[Any]]
    batched: bool

    def batches(self, inputs: Sequence[Any], batch_size: int) -> list[Batch]:
        """Examples of equal shapes together; those that hold a whole run each, or for a fixed batch of 1, alone."""
        alike: dict[object, list[int]] = {}
        examples = [self._inputs(example) for example in inputs]
        for i, (arrays, together) in enumerate(examples):
            shapes = tuple((name, array.shape) for name, array in arrays.items())
            alike.setdefault(shapes if together else i, []).append(i)
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
        if batch_size > 1 and not together:
            raise UsageError(f"{self.model.name} takes one example a run, latencies were asked for {batch_size}")
        return {name: np.concatenate([array] * batch_size) for name, array in arrays.items()} if together else arrays

    def save(self, folder: Path) -> None:
        """Copies what stands beside the model."""
        folder.mkdir(parents=True, exist_ok=True)
        for pattern in BESIDE:
            for path in sorted(self.model.parent.glob(pattern)):
                shutil.copyfile(path, folder / path.name)

    def _inputs(self, example: Example) -> tuple[dict[str, npt.NDArray[Any]], bool]:
        """An example as one run gets it, and whether it may be put together with others."""
        arrays, together = {}, self.batched
        for name, axes in self.axes.items():
            if name not in example:
                have = ", ".join(sorted(example)) or "none"
                raise DataError(f"the data has no array '{name}', which {self.model.name} takes; have: {have}")
            array = example[name]
            if array.dtype != self.dtypes[name]:
                if not np.can_cast(array.dtype, self.dtypes[name], "same_kind"):
                    raise DataError(
                        f"'{name}' is {array.dtype} in the data, {self.model.name} takes {self.dtypes[name]}"
                    )
                array = array.astype(self.dtypes[name])
            if array.ndim not in (axes - 1, axes):
                raise DataError(
                    f"an example of '{name}' has shape {array.shape}, {self.model.name} takes {axes} axes with that of "
                    "the batch"
                )
            together &= array.ndim == axes - 1
            arrays[name] = array[None] if array.ndim == axes - 1 else array
        return arrays, together


def _read(path: Path) -> Pool:
    with door(DataError, f"cannot read {path} as an .npz file of plain arrays", "save it with numpy.savez"):
        return _pool(read_npz(path), str(path))


def _call(name: str) -> Pool:
    function = load_function(name)
    given = call(function, DataError, f"the function '{name}' failed")
    with door(DataError, f"what the function '{name}' gives is no mapping of arrays, and no list of such"):
        if isinstance(given, Mapping):
            return _pool({key: np.asarray(value) for key, value in given.items()}, name)
        examples = [{key: np.asarray(value) for key, value in example.items()} for example in given]
        return _examples(examples, name)


def _pool(arrays: Mapping[str, npt.NDArray[Any]], source: str) -> Pool:
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if not counts or len(set(counts.values())) != 1:
        raise DataError(f"{source}: all arrays must be of equally many examples, got {counts or 'none'}")
    count = next(iter(counts.values()))
    return _examples([{name: np.asarray(array[i]) for name, array in arrays.items()} for i in range(count)], source)


def _examples(examples: Sequence[Example], source: str) -> Pool:
    labelled = [LABELS in example for example in examples]
    if any(labelled) != all(labelled):
        raise DataError(f"{source}: {sum(labelled)} of {len(examples)} examples have '{LABELS}'; give all or none")
    items = [{name: array for name, array in sorted(example.items()) if name != LABELS} for example in examples]
    try:
        labels = np.array([example.get(LABELS, ()) for example in examples])
    except ValueError:
        raise DataError(f"{source}: the labels of all examples must have one shape") from None
    keys = [content_key(*(part for name, array in item.items() for part in _fields(name, array))) for item in items]
    return Pool(items, labels, keys)


def _fields(name: str, array: npt.NDArray[Any]) -> tuple[bytes, ...]:
    return name.encode(), f"{array.dtype.str}{array.shape}".encode(), array.tobytes()
