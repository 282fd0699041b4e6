"""The verified Pareto set: every member built, run and measured on the report split, and written with its files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from qnas_plugin import __version__, measure
from qnas_plugin.environment import environment
from qnas_plugin.errors import OutputError
from qnas_plugin.evaluate import Evaluator
from qnas_plugin.files import write_bytes, write_json
from qnas_plugin.hardware import HardwareProfile
from qnas_plugin.metrics import standard_error
from qnas_plugin.objectives import Limit, losses, non_dominated
from qnas_plugin.report import render
from qnas_plugin.request import TuneRequest
from qnas_plugin.space import Candidate
from qnas_plugin.study import Study, Trial

if TYPE_CHECKING:
    import pandas

SCHEMA_VERSION = 1
REFERENCES = ("largest-int8", "largest-fp32")
"""The baselines that each member is compared with."""


@dataclass(frozen=True)
class Member:
    """A model that was built, run and measured.

    Args:
        name: ``<n>-<key>``, or the baseline's name.
        candidate: What it is.
        search: Metrics that the search saw: accuracy on the search part.
        report: Verified metrics: accuracy on the report part, latency measured in turns with all other members, or
            predicted by the table of a SKU that this machine is not.
        latency: All statistics of that latency; ``source`` is ``measured`` or ``predicted``.
        against: For each reference: ratios (above 1 is better) and the paired test of the accuracy.
        folder: Where its files are, relative to the output folder.
    """

    name: str
    candidate: Candidate
    search: Mapping[str, float]
    report: Mapping[str, float]
    latency: Mapping[str, Any]
    against: Mapping[str, Mapping[str, float]]
    folder: str

    def to_dict(self) -> dict[str, Any]:
        """As it stands in ``pareto.json``."""
        return {
            "name": self.name,
            "key": self.candidate.key,
            "candidate": dict(self.candidate),
            "search": dict(self.search),
            "report": dict(self.report),
            "latency": dict(self.latency),
            "against": {name: dict(values) for name, values in self.against.items()},
            "folder": self.folder,
        }


@dataclass(frozen=True)
class Result:
    """The outcome of a search.

    Args:
        members: The Pareto set, the best in the first objective after accuracy first.
        baselines: The corners of the space.
        recommended: The name of the member to deploy; None when no member keeps all limits.
        reason: One sentence that says why, or what keeps the nearest members from it.
        record: Everything, as it stands in ``pareto.json``.
    """

    members: tuple[Member, ...]
    baselines: tuple[Member, ...]
    recommended: str | None
    reason: str
    record: Mapping[str, Any]

    @property
    def choice(self) -> Member | None:
        """The recommended member."""
        return next((member for member in self.members if member.name == self.recommended), None)

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each member and baseline, by name: verified metrics, and how it stands against all-INT8."""
        import pandas

        rows = [
            {
                "name": member.name,
                "key": member.candidate.key,
                "baseline": member in self.baselines,
                "recommended": member.name == self.recommended,
                **member.report,
                **{f"search_{metric}": value for metric, value in member.search.items()},
                **member.against.get(REFERENCES[0], {}),
                "folder": member.folder,
            }
            for member in (*self.members, *self.baselines)
        ]
        return pandas.DataFrame(rows).set_index("name")


def verify(
    request: TuneRequest,
    study: Study,
    evaluator: Evaluator,
    baselines: Mapping[str, Candidate],
    profile: HardwareProfile,
    on_stage: Callable[[str], None],
    *,
    notes: Sequence[str] = (),
) -> Result:
    """Builds the Pareto set and the baselines anew, measures them on the report part, and writes their folders.

    The set is chosen by what the search saw, never by the report part.

    Raises:
        OutputError: The output folder cannot be written.
        CandidateError: A member cannot be built or measured.
    """
    trials = [trial for trial in study.trials() if trial.state == "complete"]
    front = non_dominated(losses([trial.metrics for trial in trials], request.objectives))
    chosen = sorted(
        (trial for trial, kept in zip(trials, front, strict=True) if kept),
        key=lambda trial: trial.metrics[goal(request)],
    )
    seen: dict[str, Mapping[str, float]] = {trial.candidate.key: trial.metrics for trial in trials}
    names = [f"{n}-{trial.candidate.key}" for n, trial in enumerate(chosen, 1)]
    candidates = dict(zip(names, (trial.candidate for trial in chosen), strict=True)) | dict(baselines)

    folder = request.out / "pareto"
    _remove_stale(folder, names)
    paths: dict[str, Path] = {}
    scores: dict[str, npt.NDArray[np.float64]] = {}
    for i, (name, candidate) in enumerate(candidates.items(), 1):
        if i * 10 // len(candidates) > (i - 1) * 10 // len(candidates):
            on_stage(f"Built and checked {i} of {len(candidates)} models")
        paths[name] = (folder if name in names else request.out / "baselines") / name / "model.onnx"
        write_candidate(evaluator, candidate, paths[name].parent)
        scores[name] = evaluator.scores(paths[name], "report")
        if candidate.key not in seen:  # not every algorithm asks for the baselines
            seen[candidate.key] = {"accuracy": float(evaluator.scores(paths[name], "search").mean())}
    latencies: dict[str, dict[str, Any]]
    if evaluator.timed:
        on_stage(f"Timing {len(paths)} models in turns")
        timed = evaluator.latency(list(paths.values()), rounds=5)
        latencies = {
            name: latency.to_dict() | {"source": "measured"} for name, latency in zip(paths, timed, strict=True)
        }
    else:
        latencies = {
            name: {"median": evaluator.estimate(candidate), "source": "predicted"}
            for name, candidate in candidates.items()
        }

    report = {
        name: {
            "accuracy": float(scores[name].mean()),
            "latency_ms": latencies[name]["median"],
            "size_mb": measure.size_mb(path),
        }
        for name, path in paths.items()
    }
    verified = {
        name: Member(
            name,
            candidate,
            seen.get(candidate.key, {}),
            report[name],
            latencies[name],
            {
                reference: compare(report[name], report[reference], scores[name], scores[reference])
                for reference in REFERENCES
                if reference != name
            },
            paths[name].parent.relative_to(request.out).as_posix(),
        )
        for name, candidate in candidates.items()
    }
    for member in verified.values():
        write_json(request.out / member.folder / "metrics.json", member.to_dict())
    members = tuple(verified[name] for name in names)
    reference = verified[request.reference]
    recommended, reason = recommend(members, reference, request)
    record = {
        "schema_version": SCHEMA_VERSION,
        "qnas_plugin": __version__,
        "request": request.model_dump(mode="json"),
        "hardware": profile.model_dump(mode="json"),
        "setting": evaluator.setting.model_dump(mode="json"),
        "latency": latency_record(evaluator, notes),
        "environment": environment(),
        "data": {
            "source": evaluator.dataset.source,
            "fingerprint": evaluator.dataset.fingerprint,
            "metric": evaluator.dataset.metric,
            "examples": {
                part: len(getattr(evaluator.dataset, part)) for part in ("train", "calibration", "search", "report")
            },
            "report_standard_error": standard_error(scores[reference.name]),
        },
        "space": {
            "genotypes": float(evaluator.supernet.space.genotypes),
            "networks": float(evaluator.supernet.space.networks),
        },
        "trials": {state: sum(t.state == state for t in study.trials()) for state in ("complete", "failed")},
        "objectives": list(request.objectives),
        "members": [member.to_dict() for member in members],
        "baselines": [verified[name].to_dict() for name in baselines],
        "recommended": recommended,
        "reason": reason,
    }
    return Result(members, tuple(verified[name] for name in baselines), recommended, reason, record)


def latency_record(evaluator: Evaluator, notes: Sequence[str]) -> dict[str, Any]:
    """Where latencies come from, for ``pareto.json``: in the search, in the verified set, and the table with its error.

    Args:
        evaluator: Of the search.
        notes: What speaks against the table, where the user insisted on it.
    """
    table = evaluator.estimator.table if evaluator.estimator else None
    return {
        "search": "measured" if table is None else "table",
        "verified": "measured" if evaluator.timed else "predicted",
        "machine": "here" if evaluator.timer is None else "a worker",
        "notes": list(notes),
        "table": None
        if table is None
        else {
            "name": str(table),
            "created": table.created,
            "held_out": table.fidelity.held_out,
            "noise": table.fidelity.noise,
            **table.fidelity.errors.model_dump(),
        },
    }


def write_result(result: Result, trials: Sequence[Trial], out: Path) -> None:
    """Writes ``pareto.json`` and ``report.html``."""
    write_json(out / "pareto.json", dict(result.record))
    write_bytes(out / "report.html", render(result.record, trials).encode())


def write_candidate(evaluator: Evaluator, candidate: Candidate, folder: Path) -> None:
    """Writes ``model.onnx`` and what Hugging Face needs beside it; the same bytes each time.

    Raises:
        OutputError: The folder cannot be written.
        CandidateError: The candidate cannot be built.
    """
    evaluator.write(candidate, folder / "model.onnx")
    try:
        if config := evaluator.supernet.config(candidate):
            write_json(folder / "config.json", config)
        evaluator.processor.save(folder)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    write_json(
        folder / "candidate.json",
        {"schema_version": SCHEMA_VERSION, "key": candidate.key, "candidate": dict(candidate)},
    )


def compare(
    metrics: Mapping[str, float],
    reference: Mapping[str, float],
    scores: npt.NDArray[np.float64],
    reference_scores: npt.NDArray[np.float64],
) -> dict[str, float]:
    """How a model stands against another: speed-up, shrink factor, accuracy difference and its paired test.

    ``p_value`` is that of the exact sign test, two-sided: the chance of so unequal a split of the examples that one of
    the two does better on, if both were equally good. For right and wrong answers it is McNemar's exact test.
    """
    gained, lost = int((scores > reference_scores).sum()), int((scores < reference_scores).sum())
    return {
        "latency_ratio": reference["latency_ms"] / metrics["latency_ms"],
        "size_ratio": reference["size_mb"] / metrics["size_mb"],
        "accuracy_difference": metrics["accuracy"] - reference["accuracy"],
        "gained": gained,
        "lost": lost,
        "p_value": float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
    }


def goal(request: TuneRequest) -> str:
    """The objective that the recommended member is best in: the first one after accuracy."""
    return next(name for name in request.objectives if name != "accuracy")


def recommend(members: Sequence[Member], reference: Member, request: TuneRequest) -> tuple[str | None, str]:
    """The member to deploy and why: best in the objective after accuracy among those that keep all limits.

    Accuracy, also the drop against the reference, is that of the search part; latency and size are verified values.
    """

    def known(member: Member) -> dict[str, float]:
        return {**member.report, "accuracy": member.search["accuracy"]}

    floor = Limit("accuracy", ">=", reference.search["accuracy"] - request.max_accuracy_drop)
    limits = [*request.parsed_limits, floor]
    fitting = [m for m in members if all(limit.violation(known(m)) == 0 for limit in limits)]
    if fitting:
        best = min(fitting, key=lambda m: (m.report[goal(request)], -m.search["accuracy"]))
        ratio = best.against[request.reference]
        return best.name, (
            f"deploy {best.folder}/model.onnx: {ratio['latency_ratio']:.2f}x as fast and "
            f"{ratio['size_ratio']:.2f}x smaller than the full network in {request.against.upper()}, "
            f"at {100 * ratio['accuracy_difference']:+.2f} points of accuracy on the report split"
        )
    broken = min(members, key=lambda m: sum(limit.violation(known(m)) for limit in limits))
    which = next(limit for limit in limits if limit.violation(known(broken)) > 0)
    return None, (
        f"no member keeps {' and '.join(map(str, limits))}; nearest is {broken.folder} with "
        f"{which.metric} {known(broken)[which.metric]:.4g} against {which}; relax the limit or raise --trials"
    )


def _remove_stale(folder: Path, names: Sequence[str]) -> None:
    """Removes the members of an earlier verification; only folders of ours, which hold a ``candidate.json``."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name not in names and (path / "candidate.json").is_file():
                shutil.rmtree(path)
