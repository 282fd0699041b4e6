"""The main job: a request in, a verified Pareto set of ONNX models out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from qnas_plugin import hardware, latency_table, registry, tasks
from qnas_plugin.commands.stored import study_in
from qnas_plugin.environment import described
from qnas_plugin.errors import HardwareError, LatencyTableError, StudyError
from qnas_plugin.evaluate import Evaluator
from qnas_plugin.files import make_folder
from qnas_plugin.latency_table import Estimator
from qnas_plugin.locks import alone_in, scratch
from qnas_plugin.measure import Latency
from qnas_plugin.metrics import load as load_metric
from qnas_plugin.objectives import hypervolume, losses, signs
from qnas_plugin.request import TuneRequest
from qnas_plugin.results.member import Result
from qnas_plugin.results.verify import verify
from qnas_plugin.results.write import write_result
from qnas_plugin.search import Algorithm, ExactMetric, Problem
from qnas_plugin.space import Candidate, Precision
from qnas_plugin.study import Evaluation, Study, Trial, drive
from qnas_plugin.supernets import Network, Supernet, check_labels, check_trained

BASELINES: Mapping[str, tuple[Any, Precision]] = {
    "largest-fp32": ("largest", Precision.FP32),
    "largest-int8": ("largest", Precision.INT8),
    "smallest-fp32": ("smallest", Precision.FP32),
    "smallest-int8": ("smallest", Precision.INT8),
}
"""The corners of the space: what every result is compared with."""


FEW = 100
"""Examples below which the user is told that there are few: one is a point of accuracy or more."""


@dataclass(frozen=True)
class Progress:
    """Where a search stands.

    Args:
        trial: The one that just finished, or the last stored one when a run resumes.
        done: Trials stored.
        total: Trials asked for.
        resumed: Trials that an earlier run had stored.
        hypervolume: Share of the box between the ideal and the worst of the first population; None before a trial.
        best: For each objective, the best value so far.
        seconds: Since this run began searching.
    """

    trial: Trial | None
    done: int
    total: int
    resumed: int
    hypervolume: float | None
    best: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class Loaded:
    """What a request names, loaded and checked against each other.

    Args:
        setting: With the sequence length or the resolution that timed inputs have.
        estimator: Of the latency table; None where latencies are measured.
        here: Whether this machine is the SKU.
        notes: What speaks against the table, where the user insisted on it.
        judge: What gives the accuracy of a file, where a host evaluates.
    """

    request: TuneRequest
    profile: hardware.HardwareProfile
    setting: hardware.RuntimeSetting
    dataset: tasks.Dataset
    processor: tasks.Processor
    supernet: Network
    estimator: Estimator | None = None
    here: bool = True
    notes: tuple[str, ...] = ()
    judge: Callable[[Path], float] | None = None

    @property
    def identity(self) -> dict[str, str]:
        """What makes the trials of a study comparable.

        Latencies that are measured can be compared under one version of the runtime only; those of a table need none.
        """
        identity = {
            "supernet": self.request.supernet or "onnx",
            "checkpoint": self.supernet.fingerprint,
            "data": self.dataset.fingerprint,
            "processor": tasks.encoding(self.processor, self.dataset),
            "max_length": str(self.request.max_length or "default"),
            "hardware": self.profile.name,
            "setting": str(self.setting),
        }
        if self.request.metric:
            identity["metric"] = self.request.metric
        if self.estimator:
            identity["latency"] = f"table of {self.estimator.table.created}"
        else:
            identity["onnxruntime"] = version("onnxruntime")
        return identity

    def evaluator(self) -> Evaluator:
        """What builds and measures candidates."""
        return Evaluator(
            self.supernet,
            self.dataset,
            self.processor,
            self.setting,
            estimator=self.estimator,
            here=self.here,
            timer=None if self.here or self.estimator or self.request.cluster is None else self._time_elsewhere,
            judge=self.judge,
            reference=self.supernet.space.corner("largest", Precision(self.request.against)),
        )

    def _time_elsewhere(
        self, models: Sequence[Path], inputs: tasks.Inputs, setting: hardware.RuntimeSetting, rounds: int
    ) -> list[Latency]:
        """The latencies on a worker that is the SKU."""
        from qnas_plugin import cluster_latency, workers

        with workers.connect(None, self.request.cluster, self.profile.name) as client:
            return cluster_latency.latency(client, self.profile, models, inputs, setting, rounds)


def load(request: TuneRequest, *, measures: bool = True) -> Loaded:
    """Loads what a request names.

    Args:
        request: What is asked.
        measures: Whether latencies will be measured or looked up; else neither the SKU nor its table is needed.

    Raises:
        QnasError: Something is missing, malformed, or doesn't fit the rest.
    """
    if measures:
        profile, setting, here = load_hardware(request)
    else:  # any machine will do
        profile = hardware.describe(hardware.detect(), "this-machine")
        setting, here = _setting(request, profile), True
    task = registry.load("tasks", request.task)
    dataset: tasks.Dataset = task.load(request.data, sizes=request.sizes)
    dataset = replace(dataset, metric=request.metric or dataset.metric)
    load_metric(dataset.metric)
    supernet = load_network(request)
    check_labels(supernet, dataset.label_names, request.data)
    processor = task.processor(request.source, max_length=request.max_length)
    if request.latency == "measured" or not measures:
        return Loaded(request, profile, setting, dataset, processor, supernet, here=here)
    setting = latency_table.setting_of(processor.timing_inputs(setting.batch_size, setting.sequence_length), setting)
    estimator, notes = load_table(request, supernet, profile.name, setting)
    return Loaded(request, profile, setting, dataset, processor, supernet, estimator, here, notes)


def load_hardware(request: TuneRequest) -> tuple[hardware.HardwareProfile, hardware.RuntimeSetting, bool]:
    """The profile and the setting that a request is for, and whether this machine is that SKU.

    Raises:
        HardwareError: There is no such profile, or latencies are to be measured without a cluster and this is another
            machine.
    """
    auto = request.hardware == "auto"
    profile = hardware.match(hardware.detect()) if auto else hardware.load_profile(request.hardware)
    wrong = hardware.is_this_machine(profile, hardware.detect())
    if wrong and request.latency == "measured" and request.cluster is None:
        raise HardwareError(
            f"latencies are measured here, and this machine is not '{profile.name}': {wrong[0]}; give --hardware auto, "
            "--latency table, or a --cluster with a worker on such a machine"
        )
    return profile, _setting(request, profile), not wrong


def _setting(request: TuneRequest, profile: hardware.HardwareProfile) -> hardware.RuntimeSetting:
    asked = {"threads": request.threads, "batch_size": request.batch, "sequence_length": request.seq_len}
    return profile.runtime.model_copy(update={name: value for name, value in asked.items() if value is not None})


def load_network(request: TuneRequest) -> Any:
    """The supernet with its weights, or the ONNX model.

    Raises:
        CheckpointError: It cannot be used, or a supernet has no weights.
    """
    if request.model is not None:
        from qnas_plugin import onnx_model

        return onnx_model.load(request.model, precisions=request.precisions)
    assert request.supernet is not None
    supernet: Supernet = registry.load("supernets", request.supernet).load(
        request.checkpoint, precisions=request.precisions
    )
    check_trained(supernet, request.source)
    return supernet


def load_table(
    request: TuneRequest, supernet: Supernet, sku: str, setting: hardware.RuntimeSetting
) -> tuple[Estimator, tuple[str, ...]]:
    """The latency table of a SKU and setting, and what speaks against it.

    Raises:
        LatencyTableError: There is none, it lacks rows, or it does not fit and the user does not insist.
    """
    if request.supernet is None:
        raise LatencyTableError(
            f"{request.source} is one model; latency tables are of supernets, give --latency measured"
        )
    about = (request.supernet, supernet.shape, sku, setting)
    table = latency_table.load(request.table) if request.table else latency_table.find(*about)
    against = latency_table.check(table, *about)
    latency_table.accept(table, against, insist=request.insist)
    return Estimator(table, supernet), tuple(against)


def tune(
    request: TuneRequest,
    *,
    loaded: Loaded | None = None,
    on_stage: Callable[[str], None] = lambda text: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Result:
    """Searches, verifies and writes a Pareto set; continues what a stopped run stored.

    Args:
        request: What is asked.
        loaded: What it names, where a host has it; None loads it.
        on_stage: Is told what begins.
        on_progress: Is told of each finished trial.

    Raises:
        QnasError: The request cannot be met; what was stored stays.
    """
    make_folder(request.out)
    if loaded is None:
        on_stage("Loading the data, the supernet and the hardware profile")
        loaded = load(request)
    space = loaded.supernet.space
    if loaded.judge is None:
        on_stage(_sizes(loaded.dataset))
    storage, name = study_in(request.out, request)
    if request.storage is not None and name != request.out.resolve().name:
        request = request.model_copy(update={"study_name": name})
    with (
        alone_in(request.out),
        Study.open(
            storage, space, request.objectives, identity=loaded.identity, limits=request.parsed_limits, name=name
        ) as study,
    ):
        request.write(request.out / "request.toml")
        _say_what_differs(study, on_stage)
        on_stage("Taking the graph of the network and checking it")
        evaluator = loaded.evaluator()
        groups = evaluator.graph.groups.values()
        on_stage(f"{sum(map(len, groups))} layers in {len(groups)} precision groups")
        elastic = any(variable.kind == "architecture" for variable in space.variables)
        corners = {
            name: space.corner(size, precision)
            for name, (size, precision) in BASELINES.items()
            if elastic or size == "largest"
        }
        for name, candidate in corners.items():
            if name.endswith("fp32"):
                evaluator.check(candidate)
        for outlier in evaluator.outliers(corners["largest-int8"]):
            on_stage(f"[yellow]Calibration: {outlier}[/yellow]")
        _search(request, study, evaluator, loaded.profile, on_stage, on_progress)
        on_stage("Verifying the Pareto set on the report split")
        result = verify(
            request,
            study,
            evaluator,
            corners,
            loaded.profile,
            on_stage=on_stage,
            notes=loaded.notes,
        )
        write_result(result, study.trials(), request.out)
    return result


def _sizes(dataset: tasks.Dataset) -> str:
    """What the parts of the data are for, and whether they are small."""
    search, selection, report = len(dataset.search), len(dataset.selection), len(dataset.report)
    few = "; few: small differences are chance" if min(search, selection or search, report) < FEW else ""
    chosen = f"{selection} choose what is recommended" if selection else "none choose what is recommended"
    return f"{search} examples steer the search, {chosen}, {report} verify it{few}"


def _say_what_differs(study: Study, on_stage: Callable[[str], None]) -> None:
    """Tells what an older version did not record, and what trials were made with that this run has not."""
    trials = study.trials()
    if study.taken and trials:
        on_stage(f"An older version did not record its {', '.join(study.taken)}: taken from this run")
    now = described()
    then = {
        f"{name} {value}"
        for trial in trials
        for name, value in trial.environment.items()
        if name in now and value != now[name]
    }
    if then:
        on_stage(f"Stored trials were made with {', '.join(sorted(then))}, this run has other versions or another CPU")


def _search(
    request: TuneRequest,
    study: Study,
    evaluator: Evaluator,
    profile: hardware.HardwareProfile,
    on_stage: Callable[[str], None],
    on_progress: Callable[[Progress], None],
) -> None:
    supernet = evaluator.supernet
    largest = supernet.space.corner("largest", Precision.FP32)
    weights_mb = float(supernet.weight_mb(supernet.space.encode(largest)[None, :])[0])
    overhead_mb = evaluator.file_mb(largest) - weights_mb
    exact: dict[str, ExactMetric] = {"size_mb": lambda genes: supernet.weight_mb(genes) + overhead_mb}
    if evaluator.estimator is not None:
        exact["latency_ms"] = evaluator.estimator
    problem = Problem(supernet.space, request.objectives, request.parsed_limits, exact=exact)
    algorithm: Algorithm = registry.load("search", request.algorithm).create(
        problem, seed=request.seed, population=min(request.population, request.trials)
    )
    trials = study.trials()
    resumed = len(trials)
    began = time.monotonic()

    def report(trial: Trial | None) -> None:
        if trial is not None:
            trials.append(trial)
        metrics = [t.metrics for t in trials if t.state == "complete"]
        on_progress(
            Progress(
                trial,
                len(trials),
                request.trials,
                resumed,
                _covered(metrics, request.objectives, request.population),
                _best(metrics, request.objectives),
                time.monotonic() - began,
            )
        )

    on_stage(f"Searching with {request.algorithm}" + (f", {resumed} trials are stored already" if resumed else ""))
    report(None)
    if request.workers is not None or request.cluster is not None:
        from qnas_plugin import workers

        with workers.connect(request.workers, request.cluster, profile.name) as client:
            workers.drive(
                client,
                study,
                algorithm,
                evaluator.workbench,
                evaluator.job,
                profile,
                trials=request.trials,
                on_trial=report,
            )
    else:
        with scratch() as folder:

            def evaluate(candidate: Candidate) -> Evaluation:
                return evaluator.evaluate(candidate, folder)

            drive(study, algorithm, evaluate, trials=request.trials, on_trial=report)
    if not any(trial.state == "complete" for trial in trials):
        raise StudyError(f"all {len(trials)} trials failed; the first with: {trials[0].error}")


def _covered(metrics: Sequence[Mapping[str, float]], objectives: Sequence[str], first: int) -> float | None:
    """The hypervolume as a share of the box from the ideal (accuracy 1, others 0) to the worst of the first trials.

    None where there is no box: before a trial, and while all of them are perfect.
    """
    points = losses(metrics, objectives)
    if not len(points):
        return None
    worst, ideal = points[:first].max(axis=0), np.minimum(signs(objectives), 0.0)
    box = float((worst - ideal).prod())
    return hypervolume(points, worst) / box if box else None


def _best(metrics: Sequence[Mapping[str, float]], objectives: Sequence[str]) -> dict[str, float]:
    if not metrics:
        return {}
    points = losses(metrics, objectives)
    return {name: metrics[int(points[:, i].argmin())][name] for i, name in enumerate(objectives)}
