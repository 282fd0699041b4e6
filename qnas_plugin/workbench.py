"""Candidate to measured numbers, with neither torch nor data files: slice, calibrate, quantize, write, measure.

A workbench holds all that this takes, so it can be sent to other processes as it is.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from qnas_plugin import __version__, batch_norm, measure, ranges
from qnas_plugin.environment import detect
from qnas_plugin.files import write_bytes
from qnas_plugin.hardware import RuntimeSetting
from qnas_plugin.materialize import Graph, materialize
from qnas_plugin.metrics import REFERENCE, Scorer, standard_error
from qnas_plugin.quantize import Calibrated, calibrate
from qnas_plugin.space import Candidate
from qnas_plugin.study import Evaluation
from qnas_plugin.supernets import Cut
from qnas_plugin.tasks import Batch, Inputs

CALIBRATED_KEPT = 2
"""How many subnets with their ranges are kept in memory: neighbours in a search often share one."""


@dataclass(frozen=True)
class Job:
    """A candidate and what only its supernet knows of it.

    Args:
        cut: What its subnet keeps.
        latency: Milliseconds and their spread, where a table gives them; None is to be measured.
    """

    candidate: Candidate
    cut: Cut
    latency: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Workbench:
    """Builds and measures candidates of one supernet, for one data set and one runtime setting.

    Args:
        graph: The exported supernet.
        calibration: The data of the ranges, encoded.
        search: The data of the accuracy that steers the search; may be encoded at each access.
        scorer: Of these data.
        timing_inputs: What latencies are measured on.
        setting: What latencies are measured at.
        judge: What gives the accuracy of a file in place of search data and scorer: a host's own evaluation.
    """

    graph: Graph
    calibration: Sequence[Batch]
    search: Sequence[Batch]
    scorer: Scorer
    timing_inputs: Inputs
    setting: RuntimeSetting
    judge: Callable[[Path], float] | None = None
    _kept: OrderedDict[str, Calibrated] = field(default_factory=OrderedDict, init=False, repr=False)

    def packed(self) -> Workbench:
        """The same without what it has in memory for later, and with all data encoded: to be sent elsewhere."""
        return replace(self, search=list(self.search))

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the content."""
        arrays = dict(self.timing_inputs) | _named(self.search)
        if self.scorer.metric not in REFERENCE:  # what the FP32 model gives follows from the rest
            arrays["labels"] = np.asarray(self.scorer.targets)
        return _digest(f"{self._source} {self.setting} {self.scorer.metric}".encode(), arrays)[:16]

    @cached_property
    def _source(self) -> str:
        """What all calibration ranges follow from, beside the subnet: the last bit of a float differs between CPUs."""
        known = (self.graph.groups, __version__, version("onnxruntime"), detect().brand, detect().isa)
        graph = self.graph.model.SerializeToString(deterministic=True)
        return _digest(graph + repr(known).encode(), dict(self.graph.weights) | _named(self.calibration))

    def build(self, job: Job, seconds: dict[str, float] | None = None) -> onnx.ModelProto:
        """The candidate's ONNX model, the same bytes each time.

        Args:
            job: The candidate.
            seconds: Gets the wall time of the stages.

        Raises:
            CandidateError: It cannot be built, or its policy did not land.
        """
        seconds = {} if seconds is None else seconds
        calibrated = self._calibrated(job, seconds)
        policy = {group: str(job.candidate[f"precision.{group}"]) for group in calibrated.groups}
        with _stage("quantize", seconds):
            return calibrated.emit(policy)

    def evaluate(self, job: Job, folder: Path, *, threads: int) -> Evaluation:
        """Builds and measures a candidate: accuracy on the search part, latency, size. The file is left in ``folder``.

        Where the latency is measured, the rest of the work keeps clear of measurements of other processes.

        Args:
            job: The candidate.
            folder: For the file.
            threads: Threads that compute the accuracy.

        Raises:
            CandidateError: It cannot be built or measured.
        """
        seconds: dict[str, float] = {}
        path = folder / "model.onnx"
        with measure.between_measurements() if job.latency is None else nullcontext():
            model = self.build(job, seconds)
            with _stage("write", seconds):
                write_bytes(path, model.SerializeToString(deterministic=True))
            with _stage("accuracy", seconds):
                scores = self.scores(path, threads=threads)
        with _stage("latency", seconds):
            latency_ms, spread_ms = job.latency or self._latency(path)
        metrics = {"accuracy": float(scores.mean()), "latency_ms": latency_ms, "size_mb": measure.size_mb(path)}
        spread = {"accuracy": standard_error(scores), "latency_ms": spread_ms}
        return Evaluation(metrics, spread, seconds)

    def scores(self, model: Path, *, threads: int) -> npt.NDArray[np.float64]:
        """The score ``(n,)`` that an ONNX file gets for each example of the search part; what a judge gives is one."""
        if self.judge is not None:
            return np.array([self.judge(model)])
        return measure.scores(model, self.search, self.scorer, threads=threads)

    def _latency(self, model: Path) -> tuple[float, float]:
        latency = measure.latency([model], self.timing_inputs, self.setting, rounds=3)[0]
        return latency.median, latency.spread * latency.median

    def _calibrated(self, job: Job, seconds: dict[str, float]) -> Calibrated:
        groups = {group: nodes for group, nodes in self.graph.groups.items() if f"precision.{group}" in job.candidate}
        cut = (job.cut.skipped, sorted(job.cut.widths.items()), sorted(job.cut.kernels.items()), sorted(groups))
        subnet = hashlib.sha256(repr((self._source, cut)).encode()).hexdigest()
        if subnet in self._kept:
            self._kept.move_to_end(subnet)
            return self._kept[subnet]
        statistics = None
        if batch_norm.needed(self.graph, job.cut):
            with _stage("statistics", seconds):
                statistics = batch_norm.estimate(self.graph, job.cut, self.calibration)
        with _stage("slice", seconds):
            model = materialize(self.graph, job.cut, statistics)
        with _stage("calibrate", seconds):
            known = ranges.load(subnet)
            self._kept[subnet] = (
                calibrate(model, groups, self.calibration) if known is None else Calibrated(model, groups, known)
            )
            if known is None:
                ranges.store(subnet, self._kept[subnet].ranges)
        while len(self._kept) > CALIBRATED_KEPT:
            self._kept.popitem(last=False)
        return self._kept[subnet]


def _named(batches: Sequence[Batch]) -> dict[str, npt.NDArray[Any]]:
    """All arrays of some batches."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for i, batch in enumerate(batches):
        arrays |= {f"{i}/{name}": array for name, array in batch.inputs.items()} | {f"{i}": batch.positions}
    return arrays


def _digest(start: bytes, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256(start)
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@contextmanager
def _stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
