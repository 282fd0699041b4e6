"""Candidate to measured numbers: slice, calibrate, quantize, write one ONNX file, measure everything on that file."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch

from qnas_plugin import measure
from qnas_plugin.errors import MaterializeError
from qnas_plugin.files import write_bytes
from qnas_plugin.hardware import RuntimeSetting, detect
from qnas_plugin.latency_table import Estimator
from qnas_plugin.materialize import export, materialize
from qnas_plugin.quantize import Calibrated, calibrate
from qnas_plugin.space import Candidate, Precision, Value
from qnas_plugin.study import Evaluation
from qnas_plugin.supernets import Supernet
from qnas_plugin.tasks import Dataset, Examples, Processor

TOLERANCE = 1e-4
BATCH = 32
CALIBRATED_KEPT = 2
"""How many subnets with their ranges are kept in memory: neighbours in a search often share one."""


class Evaluator:
    """Builds and measures candidates of one supernet, for one data set and one runtime setting.

    Args:
        supernet: With its weights.
        dataset: Its calibration part gives the ranges, its search part the accuracy.
        processor: Turns examples into inputs.
        setting: What latencies are measured at.
        estimator: Gives the latencies of the search from a table; None measures them.
        here: Whether this machine is the SKU, so that verified latencies can be measured.

    Raises:
        MaterializeError: The exported graph differs from torch by more than 1e-4 on a real batch.
    """

    def __init__(
        self,
        supernet: Supernet,
        dataset: Dataset,
        processor: Processor,
        setting: RuntimeSetting,
        *,
        estimator: Estimator | None = None,
        here: bool = True,
    ) -> None:
        assert here or estimator is not None
        self.supernet, self.dataset, self.processor, self.setting = supernet, dataset, processor, setting
        self.estimator, self.here = estimator, here
        self._calibration = list(processor.batches(dataset.calibration.inputs, 8))
        self._search = processor.batches(dataset.search.inputs, BATCH)
        self._graph = export(supernet, self._calibration[0].inputs)
        self._kept: OrderedDict[tuple[tuple[str, Value], ...], Calibrated] = OrderedDict()
        self.timing_inputs = processor.timing_inputs(setting.batch_size, setting.sequence_length)

    def build(self, candidate: Candidate, seconds: dict[str, float] | None = None) -> onnx.ModelProto:
        """The candidate's ONNX model, the same bytes each time.

        Args:
            candidate: Of the supernet's space.
            seconds: Gets the wall time of the stages.

        Raises:
            CandidateError: It cannot be built, or its policy did not land.
        """
        seconds = {} if seconds is None else seconds
        calibrated = self._calibrated(candidate, seconds)
        policy = {group: Precision(str(candidate[f"precision.{group}"])) for group in calibrated.groups}
        with _stage("quantize", seconds):
            return calibrated.emit(policy)

    def evaluate(self, candidate: Candidate, folder: Path) -> Evaluation:
        """Builds and measures a candidate: accuracy on the search part, latency, size. The file is left in ``folder``.

        With an estimator, the latency is the table's, and its spread the table's mean error.

        Raises:
            CandidateError: It cannot be built or measured.
        """
        seconds: dict[str, float] = {}
        path = folder / "model.onnx"
        model = self.build(candidate, seconds)
        with _stage("write", seconds):
            write_bytes(path, model.SerializeToString(deterministic=True))
        with _stage("accuracy", seconds):
            accuracy = measure.accuracy(self.predict(path, self.dataset.search), self.dataset.search.labels)
        with _stage("latency", seconds):
            if self.estimator is None:
                latency = self.latency([path])[0]
                latency_ms, differs = latency.median, latency.spread
            else:
                latency_ms, differs = self.estimate(candidate), self.estimator.table.fidelity.errors.mean_error
        metrics = {"accuracy": accuracy, "latency_ms": latency_ms, "size_mb": measure.size_mb(path)}
        spread = {
            "accuracy": standard_error(accuracy, len(self.dataset.search)),
            "latency_ms": differs * latency_ms,
        }
        return Evaluation(metrics, spread, seconds)

    def predict(self, model: Path, examples: Examples) -> npt.NDArray[np.int64]:
        """The classes ``(n,)`` that an ONNX file predicts, on all cores."""
        batches = self._search if examples is self.dataset.search else self.processor.batches(examples.inputs, BATCH)
        return measure.predict(model, batches, threads=detect().usable_cores)

    def latency(self, models: Sequence[Path], rounds: int = 3) -> list[measure.Latency]:
        """The latencies of ONNX files at the evaluator's setting, measured in turns."""
        return measure.latency(models, self.timing_inputs, self.setting, rounds=rounds)

    def accuracy(self, candidate: Candidate, folder: Path) -> float:
        """Builds a candidate and measures its accuracy on the search part alone.

        Raises:
            CandidateError: It cannot be built or run.
        """
        path = folder / "model.onnx"
        write_bytes(path, self.build(candidate).SerializeToString(deterministic=True))
        return measure.accuracy(self.predict(path, self.dataset.search), self.dataset.search.labels)

    def estimate(self, candidate: Candidate) -> float:
        """The latency of a candidate in milliseconds, from the table."""
        assert self.estimator is not None
        return float(self.estimator(self.supernet.space.encode(candidate)[None])[0])

    def check(self, candidate: Candidate) -> None:
        """Compares a subnet's FP32 graph with torch on a real batch.

        Raises:
            MaterializeError: They differ by more than 1e-4.
        """
        cut = self.supernet.cut(candidate)
        inputs = self._calibration[0].inputs
        got = measure.logits(materialize(self._graph, cut).SerializeToString(), inputs)
        self.supernet.activate(cut)
        with torch.no_grad():
            tensors = {name: torch.as_tensor(array) for name, array in inputs.items()}
            expected = self.supernet.model(**tensors).logits.numpy()
        self.supernet.activate(None)
        difference = float(np.abs(got - expected).max())
        if not difference <= TOLERANCE:
            raise MaterializeError(f"the ONNX graph differs from torch by {difference:.2g}, allowed is {TOLERANCE:g}")

    def _calibrated(self, candidate: Candidate, seconds: dict[str, float]) -> Calibrated:
        subnet = self.supernet.space.architecture(candidate)
        if subnet in self._kept:
            self._kept.move_to_end(subnet)
            return self._kept[subnet]
        with _stage("slice", seconds):
            model = materialize(self._graph, self.supernet.cut(candidate))
        groups = {group: nodes for group, nodes in self._graph.groups.items() if f"precision.{group}" in candidate}
        with _stage("calibrate", seconds):
            self._kept[subnet] = calibrate(model, groups, self._calibration)
        while len(self._kept) > CALIBRATED_KEPT:
            self._kept.popitem(last=False)
        return self._kept[subnet]


def standard_error(accuracy: float, count: int) -> float:
    """Of a share of ``count`` examples."""
    return float(np.sqrt(accuracy * (1 - accuracy) / count))


@contextmanager
def _stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
