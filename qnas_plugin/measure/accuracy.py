"""An ONNX file to its outputs, scores and size: everything is measured on the file that ships."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from qnas_plugin.build.graph import Cut, Graph
from qnas_plugin.build.shared_model import BESIDE, Outline, is_large
from qnas_plugin.build.slice import subnet
from qnas_plugin.data import Batch
from qnas_plugin.errors import MeasurementError, UsageError, door
from qnas_plugin.measure.metrics import Scored, Scorer
from qnas_plugin.measure.metrics.metric import Outputs
from qnas_plugin.runtimes import onnxruntime as runtime

SILENT_SECONDS = 900.0
"""How long one run of a model, or loading it, may take."""


def scores(model: Path, batches: Iterable[Batch], scorer: Scorer, *, threads: int) -> Scored:
    """The scores of all examples, in the order of the data set.

    Raises:
        MeasurementError: The model cannot be run on the batches, or gives a number that is not finite, or the metric
            is not finite.
        UsageError: The metric does not fit the outputs.
    """
    positions: list[npt.NDArray[np.int64]] = []
    parts: list[npt.NDArray[np.float64]] = []
    soft: list[npt.NDArray[np.float64]] = []
    for batch, outputs in run(model, batches, threads=threads):
        for name, values in outputs.items():
            if isinstance(values, np.ndarray) and values.dtype.kind == "f" and not np.isfinite(values).all():
                raise MeasurementError(f"'{model.name}' gives {name} that are not finite")
        positions.append(batch.positions)
        parts.append(scorer.statistics(outputs, batch.positions))
        if (probabilities := scorer.soft(outputs, batch.positions)) is not None:
            soft.append(probabilities)
    places = np.argsort(np.concatenate(positions))
    if len({part.shape[1] for part in parts}) > 1:
        raise UsageError(f"the metric '{scorer.metric}' gives other numbers of statistics for some examples")
    found = scorer.scores(np.concatenate(parts)[places])
    if not np.isfinite(found).all():
        raise MeasurementError(f"the {scorer.metric} of '{model.name}' is not finite")
    return Scored(found, np.concatenate(soft)[places] if soft else None)


def run(model: Path | Outline, batches: Iterable[Batch], *, threads: int) -> Iterator[tuple[Batch, Outputs]]:
    """Each batch with what an ONNX file, or a model in memory, gives for it.

    Raises:
        MeasurementError: The model cannot be run on the batches.
    """
    name = "the model" if isinstance(model, Outline) else f"'{model.name}'"
    with ExitStack() as stack:
        with _running(name):
            if isinstance(model, Outline):
                session = stack.enter_context(model.running(threads=threads))
            else:  # threads sleep while they wait: other work shares the machine, and nobody looks at the time
                session = runtime.session(model, threads, spinning=False, prepack=not is_large(members_bytes([model])))
            names = [output.name for output in session.get_outputs()]
        for batch in batches:
            with _running(name), _limited(name) as options:
                values = session.run(names, runtime.feed(session, batch.inputs), options)
            yield batch, dict(zip(names, values, strict=True))


@dataclass(frozen=True, eq=False)
class Runs:
    """What a subnet gives in FP32 for some batches, as `measure.metrics.references` takes it.

    Args:
        graph: Of the network.
        cut: What the subnet keeps.
        batches: All of a part of the data.
        threads: That compute; how many decides the last bits.
    """

    graph: Graph
    cut: Cut
    batches: Sequence[Batch]
    threads: int

    def __call__(self) -> Iterator[tuple[npt.NDArray[np.int64], Outputs]]:
        for batch, outputs in run(subnet(self.graph, self.cut), self.batches, threads=self.threads):
            yield batch.positions, outputs


def size_mb(model: Path) -> float:
    """Megabytes (10^6 bytes) of an ONNX file and of the files in which it keeps weights.

    Raises:
        MeasurementError: A file is missing, or it is not ONNX.
    """
    with door(MeasurementError, f"cannot take the size of '{model.name}'"):
        return sum(path.stat().st_size for path in files(model)) / 1e6


def files(model: Path) -> list[Path]:
    """An ONNX file and, before it, the files beside it in which it keeps weights.

    Raises:
        MeasurementError: It is not ONNX.
    """
    import onnx

    with door(MeasurementError, f"cannot read '{model.name}' as an ONNX model"):
        graph = onnx.load(str(model), load_external_data=False).graph
    beside = {
        entry.value
        for tensor in graph.initializer
        for entry in tensor.external_data
        if tensor.data_location == onnx.TensorProto.EXTERNAL and entry.key == "location"
    }
    return [*(model.parent / name for name in sorted(beside)), model]


def members_bytes(models: Sequence[Path]) -> int:
    """Of members and the weights beside them. One that is missing is not judged here: what loads it will tell."""
    found = [path for model in models for path in (model, model.with_name(f"{model.name}{BESIDE}"))]
    return sum(path.stat().st_size for path in found if path.exists())


@contextlib.contextmanager
def _running(name: str) -> Iterator[None]:
    with door(MeasurementError, f"cannot run {name}"):
        yield


@contextlib.contextmanager
def _limited(name: str) -> Iterator[onnxruntime.RunOptions]:
    """Options that end a run when it takes too long: between two nodes, also those of an endless loop."""
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    timer = threading.Timer(SILENT_SECONDS, setattr, [options, "terminate", True])
    timer.daemon = True
    timer.start()
    try:
        yield options
    except Exception as error:
        if options.terminate:
            raise MeasurementError(f"{name} ran for more than {SILENT_SECONDS:g} s on one batch") from error
        raise
    finally:
        timer.cancel()
