"""The main job: a request in, a verified Pareto set of ONNX models out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qnas_plugin import data, registry
from qnas_plugin.commands.loading import load
from qnas_plugin.commands.study_folder import study_in
from qnas_plugin.errors import StudyError
from qnas_plugin.evaluate.bench import check_sendable
from qnas_plugin.evaluate.lab import Lab
from qnas_plugin.files import make_folder
from qnas_plugin.files.locks import alone_in, scratch
from qnas_plugin.hardware.machine import described
from qnas_plugin.objectives import Objectives, directed, hypervolume, losses, signs
from qnas_plugin.quantizers import quantize
from qnas_plugin.request import TuneRequest
from qnas_plugin.results.member import Result
from qnas_plugin.results.verify import verify
from qnas_plugin.results.write import write_result
from qnas_plugin.search import Algorithm, ExactMetric, Problem
from qnas_plugin.space import Candidate
from qnas_plugin.study.drive import Here, drive
from qnas_plugin.study.evaluation import Evaluation, Trial
from qnas_plugin.study.study import Study

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
    metric: str = "accuracy"


def tune(
    request: TuneRequest,
    *,
    lab: Lab | None = None,
    on_stage: Callable[[str], None] = lambda text: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Result:
    """Searches, verifies and writes a Pareto set; continues what a stopped run stored.

    Args:
        request: What is asked.
        lab: What it names, loaded, where a host has it; None loads it.
        on_stage: Is told what begins.
        on_progress: Is told of each finished trial.

    Raises:
        QnasError: The request cannot be met; what was stored stays.
    """
    make_folder(request.out)
    if lab is None:
        quantize.load(request.quantizer)  # else this takes long to be refused
        on_stage("Loading the data, the supernet and the hardware profile")
        lab = load(request)
    if request.workers is not None or request.cluster is not None:
        check_sendable(lab.judge, lab.dataset.metric)
    space = lab.network.space
    if lab.judge is None:
        on_stage(_sizes(lab.dataset))
    storage, name = study_in(request.out, request)
    if request.storage is not None and name != request.out.resolve().name:
        request = request.model_copy(update={"study_name": name})
    with (
        alone_in(request.out),
        Study.open(
            storage,
            space,
            directed(request.objectives, lab.metric.direction),
            identity=lab.identity,
            limits=request.parsed_limits,
            name=name,
        ) as study,
    ):
        request.write(request.out / "request.toml")
        _say_what_differs(study, on_stage)
        on_stage("Taking the graph of the network and checking it")
        groups = lab.graph.groups.values()
        on_stage(f"{sum(map(len, groups))} layers in {len(groups)} precision groups")
        corners = space.corners
        for name, candidate in corners.items():
            if name.endswith("fp32"):
                lab.check(candidate)
        for outlier in lab.outliers(corners["largest-int8"]):
            on_stage(f"[yellow]Calibration: {outlier}[/yellow]")
        _search(request, study, lab, on_stage, on_progress)
        on_stage("Verifying the Pareto set on the report split")
        result = verify(
            request,
            study,
            lab,
            corners,
            on_stage=on_stage,
        )
        write_result(result, study.trials(), space, request.out)
    return result


def _sizes(dataset: data.Dataset) -> str:
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
    lab: Lab,
    on_stage: Callable[[str], None],
    on_progress: Callable[[Progress], None],
) -> None:
    supernet = lab.network
    exact: dict[str, ExactMetric] = {name: lab.costs.functions[name] for name in lab.computes}
    if lab.estimator is not None:
        exact["latency_ms"] = lab.estimator
    objectives = directed(request.objectives, lab.metric.direction)
    problem = Problem(supernet.space, objectives, request.parsed_limits, exact=exact)
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
                _covered(metrics, objectives, lab.metric.ideal, request.population),
                _best(metrics, objectives),
                time.monotonic() - began,
                lab.dataset.metric,
            )
        )

    on_stage(f"Searching with {request.algorithm}" + (f", {resumed} trials are stored already" if resumed else ""))
    report(None)
    if request.workers is not None or request.cluster is not None:
        from qnas_plugin.evaluate import workers

        sku = lab.profile.name if lab.estimator is None else None
        with (
            workers.connect(request.workers, request.cluster, sku) as client,
            workers.executor(client, lab.bench, lab.job, lab.profile) as executor,
        ):
            drive(study, algorithm, executor, trials=request.trials, on_trial=report)
    else:
        with scratch() as folder:

            def evaluate(candidate: Candidate) -> Evaluation:
                return lab.evaluate(candidate, folder)

            drive(study, algorithm, Here(evaluate), trials=request.trials, on_trial=report)
    if not any(trial.state == "complete" for trial in trials):
        raise StudyError(f"all {len(trials)} trials failed; the first with: {trials[0].error}")


def _covered(
    metrics: Sequence[Mapping[str, float]], objectives: Objectives, accuracy: float, first: int
) -> float | None:
    """The hypervolume as a share of the box from the ideal (of accuracy its own, else 0) to the worst of the first.

    None where there is no box: before a trial, and while all of them are perfect.
    """
    points = losses(metrics, objectives)
    if not len(points):
        return None
    ideal = signs(objectives) * [accuracy if name == "accuracy" else 0.0 for name in objectives]
    worst = points[:first].max(axis=0)
    box = float((worst - ideal).prod())
    return hypervolume(points, worst) / box if box else None


def _best(metrics: Sequence[Mapping[str, float]], objectives: Objectives) -> dict[str, float]:
    if not metrics:
        return {}
    points = losses(metrics, objectives)
    return {name: metrics[int(points[:, i].argmin())][name] for i, name in enumerate(objectives)}
