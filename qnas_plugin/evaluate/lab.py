"""A loaded network and its data to measured candidates: takes its graph once, and has a bench do the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from qnas_plugin.build.graph import Graph
from qnas_plugin.build.shared_model import Outline
from qnas_plugin.build.slice import subnet
from qnas_plugin.data import Batch, Dataset, Examples, Inputs, Processor
from qnas_plugin.errors import MaterializeError
from qnas_plugin.evaluate.bench import Bench, Job, accuracy_of
from qnas_plugin.files import write_parts
from qnas_plugin.hardware import HardwareProfile, RuntimeSetting
from qnas_plugin.hardware.machine import detect
from qnas_plugin.hardware.turns import between_measurements
from qnas_plugin.latency.table import Estimator
from qnas_plugin.measure import metrics
from qnas_plugin.measure.accuracy import Runs, run, scores
from qnas_plugin.measure.costs import Costs
from qnas_plugin.measure.latency import Latency, time_models
from qnas_plugin.measure.metrics import Scored, Scorer
from qnas_plugin.measure.metrics.metric import Metric
from qnas_plugin.measure.metrics.references import References
from qnas_plugin.quantizers import DEFAULT, kernels
from qnas_plugin.quantizers.outliers import Outlier
from qnas_plugin.space import Candidate
from qnas_plugin.study.evaluation import Evaluation
from qnas_plugin.supernets import Network

Timer = Callable[[Sequence[Path], Inputs, RuntimeSetting, int], list[Latency]]
"""Measures models on the same inputs at a setting, in so many rounds."""

TOLERANCE = 1e-4
BATCH = 32


@dataclass(frozen=True, eq=False)
class Lab:
    """All that a request names, loaded: builds and measures candidates of one network, for one data set and setting.

    Args:
        network: A supernet with its weights, or any other network.
        dataset: Its calibration part gives the ranges, its search part the accuracy.
        processor: Turns examples into inputs.
        profile: The SKU that latencies are of.
        setting: What latencies are measured at; with the sequence length or the resolution that timed inputs have.
        estimator: Gives the latencies of the search from a table; None measures them.
        here: Whether this machine is the SKU, so that verified latencies can be measured.
        timer: Measures ONNX files on a machine that is the SKU, in so many rounds, where this one is not.
        judge: What gives the accuracy of a file, in place of all parts of the data.
        reference: What each candidate is timed in turns with; None times each alone.
        quantizer: The name of what quantizes.
        identity: What makes trials comparable, by name.
        notes: What speaks against the table, where the user insisted on it.
        computes: The objectives and limited metrics that follow from candidates alone.
    """

    network: Network
    dataset: Dataset
    processor: Processor
    profile: HardwareProfile
    setting: RuntimeSetting
    estimator: Estimator | None = None
    here: bool = True
    timer: Timer | None = None
    judge: Callable[[Path], float] | None = None
    reference: Candidate | None = None
    quantizer: str = DEFAULT
    identity: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    computes: tuple[str, ...] = ()
    _parts: dict[str, tuple[Sequence[Batch], Scorer]] = field(default_factory=dict, init=False, repr=False)

    @property
    def timed(self) -> bool:
        """Whether verified latencies are measured; otherwise they are the table's."""
        return self.here or self.timer is not None

    @property
    def metric(self) -> Metric:
        """What stands as accuracy."""
        return metrics.load(self.dataset.metric)

    @cached_property
    def graph(self) -> Graph:
        """The graph of the whole network.

        Raises:
            MaterializeError: It has another form than expected.
        """
        return self.network.graph(self._calibration[0].inputs)

    @cached_property
    def bench(self) -> Bench:
        """The part of this that is sent to workers.

        Raises:
            MaterializeError: The graph has another form than expected.
            MeasurementError: The metric needs outputs of the FP32 model, and it cannot be run.
        """
        search = self.processor.batches(self.dataset.search.inputs, BATCH)
        timed, measured = self.reference, self.estimator is None
        return Bench(
            self.graph,
            self._calibration,
            search,
            self._scorer(self.dataset.search, search),
            self._timing_inputs,
            self.setting,
            self.judge,
            self._job(timed, None) if timed is not None and measured else None,
            self.quantizer,
        )

    @cached_property
    def _calibration(self) -> list[Batch]:
        return list(self.processor.batches(self.dataset.calibration.inputs, 8))

    def job(self, candidate: Candidate) -> Job:
        """What a bench is told of a candidate."""
        latency = None
        if self.estimator is not None:
            latency_ms = self.estimate(candidate)
            latency = (latency_ms, self.estimator.table.fidelity.errors.mean_error * latency_ms)
        return self._job(candidate, latency)

    def _job(self, candidate: Candidate, latency: tuple[float, float] | None) -> Job:
        policy = self.network.space.policy(candidate)
        return Job(candidate, self.network.cut(candidate), policy, latency, self.computed(candidate))

    def computed(self, candidate: Candidate) -> Mapping[str, float]:
        """Those metrics of ``computes`` that follow from the candidate; its size is that of the file."""
        genes = self.network.space.encode(candidate)[None]
        return {name: float(self.costs.functions[name](genes)[0]) for name in self.computes if name != "size_mb"}

    @cached_property
    def costs(self) -> Costs:
        """The metrics that follow from candidates alone, of one run on the inputs that latencies are measured on.

        Raises:
            MaterializeError: The graph has another form than expected.
        """
        return Costs(self.network, self.graph, self._timing_inputs, self.quantizer)

    @cached_property
    def _timing_inputs(self) -> Inputs:
        setting, examples = self.setting, self.dataset.calibration.inputs
        return self.processor.timing_inputs(setting.batch_size, setting.sequence_length, examples)

    def build(self, candidate: Candidate) -> onnx.ModelProto:
        """The candidate's ONNX model, the same bytes each time.

        Raises:
            CandidateError: It cannot be built, or its policy did not land.
        """
        return self._outline(candidate).whole()

    def write(self, candidate: Candidate, path: Path) -> None:
        """Builds a candidate and writes its file, and a large one's weights beside it; the same bytes each time.

        Raises:
            CandidateError: It cannot be built, or its policy did not land.
            OutputError: The file cannot be written.
        """
        for name, parts in self._outline(candidate).files(path.name):
            write_parts(path.parent / name, parts)

    def _outline(self, candidate: Candidate) -> Outline:
        with between_measurements():
            return self.bench.build(self.job(candidate), threads=detect().usable_cores)

    def evaluate(self, candidate: Candidate, folder: Path) -> Evaluation:
        """Builds and measures a candidate: accuracy on the search part, latency, size. The file is left in ``folder``.

        With an estimator, the latency is the table's, and its spread the table's mean error.

        Raises:
            CandidateError: It cannot be built or measured.
        """
        return self.bench.evaluate(self.job(candidate), folder, threads=detect().usable_cores)

    def scores(self, model: Path, part: Literal["search", "selection", "report"]) -> Scored:
        """What an ONNX file gets for each example of a part, on all cores."""
        threads = detect().usable_cores
        with between_measurements():
            if part == "search" or self.bench.judge is not None:
                return self.bench.scores(model, threads=threads)
            if part not in self._parts:
                examples: Examples = getattr(self.dataset, part)
                batches = self.processor.batches(examples.inputs, BATCH)
                self._parts[part] = batches, self._scorer(examples, batches)
            batches, scorer = self._parts[part]
            return scores(model, batches, scorer, threads=threads)

    def kernels(self, candidate: Candidate, model: Path) -> kernels.Kernels:
        """What the precision groups of a candidate's file run as.

        Raises:
            MeasurementError: ONNX Runtime cannot run the file.
        """
        policy = self.network.space.policy(candidate)
        groups = {group: names for group, names in self.graph.groups.items() if group in policy}
        return kernels.executed(model, groups)

    def latency(self, models: Sequence[Path], rounds: int = 3) -> list[Latency]:
        """The latencies of ONNX files at the lab's setting, measured in turns.

        Raises:
            MeasurementError: A model cannot be run.
            ClusterError: No worker measured them.
        """
        if self.timer is not None and not self.here:
            return self.timer(models, self.bench.timing_inputs, self.setting, rounds)
        return time_models(models, self.bench.timing_inputs, self.setting, rounds=rounds)

    def accuracy(self, candidate: Candidate, folder: Path) -> Evaluation:
        """Builds a candidate and measures its accuracy on the search part alone.

        Raises:
            CandidateError: It cannot be built or run.
        """
        path = folder / "model.onnx"
        self.write(candidate, path)
        found = accuracy_of(self.scores(path, "search"))
        return replace(found, metrics={**found.metrics, **self.computed(candidate)})

    def estimate(self, candidate: Candidate) -> float:
        """The latency of a candidate in milliseconds, from the table."""
        assert self.estimator is not None
        return float(self.estimator(self.network.space.encode(candidate)[None])[0])

    def outliers(self, candidate: Candidate) -> list[Outlier]:
        """The tensors of a candidate's subnet that INT8 cannot hold.

        Raises:
            CandidateError: It cannot be built.
        """
        return self.bench.outliers(self.job(candidate), threads=detect().usable_cores)

    def check(self, candidate: Candidate) -> None:
        """Compares a subnet's FP32 graph with what the network itself gives on a real batch.

        Raises:
            MaterializeError: They differ by more than 1e-4, or that share of the largest output where it is above 1; or
                the network gives a number that is not finite.
        """
        cut, batch = self.network.cut(candidate), self.bench.calibration[0]
        ((_, got),) = run(subnet(self.graph, cut), [batch], threads=detect().usable_cores)
        for name, expected in self.network.outputs(candidate, batch.inputs).items():
            if isinstance(expected, np.ndarray) and (bad := _not_finite(expected)) is not None:
                odd = [f"'{name}'" for name, values in batch.inputs.items() if _not_finite(values) is not None]
                source = f", as the data has in {' and '.join(odd)}; it" if odd else ", which"
                raise MaterializeError(
                    f"the model itself gives {bad} in its output '{name}'{source} must be finite; mask with a number "
                    "like -1e4 instead"
                )
            _compare(name, got[name], expected)

    def _scorer(self, examples: Examples, batches: Sequence[Batch]) -> Scorer:
        """The metric with the labels, or with what the whole FP32 network gives."""
        if not self.metric.of_reference:
            return Scorer(self.dataset.metric, examples.labels)
        whole = self.network.cut(self.network.space.corners["largest-fp32"])
        found = References(Runs(self.graph, whole, batches, detect().usable_cores))
        with between_measurements():
            found.make()
        return Scorer(self.dataset.metric, found)


def _not_finite(values: npt.NDArray[Any]) -> float | None:
    """The first value that is NaN or infinite; None where none is, or there are no floats."""
    if values.dtype.kind != "f":
        return None
    odd = values[~np.isfinite(values)]
    return float(odd.flat[0]) if odd.size else None


def _compare(name: str, got: Any, expected: Any) -> None:
    """Compares an output of a graph with what it should be: an array, or a sequence or map of such.

    Raises:
        MaterializeError: They differ.
    """
    if isinstance(expected, list | dict):
        pairs = expected.items() if isinstance(expected, dict) else enumerate(expected)
        if len(got) != len(expected):
            raise MaterializeError(f"the output '{name}' of the ONNX graph has {len(got)} parts, not {len(expected)}")
        for key, part in pairs:
            _compare(name, got[key], part)
        return
    got, expected = np.asarray(got), np.asarray(expected)
    if got.shape != expected.shape:
        raise MaterializeError(
            f"the output '{name}' of the ONNX graph has shape {got.shape}, the model gives {expected.shape}"
        )
    if expected.dtype.kind not in "fc":
        if not np.array_equal(got, expected):
            raise MaterializeError(f"the output '{name}' of the ONNX graph is not what the model gives")
        return
    usual = np.isfinite(expected)
    if not np.array_equal(got[~usual], expected[~usual], equal_nan=True):
        raise MaterializeError(f"the output '{name}' of the ONNX graph is infinite where the model's is not")
    difference = float(np.abs(np.subtract(got[usual], expected[usual], dtype=np.float64)).max(initial=0.0))
    allowed = TOLERANCE * max(1.0, float(np.abs(expected[usual]).max(initial=0.0)))
    if not difference <= allowed:
        raise MaterializeError(
            f"the output '{name}' of the ONNX graph differs by {difference:.2g} from what the model gives, "
            f"allowed is {allowed:.2g}"
        )
