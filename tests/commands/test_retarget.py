"""Searching with a table for a machine that is elsewhere, and carrying the study over to another table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qnas_plugin.api import retarget
from qnas_plugin.commands.tune import tune
from qnas_plugin.errors import HardwareError, LatencyTableError, StudyError, UsageError
from qnas_plugin.latency import table as latency_table
from qnas_plugin.latency.table import Estimator
from qnas_plugin.objectives import losses, non_dominated
from qnas_plugin.request import TuneRequest
from qnas_plugin.supernets import Supernet
from tests.commands.conftest import ELSEWHERE, THERE, table_of


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


def test_tune_with_workers_takes_latencies_from_the_table_of_a_machine_elsewhere(
    request_: TuneRequest, tmp_path: Path
) -> None:
    """Processes of this machine offer nothing then: they would be refused as another machine than they offer."""
    result = tune(request_.model_copy(update={"workers": 1, "out": tmp_path / "out", "trials": 4}))
    assert result.record["trials"]["complete"] == 4
    assert result.record["latency"]["search"] == "table"


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
