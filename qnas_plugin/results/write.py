"""The files of a result: candidates as folders that clients load, ``pareto.json`` and ``report.html``."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qnas_plugin._version import __version__
from qnas_plugin.errors import OutputError
from qnas_plugin.evaluate.bench import CORE_SHARE
from qnas_plugin.evaluate.lab import Lab
from qnas_plugin.files import write_bytes, write_json
from qnas_plugin.hardware.machine import environment
from qnas_plugin.measure.witness import Corrected
from qnas_plugin.request import TuneRequest
from qnas_plugin.results.member import Member, Result
from qnas_plugin.results.report import render
from qnas_plugin.results.statistics import exact_test
from qnas_plugin.space import Candidate, SearchSpace
from qnas_plugin.study.evaluation import Trial
from qnas_plugin.study.study import Study

SCHEMA_VERSION = 2
"""Of ``pareto.json``. 2 has ``selection``, ``limit``, ``witness`` and ``dominated``; readers of 1 find all it had."""

CANDIDATE_FILE = "candidate.json"
"""Stands in each folder of a candidate that we wrote."""

PARTS = ("train", "calibration", "search", "selection", "report")


def write_result(result: Result, trials: Sequence[Trial], space: SearchSpace, out: Path) -> None:
    """Writes ``pareto.json`` and ``report.html``, then removes the folders of an earlier verification.

    Killed at any moment, it leaves a ``pareto.json`` whose members are all there.
    """
    write_json(out / "pareto.json", dict(result.record))
    write_bytes(out / "report.html", render(result.record, trials, space).encode())
    named = {out / member.folder for member in (*result.members, *result.baselines)}
    for path in [*out.glob("pareto/*"), *out.glob("baselines/*")]:
        if path not in named and (path / CANDIDATE_FILE).is_file():  # only folders of ours
            shutil.rmtree(path)


def write_candidate(lab: Lab, candidate: Candidate, folder: Path) -> None:
    """Writes ``model.onnx`` and what Hugging Face needs beside it; the same bytes each time.

    Raises:
        OutputError: The folder cannot be written.
        CandidateError: The candidate cannot be built.
    """
    lab.write(candidate, folder / "model.onnx")
    try:
        if config := lab.network.config(candidate):
            write_json(folder / "config.json", config)
        lab.processor.save(folder)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    write_json(
        folder / CANDIDATE_FILE,
        {"schema_version": 1, "key": candidate.key, "candidate": dict(candidate)},
    )


def write_metrics(out: Path, member: Member) -> None:
    """Writes the ``metrics.json`` of a member into its folder under ``out``."""
    write_json(out / member.folder / "metrics.json", member.to_dict())


def record_of(request: TuneRequest, study: Study, lab: Lab) -> dict[str, Any]:
    """What ``pareto.json`` says of the search itself."""
    dataset, space, trials = lab.dataset, lab.network.space, study.trials()
    return {
        "schema_version": SCHEMA_VERSION,
        "qnas_plugin": __version__,
        "request": request.model_dump(mode="json"),
        "varied": list(request.varied),
        "hardware": lab.profile.model_dump(mode="json"),
        "setting": lab.setting.model_dump(mode="json"),
        "environment": environment(),
        "identity": study.identity,
        "data": {
            "source": dataset.source,
            "fingerprint": dataset.fingerprint,
            "metric": dataset.metric,
            "direction": lab.metric.direction,
            "points": lab.metric.points,
            "test": "exact" if exact_test(lab.metric, dataset.report.clusters) else "permutation",
            "examples": {part: len(getattr(dataset, part)) for part in PARTS},
        },
        "space": {"genotypes": float(space.genotypes), "networks": float(space.networks)},
        "trials": {
            **{state: sum(trial.state == state for trial in trials) for state in ("complete", "failed")},
            "disturbed": sum(CORE_SHARE in trial.metrics for trial in trials),
        },
        "objectives": list(request.objectives),
    }


def witness_record(found: Corrected | None) -> dict[str, Any] | None:
    """How accuracies were corrected, for ``pareto.json``; None where trials do not say enough."""
    if found is None:
        return None
    return {
        "witness": found.witness,
        "soft_correlation": found.soft_correlation,
        "accuracy_correlation": found.accuracy_correlation,
        "soft_reliability": found.soft_reliability,
        "slope": found.slope,
        "spread": found.spread,
    }


def latency_record(lab: Lab) -> Mapping[str, Any]:
    """Where latencies come from, for ``pareto.json``: in the search, in the verified set, and the table with its error.

    Args:
        lab: Of the search.
    """
    table = lab.estimator.table if lab.estimator else None
    return {
        "search": "measured" if table is None else "table",
        "verified": "measured" if lab.timed else "predicted",
        "machine": "here" if lab.timer is None else "a worker",
        "notes": list(lab.notes),
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
