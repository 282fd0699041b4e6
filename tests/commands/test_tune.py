"""A study is what its file says: renamed, copied, of an older version, resumed with something else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from qnas_plugin.api import retarget
from qnas_plugin.commands import tune as command
from qnas_plugin.commands.study_folder import request_in, study_in
from qnas_plugin.commands.tune import tune
from qnas_plugin.errors import StudyError
from qnas_plugin.hardware import RuntimeSetting
from qnas_plugin.hardware.machine import described
from qnas_plugin.latency import table as latency_table
from qnas_plugin.measure.costs import Costs
from qnas_plugin.request import TuneRequest
from qnas_plugin.study.study import stored_identity
from qnas_plugin.supernets import Supernet
from tests.commands.conftest import ELSEWHERE, table_of


@pytest.fixture
def copied(request_: TuneRequest, tmp_path: Path) -> TuneRequest:
    """The request of a copy of the finished study, in a folder of another name."""
    shutil.copytree(request_.out, tmp_path / "copy of it")
    return request_.model_copy(update={"out": tmp_path / "copy of it"})


def trials(folder: Path) -> list[Mapping[str, str]]:
    """The environment of each trial."""
    records = [json.loads(line) for line in (folder / "study.journal").read_text().splitlines()]
    return [record["user_attrs"]["environment"] for record in records if "environment" in record.get("user_attrs", {})]


def rewrite(journal: Path, change: Mapping[str, str | None]) -> None:
    """Changes names of the stored identity."""
    lines = []
    for line in journal.read_text().splitlines():
        content = json.loads(line)
        identity = content.get("user_attr", {}).get("qnas", {}).get("identity")
        if identity is not None:
            for name, value in change.items():
                identity.pop(name, None)
                identity |= {} if value is None else {name: value}
        lines.append(json.dumps(content, separators=(",", ":")))
    journal.write_text("".join(f"{line}\n" for line in lines))


def test_a_renamed_study_goes_on(copied: TuneRequest) -> None:
    said: list[str] = []
    assert len(trials(copied.out)) == 10
    tune(copied.model_copy(update={"trials": 11}), on_stage=said.append)
    assert len(trials(copied.out)) == 11
    assert any("10 trials are stored already" in text for text in said)
    again = copied.out.with_name("renamed once more")
    copied.out.rename(again)
    assert study_in(again, request_in(again))[1] == "study"


def test_trials_tell_what_they_were_made_with(copied: TuneRequest) -> None:
    for environment in trials(copied.out):
        assert {"onnxruntime", "neural-compressor", "onnx", "numpy", "cpu", "setting"} <= environment.keys()


def test_trials_without_the_line_of_their_study_are_never_started_anew(copied: TuneRequest) -> None:
    journal = copied.out / "study.journal"
    content = journal.read_text().split("\n", 1)[1]
    journal.write_text(content)
    with pytest.raises(StudyError, match="its first line, which says of which study, is lost"):
        tune(copied)
    assert journal.read_text() == content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 20}, "has max_length default, this run has max_length 20"),
        ({"checkpoint": "tokenizer"}, "has processor"),
    ],
)
def test_a_study_refuses_another_way_to_make_inputs(
    change: dict[str, object], message: str, copied: TuneRequest, tmp_path: Path
) -> None:
    if change.get("checkpoint") == "tokenizer":
        shutil.copytree(str(copied.checkpoint), tmp_path / "tokenizer")
        path = tmp_path / "tokenizer" / "tokenizer.json"
        words = json.loads(path.read_text())
        vocabulary = words["model"]["vocab"]
        vocabulary["good"], vocabulary["bad"] = vocabulary["bad"], vocabulary["good"]
        path.write_text(json.dumps(words))
        change = {"checkpoint": str(tmp_path / "tokenizer")}
    before = (copied.out / "study.journal").read_bytes()
    with pytest.raises(StudyError, match=message):
        tune(copied.model_copy(update={**change, "trials": 11}))
    assert (copied.out / "study.journal").read_bytes() == before


def test_a_study_of_an_older_version_goes_on_and_records_what_it_lacked(copied: TuneRequest) -> None:
    rewrite(copied.out / "study.journal", {"processor": None, "max_length": None})
    said: list[str] = []
    tune(copied, on_stage=said.append)
    assert any("did not record its processor, max_length: taken from this run" in text for text in said)
    assert stored_identity(*study_in(copied.out, copied))["max_length"] == "default"
    with pytest.raises(StudyError, match="max_length"):
        tune(copied.model_copy(update={"max_length": 20}))


def test_another_runtime_is_said_where_latencies_are_the_table_s(
    copied: TuneRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "described", lambda: dict(described()) | {"onnxruntime": "1.0"})
    said: list[str] = []
    tune(copied, on_stage=said.append)
    assert any(f"were made with onnxruntime {described()['onnxruntime']}, this run has" in text for text in said)


def test_a_study_in_a_database_keeps_its_name_when_its_folder_is_renamed(copied: TuneRequest, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/many.db"
    first = copied.model_copy(update={"out": tmp_path / "first", "storage": storage, "trials": 3})
    tune(first)
    (tmp_path / "first").rename(tmp_path / "second")
    renamed = first.model_copy(update={"out": tmp_path / "second"})
    said: list[str] = []
    tune(renamed, on_stage=said.append)
    assert any("3 trials are stored already" in text for text in said)
    (tmp_path / "second").rename(tmp_path / "third")
    assert study_in(tmp_path / "third", request_in(tmp_path / "third")) == (storage, "first")
    again = first.model_copy(update={"out": tmp_path / "third"})
    assert study_in(again.out, again) == (storage, "first")
    other = first.model_copy(update={"out": tmp_path / "other"})
    assert study_in(other.out, other) == (storage, "other")


def test_tune_searches_and_limits_what_is_computed(request_: TuneRequest, supernet: Supernet, tmp_path: Path) -> None:
    """Multiply-accumulates as an objective, bit operations as a limit: in trials, members and the retargeted set."""
    largest = supernet.space.corners["largest-int8"]
    asked = request_.model_copy(
        update={
            "objectives": ("accuracy", "latency_ms", "gmacs"),
            "limits": ("gbitops<=0.02",),
            "out": tmp_path / "out",
            "trials": 6,
        }
    )
    result = tune(asked)
    inputs = supernet.example(RuntimeSetting(sequence_length=16))
    costs = Costs(supernet, supernet.graph(inputs), inputs)
    for member in (*result.members, *result.baselines):
        genes = supernet.space.encode(member.candidate)[None]
        assert member.report["gmacs"] == pytest.approx(float(costs.gmacs(genes)[0]))
        assert member.report["gbitops"] == pytest.approx(float(costs.gbitops(genes)[0]))
    full = next(member for member in result.baselines if member.candidate == largest)
    assert 0 < full.report["gbitops"] < 1024 * full.report["gmacs"]
    assert all("gmacs" in member.search for member in result.members)
    other = latency_table.write(table_of(supernet, ELSEWHERE, 1), tmp_path)
    for retargeted in retarget(tmp_path / "out", ELSEWHERE, seq_len=16, table=other).members:
        genes = supernet.space.encode(retargeted.candidate)[None]
        assert retargeted.metrics["gmacs"] == pytest.approx(float(costs.gmacs(genes)[0]))
        assert retargeted.metrics["size_mb"] == pytest.approx(float(costs.size_mb(genes)[0]))
