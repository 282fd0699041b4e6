"""What the program wrote before still loads: a finished study, its checkpoint, latency tables and hardware profiles.

``tests/assets/old`` is of version 0.1.0: a search of 12 trials with made-up tables of two SKUs that do not exist.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest

import qnas_plugin as qnas
from qnas_plugin.cli import main
from tests.golden.recorded import ASSETS

HERE = "@HERE@"
"""Stands in the files for the folder that they are in."""

GROUPS = ("query", "key", "value", "attention_output", "intermediate", "output")
VARIABLES = {
    "depth",
    *(f"layer.{i}.{size}" for i in range(3) for size in ("heads", "ffn")),
    *(f"precision.layer.{i}.{group}" for i in range(3) for group in GROUPS),
    *(f"precision.{group}" for group in ("pooler", "classifier", "embeddings")),
}


def run(*arguments: str | Path) -> int:
    """The exit code of a command line."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of all old files, with its own place in them."""
    folder = tmp_path / "old"
    shutil.copytree(ASSETS / "old", folder)
    for path in folder.rglob("*"):
        if path.suffix in (".toml", ".json", ".journal"):
            path.write_text(path.read_text(encoding="utf-8").replace(HERE, str(folder)), encoding="utf-8")
    return folder


def trials(study: Path) -> list[dict[str, Any]]:
    """The finished trials in a journal."""
    records = [json.loads(line) for line in (study / "study.journal").read_text().splitlines()]
    return [record for record in records if "candidate" in record.get("user_attrs", {})]


def result(study: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((study / "pareto.json").read_text())
    return record


def test_an_old_study_resumes_at_once(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = old / "study"
    journal, before = (study / "study.journal").read_bytes(), result(study)
    assert run("tune", "--config", study / "request.toml") == 0
    assert "12 trials are stored already" in capsys.readouterr().err
    assert (study / "study.journal").read_bytes() == journal
    after = result(study)
    assert after["identity"] == before["identity"]
    assert after["request"] == before["request"]
    assert [member["key"] for member in after["members"]] == [member["key"] for member in before["members"]]
    for then, now in zip(before["members"], after["members"], strict=True):
        assert (now["name"], now["candidate"]) == (then["name"], then["candidate"])
        assert now["report"]["latency_ms"] == pytest.approx(then["report"]["latency_ms"], rel=1e-5)
        assert now["report"]["size_mb"] == pytest.approx(then["report"]["size_mb"], rel=0.01)
        assert (study / now["folder"] / "model.onnx").is_file()


def test_an_old_study_goes_on_with_more_trials(old: Path) -> None:
    study = old / "study"
    journal = (study / "study.journal").read_bytes()
    assert run("tune", "--config", study / "request.toml", "--trials", "14") == 0
    assert (study / "study.journal").read_bytes().startswith(journal)
    stored = trials(study)
    assert len({trial["user_attrs"]["candidate"] for trial in stored}) == len(stored) == 14
    assert {name for trial in stored[:12] for name in trial["params"]} == VARIABLES
    assert {name for trial in stored[12:] for name in trial["params"]} <= VARIABLES
    assert "precision.classifier" in stored[-1]["params"]


def test_an_old_study_says_that_nothing_keeps_a_limit(old: Path) -> None:
    assert run("tune", "--config", old / "study" / "request.toml", "--limit", "latency_ms<=0.000001") == 3


def test_an_old_study_is_retargeted_with_an_old_table_and_profile(old: Path) -> None:
    found = qnas.retarget(
        old / "study", str(old / "sku-b.toml"), seq_len=16, table=old / "sku-b.json", insist=True, out=old / "there"
    )
    assert found.record["trials"] == 12
    assert found.record["hardware"]["name"] == "sku-b"
    latencies = [member.metrics["latency_ms"] for member in found.members]
    assert latencies == sorted(latencies)


def test_a_candidate_of_an_old_study_is_exported(old: Path) -> None:
    study = old / "study"
    for member in (result(study)["members"][0], result(study)["baselines"][0]):
        out = old / "exported" / member["name"]
        assert run("export", "--study", study, "--key", member["key"], "--out", out) == 0
        onnx.checker.check_model(str(out / "model.onnx"))
        assert (out / "model.onnx").stat().st_size / 1e6 == pytest.approx(member["report"]["size_mb"], rel=0.01)
        assert json.loads((out / "candidate.json").read_text())["candidate"] == member["candidate"]


def test_old_tables_are_compared_and_merged(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("profile", "--compare", old / "sku-a.json", old / "sku-b.json") == 0
    assert "attention_core" in capsys.readouterr().out
    assert run("profile", "--merge", old / "sku-a.json", old / "sku-a.json", "--out", old / "merged") == 0
    (merged,) = (old / "merged").rglob("*.json")
    before, after = (json.loads(path.read_text())["rows"] for path in (old / "sku-a.json", merged))
    assert [row["key"] for row in after] == [row["key"] for row in before]
    assert [row["ms"] for row in after] == pytest.approx([row["ms"] for row in before], rel=1e-5)


def test_old_files_have_no_path_of_the_machine_that_made_them() -> None:
    for path in (ASSETS / "old").rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            text = path.read_text(encoding="utf-8")
            assert not any(place in text for place in ("/tmp/", "/home/", "/root/")), path
