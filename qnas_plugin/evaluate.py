"""A loaded supernet and its data to measured candidates: exports once, and has a workbench do the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch

from qnas_plugin import measure
from qnas_plugin.errors import MaterializeError
from qnas_plugin.files import write_parts
from qnas_plugin.hardware import RuntimeSetting, detect
from qnas_plugin.latency_table import Estimator
from qnas_plugin.materialize import OUTPUT, export, subnet
from qnas_plugin.network import Network
from qnas_plugin.space import Candidate
from qnas_plugin.study import Evaluation
from qnas_plugin.supernets import Supernet
from qnas_plugin.tasks import Dataset, Examples, Inputs, Processor
from qnas_plugin.workbench import Job, Workbench

Timer = Callable[[Sequence[Path], Inputs, RuntimeSetting, int], list[measure.Latency]]
"""Measures models on the same inputs at a setting, in so many rounds."""

TOLERANCE = 1e-4
BATCH = 32


class Evaluator:
    """Builds and measures candidates of one supernet, for one data set and one runtime setting.

    Args:
        supernet: With its weights.
        dataset: Its calibration part gives the ranges, its search part the accuracy.
        processor: Turns examples into inputs.
        setting: What latencies are measured at.
        estimator: Gives the latencies of the search from a table; None measures them.
        here: Whether this machine is the SKU, so that verified latencies can be measured.
        timer: Measures ONNX files on a machine that is the SKU, in so many rounds, where this one is not.

    Attributes:
        timed: Whether verified latencies are measured; otherwise they are the table's.

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
        timer: Timer | None = None,
    ) -> None:
        assert here or timer is not None or estimator is not None
        self.supernet, self.dataset, self.processor, self.setting = supernet, dataset, processor, setting
        self.estimator, self.timer = estimator, None if here else timer
        self.timed = here or timer is not None
        calibration = list(processor.batches(dataset.calibration.inputs, 8))
        self.workbench = Workbench(
            export(supernet, calibration[0].inputs),
            calibration,
            processor.batches(dataset.search.inputs, BATCH),
            dataset.search.labels,
            processor.timing_inputs(setting.batch_size, setting.sequence_length),
            setting,
        )

    def job(self, candidate: Candidate) -> Job:
        """What a workbench is told of a candidate."""
        latency = None
        if self.estimator is not None:
            latency_ms = self.estimate(candidate)
            latency = (latency_ms, self.estimator.table.fidelity.errors.mean_error * latency_ms)
        return Job(candidate, self.supernet.cut(candidate), latency)

    def build(self, candidate: Candidate) -> onnx.ModelProto:
        """The candidate's ONNX model, the same bytes each time.

        Raises:
            CandidateError: It cannot be built, or its policy did not land.
        """
        return self._network(candidate).whole()

    def write(self, candidate: Candidate, path: Path) -> None:
        """Builds a candidate and writes its file, the same bytes each time.

        Raises:
            CandidateError: It cannot be built, or its policy did not land.
            OutputError: The file cannot be written.
        """
        write_parts(path, self._network(candidate).parts())

    def _network(self, candidate: Candidate) -> Network:
        return self.workbench.build(self.job(candidate), threads=detect().usable_cores)

    def evaluate(self, candidate: Candidate, folder: Path) -> Evaluation:
        """Builds and measures a candidate: accuracy on the search part, latency, size. The file is left in ``folder``.

        With an estimator, the latency is the table's, and its spread the table's mean error.

        Raises:
            CandidateError: It cannot be built or measured.
        """
        return self.workbench.evaluate(self.job(candidate), folder, threads=detect().usable_cores)

    def predict(self, model: Path, examples: Examples) -> npt.NDArray[np.int64]:
        """The classes ``(n,)`` that an ONNX file predicts, on all cores."""
        searched = examples is self.dataset.search
        batches = self.workbench.search if searched else self.processor.batches(examples.inputs, BATCH)
        return measure.predict(model, batches, threads=detect().usable_cores)

    def latency(self, models: Sequence[Path], rounds: int = 3) -> list[measure.Latency]:
        """The latencies of ONNX files at the evaluator's setting, measured in turns.

        Raises:
            MeasurementError: A model cannot be run.
            ClusterError: No worker measured them.
        """
        if self.timer is not None:
            return self.timer(models, self.workbench.timing_inputs, self.setting, rounds)
        return measure.latency(models, self.workbench.timing_inputs, self.setting, rounds=rounds)

    def accuracy(self, candidate: Candidate, folder: Path) -> float:
        """Builds a candidate and measures its accuracy on the search part alone.

        Raises:
            CandidateError: It cannot be built or run.
        """
        path = folder / "model.onnx"
        self.write(candidate, path)
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
        inputs = self.workbench.calibration[0].inputs
        with subnet(self.workbench.graph, cut).running(threads=detect().usable_cores) as session:
            (got,) = session.run([OUTPUT], {value.name: inputs[value.name] for value in session.get_inputs()})
        self.supernet.activate(cut)
        with torch.no_grad():
            tensors = {name: torch.as_tensor(array) for name, array in inputs.items()}
            expected = self.supernet.model(**tensors).logits.numpy()
        self.supernet.activate(None)
        difference = float(np.abs(got - expected).max())
        if not difference <= TOLERANCE:
            raise MaterializeError(f"the ONNX graph differs from torch by {difference:.2g}, allowed is {TOLERANCE:g}")
