"""Candidate to measured numbers, with neither torch nor data files: slice, calibrate, quantize, write, measure.

A bench holds all that this takes, so it can be sent to other processes as it is.
"""

from __future__ import annotations

import hashlib
import pickle
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qnas_plugin._version import __version__
from qnas_plugin.build import batch_norm
from qnas_plugin.build.graph import Cut, Graph
from qnas_plugin.build.observe import Ranges
from qnas_plugin.build.shared_model import Outline
from qnas_plugin.build.slice import subnet
from qnas_plugin.data import Batch, Inputs
from qnas_plugin.errors import OutputError, UsageError, reason
from qnas_plugin.hardware import RuntimeSetting
from qnas_plugin.hardware.machine import described, detect
from qnas_plugin.hardware.turns import between_measurements
from qnas_plugin.measure.accuracy import Runs, scores, size_mb
from qnas_plugin.measure.belief import RATIO, SOFT, Halves
from qnas_plugin.measure.latency import Latency, disturbed, time_models
from qnas_plugin.measure.metrics import Scored, Scorer, standard_error
from qnas_plugin.measure.metrics.references import References
from qnas_plugin.quantizers import DEFAULT, Groups, Policy, range_cache
from qnas_plugin.quantizers.formats import CHANNELS, format_of
from qnas_plugin.quantizers.outliers import Outlier, find
from qnas_plugin.quantizers.quantize import Calibrated, load, observe
from qnas_plugin.quantizers.weights import Kept
from qnas_plugin.runtimes import onnxruntime as runtime
from qnas_plugin.space import Candidate
from qnas_plugin.study.evaluation import Evaluation

CALIBRATED_KEPT = 2
"""How many subnets with their ranges are kept in memory: neighbours in a search often share one."""

LATENCY_SECONDS = 1.0
"""A trial's measured latency takes at least so long, the reference's share included."""

CORE_SHARE = "core_share"
"""The metric of a trial during which something else ran on its core: the part of the time that it had it for itself."""

SHARE = 2
"""Quantized weights of several subnets are kept in memory, up to the bytes of the supernet's FP32 weights over this."""


@dataclass(frozen=True)
class Job:
    """A candidate and what only its supernet knows of it.

    Args:
        cut: What its subnet keeps.
        policy: The format of each precision group that it has.
        latency: Milliseconds and their spread, where a table gives them; None is to be measured.
        computed: Metrics that follow from the candidate.
    """

    candidate: Candidate
    cut: Cut
    policy: Policy
    latency: tuple[float, float] | None = None
    computed: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Bench:
    """Builds and measures candidates of one supernet, for one data set and one runtime setting.

    Args:
        graph: The exported supernet.
        calibration: The data of the ranges, encoded.
        search: The data of the accuracy that steers the search; may be encoded at each access.
        scorer: Of these data.
        timing_inputs: What latencies are measured on.
        setting: What latencies are measured at.
        judge: What gives the accuracy of a file in place of search data and scorer: a host's own evaluation.
        reference: What each candidate is timed in turns with, so that latencies of a search can be compared.
        quantizer: The name of what quantizes.
    """

    graph: Graph
    calibration: Sequence[Batch]
    search: Sequence[Batch]
    scorer: Scorer
    timing_inputs: Inputs
    setting: RuntimeSetting
    judge: Callable[[Path], float] | None = None
    reference: Job | None = None
    quantizer: str = DEFAULT
    _kept: OrderedDict[str, Calibrated] = field(default_factory=OrderedDict, init=False, repr=False)
    _quantized: Kept = field(default_factory=dict, init=False, repr=False)

    def packed(self) -> bytes:
        """The same without what it has in memory for later, and with all data encoded: to be sent elsewhere.

        Raises:
            UsageError: Its judge or its metric cannot be sent.
        """
        check_sendable(self.judge, self.scorer.metric)
        search, targets = list(self.search), self.scorer.targets
        if isinstance(targets, References) and isinstance(targets.runs, Runs):
            targets = References(replace(targets.runs, batches=search))
        return pickle.dumps(replace(self, search=search, scorer=replace(self.scorer, targets=targets)))

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the content."""
        arrays = dict(self.timing_inputs) | _named(self.search)
        if not isinstance(self.scorer.targets, References):  # what the FP32 model gives follows from the rest
            arrays["labels"] = np.asarray(self.scorer.targets)
        return _digest(f"{self._source} {self.setting} {self.scorer.metric}".encode(), arrays)[:16]

    @cached_property
    def _source(self) -> str:
        """What all calibration ranges follow from, beside the subnet: the last bit of a float differs between CPUs."""
        quantizer = self.quantizer, load(self.quantizer).version()
        known = (self.graph.groups, __version__, runtime.version(), *quantizer, detect().brand, detect().isa)
        graph = self.graph.model.SerializeToString(deterministic=True)
        return _digest(graph + repr(known).encode(), dict(self.graph.weights) | _named(self.calibration))

    def build(self, job: Job, seconds: dict[str, float] | None = None, *, threads: int = 1) -> Outline:
        """The candidate's ONNX model, the same bytes each time.

        Args:
            job: The candidate.
            seconds: Gets the wall time of the stages.
            threads: Threads that calibrate.

        Raises:
            CandidateError: It cannot be built, or its policy did not land.
        """
        seconds = {} if seconds is None else seconds
        groups, policy = self._groups(job), job.policy
        calibrated = self._calibrated(job.cut, groups, policy, seconds, threads)
        with _stage("quantize", seconds):
            outline = calibrated.outline(policy)
            self._bound()
        return outline

    def outliers(self, job: Job, *, threads: int = 1) -> list[Outlier]:
        """The tensors of a candidate's subnet that INT8 cannot hold, by the ranges that all its policies have.

        Raises:
            CandidateError: It cannot be built.
        """
        groups, policy = self._groups(job), job.policy
        calibrated = self._calibrated(job.cut, groups, policy, {}, threads)
        return find(Outline.of(calibrated.model), groups, calibrated.ranges, self.calibration[0], threads=threads)

    def evaluate(self, job: Job, folder: Path, *, threads: int) -> Evaluation:
        """Builds and measures a candidate: accuracy on the search part, latency, size. The file is left in ``folder``.

        All but the measuring keeps clear of measurements of other processes.

        Args:
            job: The candidate.
            folder: For the file.
            threads: Threads that calibrate and that compute the accuracy.

        Raises:
            CandidateError: It cannot be built or measured.
            OutputError: The disk is full.
        """
        seconds: dict[str, float] = {}
        path = folder / "model.onnx"
        with between_measurements():
            outline = self.build(job, seconds, threads=threads)
            with _stage("write", seconds):
                write(path, outline)
            del outline
            with _stage("accuracy", seconds):
                scored = self.scores(path, threads=threads)
        found = accuracy_of(scored)
        with _stage("latency", seconds):
            timed, spread_ms = self._latency(path, folder, threads) if job.latency is None else _of_table(job.latency)
        metrics = {**found.metrics, **timed, **job.computed, "size_mb": size_mb(path)}
        spread = {**found.spread, "latency_ms": spread_ms}
        environment = dict(described()) | {"setting": str(self.setting)}
        return replace(found, metrics=metrics, spread=spread, seconds=seconds, environment=environment)

    def scores(self, model: Path, *, threads: int) -> Scored:
        """What an ONNX file gets for each example of the search part; what a judge gives stands for one."""
        if self.judge is not None:
            return Scored(np.array([self.judge(model)]))
        return scores(model, self.search, self.scorer, threads=threads)

    def _groups(self, job: Job) -> Groups:
        """The precision groups that a candidate has, in the order of the graph."""
        return {group: nodes for group, nodes in self.graph.groups.items() if group in job.policy}

    def _latency(self, model: Path, folder: Path, threads: int) -> tuple[dict[str, float], float]:
        """The latency in turns with the reference; once more, where something else ran on the model's core."""
        models = [model]
        if self.reference is not None:
            models.append(folder / "reference.onnx")
            if not models[1].exists():
                with between_measurements():
                    write(models[1], self.build(self.reference, threads=threads))

        def timed() -> list[Latency]:
            return time_models(
                models, self.timing_inputs, self.setting, rounds=3, minimum_seconds=LATENCY_SECONDS / len(models)
            )

        latencies = timed()
        if disturbed(latencies, self.setting):
            latencies = max(latencies, timed(), key=lambda each: min(latency.core_share for latency in each))
        own = latencies[0]
        found = {"latency_ms": own.median}
        if self.reference is not None:
            found[RATIO] = latencies[1].median / own.median
        if disturbed(latencies, self.setting):
            found[CORE_SHARE] = min(latency.core_share for latency in latencies)
        return found, own.spread * own.median

    def _calibrated(
        self, cut: Cut, groups: Groups, policy: Policy, seconds: dict[str, float], threads: int
    ) -> Calibrated:
        """A subnet with the ranges that a policy needs."""
        known = (cut.skipped, sorted(cut.widths.items()), sorted(cut.kernels.items()), sorted(groups))
        name = hashlib.sha256(repr((self._source, known)).encode()).hexdigest()

        def found(model: Outline, key: str, algorithm: str) -> Ranges:
            with _stage("calibrate", seconds):
                kept = range_cache.load(key)
                if kept is not None:
                    return kept
                new = observe(
                    model, groups, self.calibration, algorithm=algorithm, threads=threads, quantizer=self.quantizer
                )
                range_cache.store(key, new)
                return new

        if name not in self._kept:
            self._kept[name] = self._uncalibrated(cut, groups, seconds, threads)
        self._kept.move_to_end(name)
        while len(self._kept) > CALIBRATED_KEPT:
            self._kept.popitem(last=False)
        calibrated = self._kept[name]
        needed = frozenset[str]().union(*(format_of(choice).needs for choice in policy.values()))
        if needed and not calibrated.ranges:
            own = found(Outline.of(calibrated.model), name, "minmax")
            self._kept[name] = calibrated = replace(calibrated, ranges=own)
        if CHANNELS in needed and not calibrated.channels:
            with _stage("calibrate", seconds):
                calibrated.watch_channels(self.calibration)
        for algorithm in sorted(needed - {"minmax", CHANNELS} - calibrated.clipped.keys()):
            calibrated.clipped[algorithm] = found(Outline.of(calibrated.model), f"{name}-{algorithm}", algorithm)
        return calibrated

    def _uncalibrated(self, cut: Cut, groups: Groups, seconds: dict[str, float], threads: int) -> Calibrated:
        """A subnet with the ranges that come with the statistics of its BatchNorms, or without ranges."""
        if not batch_norm.needed(self.graph, cut):
            with _stage("slice", seconds):
                return Calibrated(
                    subnet(self.graph, cut), groups, {}, quantized=self._quantized, quantizer=self.quantizer
                )
        with _stage("statistics", seconds):
            statistics, seen = batch_norm.estimate(self.graph, cut, self.calibration, threads=threads)
        with _stage("slice", seconds):
            model = subnet(self.graph, cut, statistics)
            seen = observe(model, groups, self.calibration, threads=threads, known=seen)
            # Statistics of its own make the weights of a subnet differ from those of others: none are shared.
            return Calibrated(model, groups, seen, quantizer=self.quantizer)

    def _bound(self) -> None:
        """Forgets the oldest quantized weights beyond the size of the whole supernet's, in FP32, over ``SHARE``."""
        most = sum(array.nbytes for array in self.graph.weights.values()) // SHARE
        while sum(weight.values.nbytes for weight in self._quantized.values()) > most:
            del self._quantized[next(iter(self._quantized))]


def check_sendable(judge: Callable[[Path], float] | None, metric: str) -> None:
    """Checks what of a bench may be anybody's code: other processes import it by the name of its module.

    Raises:
        UsageError: It names what cannot be sent, and why.
    """
    problem = f"the metric '{metric}' is in __main__" if metric.startswith("__main__:") else None
    if judge is not None:
        name = getattr(judge, "__qualname__", type(judge).__qualname__)
        try:
            content = pickle.dumps(judge)
        except Exception as error:  # whatever the state of somebody's object raises
            problem = f"the function {name} that gives the accuracy cannot be pickled ({reason(error)})"
        else:
            if b"__main__" in content:
                problem = f"the function {name} that gives the accuracy is in __main__"
    if problem is not None:
        raise UsageError(
            f"{problem}, workers cannot import it; define it at the top of a module of its own, or search without "
            "workers"
        )


def accuracy_of(scored: Scored) -> Evaluation:
    """The accuracy of a model by its scores, with all that they say about it."""
    metrics = {"accuracy": float(scored.scores.mean())}
    if scored.soft is not None:
        metrics[SOFT] = float(scored.soft.mean())
    several = len(scored.scores) > 1
    spread = {"accuracy": standard_error(scored.scores)} if several else {}
    return Evaluation(metrics, spread, halves=Halves.of(scored) if several else None)


def _of_table(latency: tuple[float, float]) -> tuple[dict[str, float], float]:
    return {"latency_ms": latency[0]}, latency[1]


def write(path: Path, model: Outline) -> None:
    """Writes a model that nobody needs after a crash, so without waiting for the disk.

    Raises:
        OutputError: The disk is full.
    """
    try:
        for name, parts in model.files(path.name):
            with (path.parent / name).open("wb") as file:
                file.writelines(parts)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


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
