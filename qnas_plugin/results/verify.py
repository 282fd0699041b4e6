"""The verified Pareto set: every member built, run and measured on the report part, and written with its files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qnas_plugin.evaluate.lab import Lab
from qnas_plugin.files import move_files
from qnas_plugin.measure.accuracy import size_mb
from qnas_plugin.measure.belief import Beliefs, believed
from qnas_plugin.measure.metrics import standard_error
from qnas_plugin.objectives import COMPUTED, directed, losses, near_front, non_dominated
from qnas_plugin.quantizers.kernels import Kernels, in_name_only
from qnas_plugin.request import TuneRequest
from qnas_plugin.results.member import REFERENCES, Member, Result
from qnas_plugin.results.recommend import Part, Told, goal, recommend
from qnas_plugin.results.statistics import compare
from qnas_plugin.results.write import (
    CANDIDATE_FILE,
    latency_record,
    record_of,
    witness_record,
    write_candidate,
    write_metrics,
)
from qnas_plugin.space import Candidate
from qnas_plugin.study.evaluation import Evaluation
from qnas_plugin.study.study import Study

LATENCY_NOISE = 0.01
"""By this share two latencies may differ and still be called equal where the Pareto set is chosen."""


@dataclass(frozen=True)
class _Chosen:
    """What is to be verified.

    Args:
        candidates: By name: the Pareto set, then the baselines that are not in it.
        members: The names of the Pareto set.
        baselines: The name under which each baseline stands among the candidates.
        search: What is believed of each candidate, by its key.
        beliefs: Of all trials.
        building: Where their folders are until all of them are verified.
    """

    candidates: Mapping[str, Candidate]
    members: tuple[str, ...]
    baselines: Mapping[str, str]
    search: Mapping[str, Mapping[str, float]]
    beliefs: Beliefs
    building: Path

    def folder(self, name: str) -> str:
        """The folder of a candidate, relative to where it is built and to the output folder."""
        return f"{'pareto' if name in self.members else 'baselines'}/{name}"

    def file(self, name: str) -> Path:
        """The model of a candidate while it is verified."""
        return self.building / self.folder(name) / "model.onnx"


def verify(
    request: TuneRequest,
    study: Study,
    lab: Lab,
    baselines: Mapping[str, Candidate],
    *,
    on_stage: Callable[[str], None],
) -> Result:
    """Builds the Pareto set and the baselines anew, measures them on the report part, and writes their folders.

    The set is chosen by what the search saw, and the recommended member on the selection part; the report part decides
    nothing. What an earlier verification wrote stays until all of this is done.

    Raises:
        OutputError: The output folder cannot be written.
        CandidateError: A member cannot be built or measured.
    """
    building = request.out / ".verifying"
    shutil.rmtree(building, ignore_errors=True)
    chosen = _choose(request, study, lab, baselines, building)
    scores = _build(lab, chosen, on_stage)
    executed = _kernels(lab, chosen, on_stage)
    latencies = _latencies(lab, chosen, on_stage)
    verified = _members(request, lab, chosen, scores, latencies, executed)
    on_stage("Choosing what to recommend on the selection part")
    advice = recommend(
        [verified[name] for name in chosen.members],
        verified[chosen.baselines[request.reference]],
        request,
        selection=_selection(lab, building),
        report=Part(len(lab.dataset.report), lambda member: scores[member.name], lab.dataset.report.clusters),
        told=Told.of(lab.metric, lab.dataset.metric),
    )
    corners = tuple(
        replace(verified[name], name=corner, folder=f"baselines/{corner}") for corner, name in chosen.baselines.items()
    )
    for corner in corners:
        if chosen.baselines[corner.name] != corner.name:  # it is a member: one model in two folders
            shutil.copytree(chosen.file(chosen.baselines[corner.name]).parent, building / corner.folder)
    result = Result(
        tuple(verified[name] for name in chosen.members),
        corners,
        request.reference if advice.name == chosen.baselines[request.reference] else advice.name,
        advice.reason,
        advice.kept,
    )
    record = record_of(request, study, lab) | {
        "latency": latency_record(lab),
        "report_standard_error": standard_error(scores[chosen.baselines[request.reference]]),
        "witness": witness_record(chosen.beliefs.accuracy),
        "selection": dict(advice.selection),
        "limit": dict(advice.limit),
        "members": [member.to_dict() for member in result.members],
        "baselines": [member.to_dict() for member in corners],
        "recommended": result.recommended,
        "reason": result.reason,
    }
    _put_in_place(request.out, building, result)
    return replace(result, record=record)


def _choose(
    request: TuneRequest, study: Study, lab: Lab, baselines: Mapping[str, Candidate], building: Path
) -> _Chosen:
    """The Pareto set by what all trials together say, and the baselines, each candidate once."""
    trials = [trial for trial in study.trials() if trial.state == "complete"]
    known: list[Evaluation] = list(trials)
    keys = [trial.candidate.key for trial in trials]
    for candidate in baselines.values():  # not every algorithm asks for them
        if candidate.key not in keys:
            make = building / "baseline"
            make.mkdir(parents=True, exist_ok=True)
            known.append(lab.accuracy(candidate, make))
            keys.append(candidate.key)
    beliefs = believed(known)
    search = dict(zip(keys, beliefs.metrics, strict=True))
    rows = beliefs.metrics[: len(trials)]
    points = losses(rows, directed(request.objectives, lab.metric.direction))
    near = near_front(points, _tolerances(request, beliefs, points))
    order = sorted(np.flatnonzero(near).tolist(), key=lambda i: rows[i][goal(request)])
    members = {f"{n}-{trials[i].candidate.key}": trials[i].candidate for n, i in enumerate(order, 1)}
    names = {candidate: name for name, candidate in members.items()}
    corners = {name: names.get(candidate, name) for name, candidate in baselines.items()}
    rest = {name: candidate for name, candidate in baselines.items() if corners[name] == name}
    return _Chosen(members | rest, tuple(members), corners, search, beliefs, building)


def _tolerances(request: TuneRequest, beliefs: Beliefs, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """By how much two losses may differ and still be called equal, ``(m, k)``: accuracies by a standard error."""
    spread = 0.0 if beliefs.accuracy is None else beliefs.accuracy.spread
    each = {"accuracy": np.full(len(points), spread)}
    each["latency_ms"] = np.array(
        [LATENCY_NOISE * row.get("latency_ms", 0.0) for row in beliefs.metrics[: len(points)]]
    )
    each |= {name: np.zeros(len(points)) for name in COMPUTED}
    return np.column_stack([each[name] for name in request.objectives])


def _build(lab: Lab, chosen: _Chosen, on_stage: Callable[[str], None]) -> dict[str, npt.NDArray[np.float64]]:
    """Writes all candidates; their scores on the report part."""
    scores = {}
    for i, (name, candidate) in enumerate(chosen.candidates.items(), 1):
        if i * 10 // len(chosen.candidates) > (i - 1) * 10 // len(chosen.candidates):
            on_stage(f"Built and checked {i} of {len(chosen.candidates)} models")
        write_candidate(lab, candidate, chosen.file(name).parent)
        scores[name] = lab.scores(chosen.file(name), "report").scores
    return scores


def _kernels(lab: Lab, chosen: _Chosen, on_stage: Callable[[str], None]) -> dict[str, Kernels]:
    """What each candidate's file runs as."""
    executed = {name: lab.kernels(candidate, chosen.file(name)) for name, candidate in chosen.candidates.items()}
    if note := in_name_only(executed.values()):
        on_stage(note)
    return executed


def _latencies(lab: Lab, chosen: _Chosen, on_stage: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """All about the latency of each candidate, measured in turns or from the table."""
    if not lab.timed:
        return {
            name: {"median": lab.estimate(candidate), "source": "predicted"}
            for name, candidate in chosen.candidates.items()
        }
    names = list(chosen.candidates)
    on_stage(f"Timing {len(names)} models in turns")
    timed = lab.latency([chosen.file(name) for name in names], rounds=5)
    return {name: latency.to_dict() | {"source": "measured"} for name, latency in zip(names, timed, strict=True)}


def _members(
    request: TuneRequest,
    lab: Lab,
    chosen: _Chosen,
    scores: Mapping[str, npt.NDArray[np.float64]],
    latencies: Mapping[str, Mapping[str, Any]],
    executed: Mapping[str, Kernels],
) -> dict[str, Member]:
    """All verified candidates by name, compared with the references and with each other."""
    report = {
        name: {
            "accuracy": float(scores[name].mean()),
            "latency_ms": latencies[name]["median"],
            **lab.computed(candidate),
            "size_mb": size_mb(chosen.file(name)),
        }
        for name, candidate in chosen.candidates.items()
    }
    best = non_dominated(losses(list(report.values()), directed(request.objectives, lab.metric.direction)))
    same = {name: corner for corner, name in chosen.baselines.items()}
    return {
        name: Member(
            name,
            candidate,
            chosen.search.get(candidate.key, {}),
            report[name],
            latencies[name],
            {
                reference: compare(
                    report[name],
                    report[found],
                    scores[name],
                    scores[found],
                    lab.metric,
                    lab.dataset.report.clusters,
                )
                for reference, found in chosen.baselines.items()
                if reference in REFERENCES and found != name
            },
            chosen.folder(name),
            dominated=not kept,
            baseline=same.get(name),
            kernels=executed[name].to_dict(),
        )
        for (name, candidate), kept in zip(chosen.candidates.items(), best, strict=True)
    }


def _selection(lab: Lab, building: Path) -> Part:
    examples = lab.dataset.selection
    judged = lab.bench.judge is not None
    return Part(
        0 if judged else len(examples),
        lambda member: lab.scores(building / member.folder / "model.onnx", "selection").scores,
        examples.clusters,
    )


def _put_in_place(out: Path, building: Path, result: Result) -> None:
    """Moves the new folders beside those of an earlier verification, which go when ``pareto.json`` is written."""
    for member in {each.folder: each for each in (*result.baselines, *result.members)}.values():
        write_metrics(building, member)
    for kind in ("pareto", "baselines"):
        (out / kind).mkdir(exist_ok=True)
        for path in (building / kind).glob("*"):
            if (out / kind / path.name).exists():
                move_files(path, out / kind / path.name, last=CANDIDATE_FILE)
            else:
                path.rename(out / kind / path.name)
    shutil.rmtree(building, ignore_errors=True)
