"""A search for another metric than accuracy, end to end: less may be better, and people read the metric's own name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from rich.console import Console

from qnas_plugin.commands.retarget import retarget
from qnas_plugin.commands.tune import Progress, tune
from qnas_plugin.console.tables import result_table
from qnas_plugin.errors import StudyError
from qnas_plugin.latency import table as latency_table
from qnas_plugin.request import RetargetRequest, TuneRequest
from qnas_plugin.supernets import Supernet
from tests.commands.conftest import ELSEWHERE, table_of


@pytest.fixture(scope="module")
def asked(request_: TuneRequest, tmp_path_factory: pytest.TempPathFactory) -> TuneRequest:
    changed = {"metric": "perplexity", "out": tmp_path_factory.mktemp("perplexity") / "study", "max_accuracy_drop": 1.0}
    return request_.model_copy(update=changed)


def test_perplexity_is_minimised_and_told_by_its_name(
    asked: TuneRequest, supernet: Supernet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Progress] = []
    result = tune(asked, on_progress=told.append)
    record = json.loads((asked.out / "pareto.json").read_text())
    assert (record["data"]["metric"], record["data"]["direction"]) == ("perplexity", "minimize")
    (study,) = optuna.get_all_study_summaries(JournalStorage(JournalFileBackend(str(asked.out / "study.journal"))))
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MINIMIZE"]
    values = [trial.metrics["accuracy"] for trial in (one.trial for one in told) if trial is not None]
    assert min(values) >= 1
    assert told[-1].best["accuracy"] == min(values)
    searched = np.array([[row["search"]["accuracy"], row["search"]["latency_ms"]] for row in record["members"]])
    fastest_first = searched[np.argsort(searched[:, 1])][:, 0]
    assert fastest_first[-1] == fastest_first.min()  # the slowest is there for its low perplexity alone
    page = (asked.out / "report.html").read_text()
    assert "<th>perplexity</th>" in page
    assert "a permutation test" in page
    assert "of perplexity" in result.reason or "no member" in result.reason
    shown = Console(width=200, record=True)
    shown.print(result_table(result))
    text = shown.export_text()
    assert "perplexity" in text
    assert "accuracy" not in text

    there = latency_table.write(table_of(supernet, ELSEWHERE, 1), tmp_path)
    found = retarget(RetargetRequest.build({"study": asked.out, "hardware": ELSEWHERE, "table": there}))
    assert found.record["metric"] == "perplexity"
    pairs = [(member.metrics["latency_ms"], member.metrics["accuracy"]) for member in found.members]
    assert pairs == sorted(pairs)  # fastest first
    assert [perplexity for _, perplexity in pairs] == sorted((perplexity for _, perplexity in pairs), reverse=True)


def test_a_study_of_one_metric_is_not_continued_with_another(asked: TuneRequest) -> None:
    with pytest.raises(StudyError, match="metric"):
        tune(asked.model_copy(update={"metric": "f1"}))
