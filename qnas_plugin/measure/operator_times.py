"""Where the time of a model goes: by node and by operator, from ONNX Runtime's own profile."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from qnas_plugin.errors import DataError, MeasurementError, door
from qnas_plugin.files.locks import scratch
from qnas_plugin.runtimes.onnxruntime import feed, make_exact

RUNS = 50
_WARM_UP = 10
_LOGS_NOTHING = 4
_TYPES = {"int64": np.int64, "int32": np.int32, "bool": np.bool_, "float": np.float32, "double": np.float64}

Inputs = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Times:
    """What one run takes, the median of several, in milliseconds.

    Args:
        run: All of it, with what profiling adds.
        nodes: Name of a node of the optimised graph to its share of the run.
        operators: Operator to that of all its nodes, the longest first.
        counts: Operator to the number of its calls.
    """

    run: float
    nodes: Mapping[str, float]
    operators: Mapping[str, float]
    counts: Mapping[str, int]


def measure(model: Path, inputs: Inputs, *, threads: int = 1, runs: int = RUNS) -> Times:
    """Runs a file under ONNX Runtime's profiler.

    Raises:
        MeasurementError: ONNX Runtime cannot run it on these inputs.
    """
    with scratch() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, _LOGS_NOTHING
        options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
        make_exact(options)
        with door(MeasurementError, f"ONNX Runtime cannot run '{model.name}'"):
            session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
            given = feed(session, inputs)
            for _ in range(_WARM_UP + runs):
                session.run(None, given)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return _times(events, runs)


def _times(events: Sequence[Mapping[str, Any]], runs: int) -> Times:
    """The medians of the last runs of a profile, whose times are in microseconds."""
    whole = sorted((event["ts"], event["dur"]) for event in events if event["name"] == "model_run")[-runs:]
    starts = np.array([start for start, _ in whole])
    nodes: dict[str, npt.NDArray[np.float64]] = {}
    operators: dict[str, npt.NDArray[np.float64]] = {}
    counts: dict[str, int] = {}
    for event in events:
        if event["name"].endswith("_kernel_time") and event["ts"] >= starts[0]:
            name, operator = event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]
            run = int(np.searchsorted(starts, event["ts"], side="right")) - 1
            for totals, key in ((nodes, name), (operators, operator)):
                totals.setdefault(key, np.zeros(runs))[run] += event["dur"] / 1e3
            counts[operator] = counts.get(operator, 0) + 1
    medians = {operator: float(np.median(times)) for operator, times in operators.items()}
    return Times(
        float(np.median([duration for _, duration in whole])) / 1e3,
        {name: float(np.median(times)) for name, times in nodes.items()},
        dict(sorted(medians.items(), key=lambda item: -item[1])),
        {operator: round(count / runs) for operator, count in counts.items()},
    )


def read_inputs(path: Path) -> Inputs:
    """The arrays of an ``.npz`` file, each as one run takes it.

    Raises:
        DataError: There is no such file, or it is none.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"cannot read '{path}' as an .npz file with the model's inputs: {error}") from error


def made_up(model: Path, batch_size: int, length: int) -> Inputs:
    """Inputs of the types and shapes that a file wants: ones where they are integers, else normal numbers.

    Args:
        model: The file.
        batch_size: Of a first axis that is not fixed.
        length: Of all other axes that are not fixed.

    Raises:
        MeasurementError: ONNX Runtime cannot load it, or an input is neither a number nor a truth value.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _LOGS_NOTHING
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    with door(MeasurementError, f"ONNX Runtime cannot load '{model.name}'"):
        values = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"]).get_inputs()
    rng = np.random.default_rng(0)
    made: dict[str, npt.NDArray[Any]] = {}
    for value in values:
        kind = _TYPES.get(value.type.removeprefix("tensor(").removesuffix(")"))
        if kind is None:
            raise MeasurementError(f"the input '{value.name}' is a {value.type}; give the inputs with --data FILE.npz")
        shape = [size if isinstance(size, int) else length if i else batch_size for i, size in enumerate(value.shape)]
        array = rng.standard_normal(shape) if issubclass(kind, np.floating) else np.ones(shape)
        made[value.name] = np.asarray(array, kind)
    return made
