"""Arrays as a model takes them, by the names of its inputs: an .npz file, a folder of them, or a Python function.

``data`` is one of

- an ``.npz`` file with one array for each input of the model, and one named ``labels`` where there are labels;
- a folder with ``train.npz`` and ``test.npz`` or ``validation.npz`` (see `qnas_plugin.tasks.held_out_and_report`);
- ``module:function``, a function without arguments that gives a mapping of such arrays, or a list of examples: each a
  mapping of the model's inputs, and ``labels`` where there are any, that may differ in shape from the next.

Item i of an array belongs to example i. An item that lacks only the batch axis of the model's input is put in batches,
where the model gives for two examples together what it gives for each; an item with all axes of the input is what one
run gets, alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qnas_plugin.data import Dataset, SplitSizes
from qnas_plugin.errors import CheckpointError, DataError, UsageError, door
from qnas_plugin.files.doors import read_npz
from qnas_plugin.tasks import SPLITS, Pool, Tiny, content_key, held_out_and_report
from qnas_plugin.user_function import call, load_function

if TYPE_CHECKING:
    from qnas_plugin.tasks._array_inputs import ArrayProcessor

LABELS = "labels"

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
        calibration=calibration.examples(),
        search=search.examples(),
        selection=selection.examples(),
        report=report.examples(),
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
    from qnas_plugin.tasks._array_inputs import of_model

    if max_length is not None:
        raise UsageError(f"arrays have no max_length, got {max_length}; leave it out")
    path = Path(checkpoint)
    if not path.is_file():
        raise CheckpointError(f"the task 'arrays' needs an ONNX file, '{checkpoint}' is none; give --model FILE.onnx")
    return of_model(path)


def _read(path: Path) -> Pool:
    with door(DataError, f"cannot read {path} as an .npz file of plain arrays", "save it with numpy.savez"):
        return _pool(read_npz(path), str(path))


def _call(name: str) -> Pool:
    function = load_function(name)
    given = call(function, DataError, f"the function '{name}' failed")
    with door(DataError, f"'{name}' must give a mapping of arrays, or a list of such, one for each example"):
        if isinstance(given, Mapping):
            return _pool({key: np.asarray(value) for key, value in given.items()}, name)
        return _examples([{key: np.asarray(value) for key, value in example.items()} for example in given], name)


def _pool(arrays: Mapping[str, npt.NDArray[Any]], source: str) -> Pool:
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if not counts or len(set(counts.values())) != 1:
        raise DataError(f"{source}: all arrays must be of equally many examples, got {counts or 'none'}")
    count = next(iter(counts.values()))
    return _examples([{name: np.asarray(array[i]) for name, array in arrays.items()} for i in range(count)], source)


def _examples(examples: Sequence[Example], source: str) -> Pool:
    if not examples:
        raise DataError(f"{source}: there are no examples; item i of each array is that of example i")
    labelled = [LABELS in example for example in examples]
    if any(labelled) != all(labelled):
        raise DataError(f"{source}: {sum(labelled)} of {len(examples)} examples have '{LABELS}'; give all or none")
    items = [
        {name: _plain(name, array) for name, array in sorted(example.items()) if name != LABELS} for example in examples
    ]
    names = sorted({name for item in items for name in item})
    lacking = next(((i, name) for i, item in enumerate(items) for name in names if name not in item), None)
    if lacking is not None:
        raise DataError(f"{source}: example {lacking[0]} has no '{lacking[1]}', others have; give all the same arrays")
    try:
        labels = np.array([example.get(LABELS, ()) for example in examples])
    except ValueError:
        raise DataError(f"{source}: the labels of all examples must have one shape") from None
    keys = [content_key(*(part for name, array in item.items() for part in _fields(name, array))) for item in items]
    return Pool(items, labels, keys)


def _plain(name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An array of numbers or strings.

    Raises:
        DataError: It holds other objects.
    """
    if array.dtype.kind == "S" or (array.dtype.kind == "O" and all(isinstance(entry, str) for entry in array.flat)):
        return array.astype(str)
    if array.dtype.kind not in "biufcU":
        raise DataError(f"'{name}' holds {array.dtype} objects in the data; give numbers or strings")
    return array


def _fields(name: str, array: npt.NDArray[Any]) -> tuple[bytes, ...]:
    return name.encode(), f"{array.dtype.str}{array.shape}".encode(), array.tobytes()


def tiny(folder: Path) -> Tiny:
    """See ``qnas_plugin.tasks``; the inputs ``x`` (batch, 3) and ``ids`` (batch, 2, 2) of a file that copies one."""
    import onnx

    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=(70, 3)), "ids": rng.integers(0, 9, (70, 2, 2)), LABELS: rng.integers(0, 2, 70)}
    np.savez(folder / "data.npz", **arrays)
    kinds: dict[str, tuple[Any, Any]] = {
        "x": (onnx.TensorProto.FLOAT, ["b", 3]),
        "ids": (onnx.TensorProto.INT64, ["b", 2, 2]),
    }
    inputs = [onnx.helper.make_tensor_value_info(name, *kind) for name, kind in kinds.items()]
    outputs = [onnx.helper.make_tensor_value_info("y", *kinds["x"])]
    nodes = [onnx.helper.make_node("Identity", ["x"], ["y"])]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", inputs, outputs)), folder / "model.onnx")
    return Tiny(folder / "data.npz", folder / "model.onnx")
