"""A finished study and another SKU's latency table to that SKU's Pareto set.

Accuracy comes from the stored trials, and for other candidates from a predictor trained on them; latency comes from the
table. Nothing is measured unless some evaluations are allowed, which go where predictors disagree most on the new set.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from qnas_plugin import predictors, registry
from qnas_plugin.commands.loading import load, load_network
from qnas_plugin.commands.study_folder import check_unchanged, request_in, trials_in
from qnas_plugin.errors import CandidateError, StudyError, UsageError
from qnas_plugin.evaluate.lab import Lab
from qnas_plugin.files import make_folder, write_json
from qnas_plugin.files.locks import alone_in, scratch
from qnas_plugin.hardware import load_profile, match
from qnas_plugin.hardware.machine import detect
from qnas_plugin.latency import table as latency_table
from qnas_plugin.latency.table import Estimator
from qnas_plugin.measure.belief import Beliefs, believed
from qnas_plugin.measure.costs import Costs
from qnas_plugin.measure.metrics import load as load_metric
from qnas_plugin.objectives import directed, losses, non_dominated, signs
from qnas_plugin.request import RetargetRequest, TuneRequest
from qnas_plugin.results.write import witness_record
from qnas_plugin.search import ExactMetric, Problem
from qnas_plugin.search.linas import PREDICTORS, predicted_front
from qnas_plugin.space import Candidate, Genes
from qnas_plugin.study.evaluation import Evaluation
from qnas_plugin.supernets import Supernet

if TYPE_CHECKING:
    import pandas

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Member:
    """A candidate of the new Pareto set.

    Args:
        candidate: What it is.
        metrics: Accuracy on the search part, corrected by what all trials say; latency of the table; size.
        accuracy: Whether the study or this run measured the accuracy, or it is predicted.
    """

    candidate: Candidate
    metrics: Mapping[str, float]
    accuracy: Literal["measured", "predicted"]


@dataclass(frozen=True)
class Retargeted:
    """The outcome.

    Args:
        members: The Pareto set, fastest first.
        record: Everything, as it stands in ``retarget.json``.
    """

    members: tuple[Member, ...]
    record: Mapping[str, Any]

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each member, by key: its metrics, and whether its accuracy was measured."""
        import pandas

        rows = [
            {"key": member.candidate.key, **member.metrics, "accuracy_source": member.accuracy}
            for member in self.members
        ]
        return pandas.DataFrame(rows).set_index("key")


def retarget(asked: RetargetRequest, on_stage: Callable[[str], None] = lambda text: None) -> Retargeted:
    """Finds the Pareto set of another SKU or setting and writes ``retarget.json`` and a file for each candidate.

    Args:
        asked: What is asked for.
        on_stage: Is told what begins.

    Raises:
        QnasError: The study or the table cannot be used.
    """
    began = time.monotonic()
    study = asked.study
    request = request_in(study)
    if "latency_ms" not in request.objectives:
        raise UsageError(f"{study} was not searched for latency, but for {', '.join(request.objectives)}")
    profile = match(detect()) if asked.hardware == "auto" else load_profile(asked.hardware)
    on_stage("Loading the supernet, the table and the stored trials")
    if request.supernet is None:
        raise UsageError(f"{study} searched one ONNX model; latency tables, which retarget takes, are of supernets")
    supernet: Supernet = load_network(request)
    length = asked.seq_len or request.seq_len or request.max_length
    changed = {"threads": asked.threads, "batch_size": asked.batch, "sequence_length": length}
    setting = profile.runtime.model_copy(update={name: value for name, value in changed.items() if value is not None})
    setting = latency_table.setting_of(supernet.example(setting), setting)
    about = (request.supernet, supernet.shape, profile.name, setting)
    used = latency_table.load(asked.table) if asked.table else latency_table.find(*about)
    against = latency_table.check(used, *about)
    latency_table.accept(used, against, insist=asked.insist)
    known = _Known(supernet, request, Estimator(used, supernet), asked.seed)
    known.read(study)
    on_stage("Searching on predicted accuracy and the table's latency")
    members = known.pareto_set()
    failed = 0
    if asked.evaluate:
        chosen = known.uncertain(
            [member.candidate for member in members if member.accuracy == "predicted"], asked.evaluate
        )
        on_stage(f"Evaluating {len(chosen)} candidates")
        lab = load(request, measures=False)
        check_unchanged(study, request, lab.identity, ("data", "processor", "max_length", "metric"))
        failed = known.evaluate(lab, chosen)
        members = known.pareto_set()
    folder = asked.out or study / "retarget" / profile.name
    record = {
        "schema_version": SCHEMA_VERSION,
        "study": study.name,
        "hardware": profile.model_dump(mode="json"),
        "setting": setting.model_dump(mode="json"),
        "table": {"name": str(used), "created": used.created, **used.fidelity.errors.model_dump()},
        "notes": against,
        "objectives": list(request.objectives),
        "metric": known.metric,
        "trials": known.stored,
        "evaluated": len(known.known) - known.stored,
        "witness": witness_record(known.beliefs.accuracy),
        "failed": failed,
        "seconds": time.monotonic() - began,
        "members": [
            {
                "key": member.candidate.key,
                "candidate": dict(member.candidate),
                "metrics": dict(member.metrics),
                "accuracy": member.accuracy,
            }
            for member in members
        ],
    }
    make_folder(folder)
    with alone_in(folder):
        _write(folder, members, record)
    return Retargeted(members, record)


def _write(folder: Path, members: Sequence[Member], record: dict[str, Any]) -> None:
    """Writes the candidates, then what names them, then removes those of an earlier result."""
    names = [f"{i}-{member.candidate.key}.json" for i, member in enumerate(members, 1)]
    for name, member in zip(names, members, strict=True):
        content = {"schema_version": SCHEMA_VERSION, "key": member.candidate.key, "candidate": dict(member.candidate)}
        write_json(folder / "candidates" / name, content)
    write_json(folder / "retarget.json", record)
    for path in (folder / "candidates").iterdir():
        if path.name not in names and re.fullmatch(r"\d+-[0-9a-f]+\.json", path.name):
            path.unlink()


class _Known:
    """Candidates with measured accuracy, and what follows from them.

    Args:
        supernet: Of the study.
        request: Of the study.
        estimator: Of the new SKU.
        seed: Of all random choices.
    """

    def __init__(self, supernet: Supernet, request: TuneRequest, estimator: Estimator, seed: int) -> None:
        self.supernet, self.request, self.estimator, self.seed = supernet, request, estimator, seed
        self.genes: list[Genes] = []
        self.known: list[Evaluation] = []
        self.stored = 0
        self.metric = "accuracy"
        inputs = supernet.example(estimator.table.setting)
        self.costs = Costs(supernet, supernet.graph(inputs), inputs, request.quantizer)

    @property
    def problem(self) -> Problem:
        """What is searched on predictions."""
        exact: dict[str, ExactMetric] = {"latency_ms": self.estimator, "size_mb": self.costs.size_mb}
        exact |= {name: self.costs.functions[name] for name in self.request.computes}
        objectives = directed(self.request.objectives, load_metric(self.metric).direction)
        return Problem(self.supernet.space, objectives, self.request.parsed_limits, exact=exact)

    def read(self, folder: Path) -> None:
        """Takes the trials that a study stored.

        Raises:
            StudyError: There are too few, or they are of another checkpoint.
        """
        identity, trials = trials_in(folder, self.request, self.supernet)
        self.metric = identity.get("metric", self.metric)
        for trial in trials:
            self._add(trial.candidate, trial)
        self.stored = len(self.known)
        if self.stored < 3:
            raise StudyError(f"{folder} has {self.stored} finished trials, at least 3 are needed; run qnas tune longer")

    def pareto_set(self) -> tuple[Member, ...]:
        """Best of what was measured and what is predicted, fastest first."""
        space, rng, problem = self.supernet.space, np.random.default_rng(self.seed), self.problem
        genes, metrics = np.array(self.genes), self.beliefs.metrics
        predicted, values = predicted_front(problem, genes, metrics, rng)
        accuracy = (values * signs(problem.objectives))[:, self.request.objectives.index("accuracy")]
        measured = {row.tobytes() for row in genes}
        new = [i for i, row in enumerate(predicted) if row.tobytes() not in measured]
        everything = np.concatenate([genes, predicted[new]])
        columns = {
            "accuracy": np.concatenate([[row["accuracy"] for row in metrics], accuracy[new]]),
            **{name: exact(everything) for name, exact in problem.exact.items()},
        }
        rows = [dict(zip(columns, row, strict=True)) for row in np.column_stack(list(columns.values())).tolist()]
        kept = np.flatnonzero(non_dominated(losses(rows, problem.objectives)))
        return tuple(
            Member(space.decode(everything[i]), rows[i], "measured" if i < len(genes) else "predicted")
            for i in sorted(kept.tolist(), key=lambda i: rows[i]["latency_ms"])
        )

    def uncertain(self, candidates: Sequence[Candidate], count: int) -> list[Candidate]:
        """Those candidates on whose accuracy the predictors disagree most."""
        if not candidates:
            return []
        genes = np.array([self.supernet.space.encode(candidate) for candidate in candidates])
        order = np.argsort(-np.ptp(self._predictions(genes), axis=0), kind="stable")[:count]
        return [candidates[i] for i in order.tolist()]

    def evaluate(self, lab: Lab, candidates: Sequence[Candidate]) -> int:
        """Measures the accuracy of candidates and takes it; how many could not be measured."""
        failed = 0
        with scratch() as folder:
            for candidate in candidates:
                try:
                    self._add(candidate, lab.accuracy(candidate, folder))
                except CandidateError:
                    failed += 1
        return failed

    @property
    def beliefs(self) -> Beliefs:
        """What all of them together say."""
        return believed(self.known)

    def _add(self, candidate: Candidate, evaluation: Evaluation) -> None:
        self.genes.append(self.supernet.space.encode(candidate))
        self.known.append(evaluation)

    def _predictions(self, genes: Genes) -> npt.NDArray[np.float64]:
        """Accuracies by each predictor, ``(predictors, m)``."""
        features = partial(predictors.features, self.supernet.space)
        X, y = features(np.array(self.genes)), np.array([row["accuracy"] for row in self.beliefs.metrics])
        results = []
        for name in PREDICTORS:
            predictor: predictors.Predictor = registry.load("predictors", name).create()
            predictor.fit(X, y)
            results.append(predictor.predict(features(genes)))
        return np.array(results)
