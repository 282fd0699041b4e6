"""Searching with a table for a machine that is elsewhere, and carrying the study over to another table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qnas_plugin import latency_table, measure
from qnas_plugin.commands.retarget import retarget
from qnas_plugin.commands.tune import tune
from qnas_plugin.decompose import Decomposition, join
from qnas_plugin.errors import HardwareError, LatencyTableError, StudyError, UsageError
from qnas_plugin.hardware import RuntimeSetting, load_profile
from qnas_plugin.latency_table import Estimator, LatencyTable
from qnas_plugin.objectives import losses, non_dominated
from qnas_plugin.request import TuneRequest
from qnas_plugin.supernets import Supernet
from qnas_plugin.supernets.bert import load as load_bert
from tests.test_latency_table import table

THERE, ELSEWHERE = "xeon-8280", "xeon-8380"
SETTING = RuntimeSetting(sequence_length=16)


def table_of(supernet: Supernet, sku: str, seed: int) -> LatencyTable:
    keys = Decomposition(supernet.space, join(supernet.parts, "linear")).keys
    times = np.random.default_rng(seed).uniform(0.1, 1, len(keys)).tolist()
    rows = {str(key): ms * (1 if "int8" in str(key) else 3) for key, ms in zip(keys, times, strict=True)}
    fields = {"supernet": "bert", "shape": supernet.shape, "hardware": load_profile(sku), "setting": SETTING}
    return table(rows, **fields)


@pytest.fixture(scope="module")
def supernet(bert_checkpoint: Path) -> Supernet:
    return load_bert(str(bert_checkpoint))


@pytest.fixture(scope="module")
def request_(
    bert_checkpoint: Path, sentences: Path, supernet: Supernet, tmp_path_factory: pytest.TempPathFactory
) -> TuneRequest:
    """Of a search that is done, for a machine that is not here."""
    folder = tmp_path_factory.mktemp("table")
    request = TuneRequest(
        supernet="bert",
        checkpoint=str(bert_checkpoint),
        task="text_classification",
        data=str(sentences),
        out=folder / "study",
        hardware=THERE,
        seq_len=16,
        latency="table",
        table=latency_table.write(table_of(supernet, THERE, 0), folder),
        trials=10,
        population=4,
        calibration_samples=8,
        search_samples=40,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "latency", lambda *_, **__: pytest.fail("a latency was measured"))
        tune(request)
    return request


def test_tune_takes_all_latencies_from_the_table_of_a_machine_elsewhere(
    request_: TuneRequest, supernet: Supernet
) -> None:
    record = json.loads((request_.out / "pareto.json").read_text())
    assert record["latency"]["search"] == "table"
    assert record["latency"]["verified"] == "predicted"
    assert record["latency"]["table"]["mean_error"] == 0.01
    estimate = Estimator(table_of(supernet, THERE, 0), supernet)
    for member in [*record["members"], *record["baselines"]]:
        genes = supernet.space.encode(supernet.space.candidate(member["candidate"]))
        assert member["report"]["latency_ms"] == pytest.approx(float(estimate(genes[None])[0]), rel=1e-5)
        assert member["latency"]["source"] == "predicted"
    assert "predicted, not measured" in (request_.out / "report.html").read_text()


def test_tune_names_the_table_when_measuring_elsewhere(request_: TuneRequest) -> None:
    with pytest.raises(HardwareError, match="--latency table"):
        tune(request_.model_copy(update={"latency": "measured", "table": None}))


def test_tune_refuses_a_table_that_does_not_fit_unless_insisted(
    request_: TuneRequest, supernet: Supernet, tmp_path: Path
) -> None:
    other = latency_table.write(table_of(supernet, ELSEWHERE, 0), tmp_path)
    asked = request_.model_copy(update={"table": other, "out": tmp_path / "out", "trials": 4})
    with pytest.raises(LatencyTableError, match="of the SKU 'xeon-8380', not 'xeon-8280'"):
        tune(asked)
    result = tune(asked.model_copy(update={"insist": True}))
    assert "xeon-8380" in result.record["latency"]["notes"][0]
    assert "does not quite fit" in (tmp_path / "out" / "report.html").read_text()


def test_request_refuses_a_table_when_latencies_are_measured() -> None:
    with pytest.raises(UsageError, match="--latency table"):
        TuneRequest.build(
            {
                "supernet": "bert",
                "checkpoint": "c",
                "task": "text_classification",
                "data": "d",
                "out": "o",
                "table": "t",
            }
        )


def test_retarget_finds_what_is_best_by_the_other_table(
    request_: TuneRequest, supernet: Supernet, tmp_path: Path
) -> None:
    other = table_of(supernet, ELSEWHERE, 1)
    result = retarget(
        request_.out, ELSEWHERE, seq_len=16, table=latency_table.write(other, tmp_path), out=tmp_path / "out"
    )
    estimate = Estimator(other, supernet)
    metrics = [member.metrics for member in result.members]
    assert non_dominated(losses(metrics, request_.objectives)).all()
    assert [row["latency_ms"] for row in metrics] == sorted(row["latency_ms"] for row in metrics)
    for i, member in enumerate(result.members, 1):
        genes = supernet.space.encode(member.candidate)[None]
        assert member.metrics["latency_ms"] == pytest.approx(float(estimate(genes)[0]), rel=1e-5)
        stored = tmp_path / "out" / "candidates" / f"{i}-{member.candidate.key}.json"
        assert supernet.space.candidate(json.loads(stored.read_text())["candidate"]) == member.candidate
    assert result.record["trials"] == 10
    assert result.record["evaluated"] == 0
    assert json.loads((tmp_path / "out" / "retarget.json").read_text())["members"][0]["key"]


def test_retarget_spends_evaluations_on_predicted_members(
    request_: TuneRequest, supernet: Supernet, tmp_path: Path
) -> None:
    other = latency_table.write(table_of(supernet, ELSEWHERE, 1), tmp_path)
    result = retarget(request_.out, ELSEWHERE, seq_len=16, table=other, out=tmp_path / "out", evaluate=2)
    assert result.record["evaluated"] + result.record["failed"] == 2


def test_retarget_refuses_what_is_no_finished_study(request_: TuneRequest, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder that qnas tune wrote"):
        retarget(tmp_path, ELSEWHERE)
    request_.write(tmp_path / "request.toml")
    with pytest.raises((StudyError, LatencyTableError), match="qnas"):
        retarget(tmp_path, THERE, seq_len=16, table=request_.table)
