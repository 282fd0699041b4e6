"""What export refuses, and what it never replaces."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from qnas_plugin.api import export, retarget
from qnas_plugin.errors import OutputError, StudyError, UsageError
from qnas_plugin.latency import table as latency_table
from qnas_plugin.request import TuneRequest
from qnas_plugin.supernets import Supernet
from tests.commands.conftest import ELSEWHERE, table_of
from tests.commands.test_train import contents


@pytest.fixture
def study(request_: TuneRequest, tmp_path: Path) -> Path:
    """A copy of the study, whose checkpoint and data are copies too."""
    for name, source in (("checkpoint", request_.checkpoint), ("data", request_.data)):
        shutil.copytree(str(source), tmp_path / name)
    shutil.copytree(request_.out, tmp_path / "study")
    copied = request_.model_copy(
        update={"checkpoint": str(tmp_path / "checkpoint"), "data": str(tmp_path / "data"), "out": tmp_path / "study"}
    )
    copied.write(tmp_path / "study" / "request.toml")
    return tmp_path / "study"


def keys(study: Path) -> list[str]:
    record = json.loads((study / "pareto.json").read_text())
    return list(dict.fromkeys(member["key"] for member in [*record["members"], *record["baselines"]]))


def test_export_measures_nothing_and_so_needs_no_machine_of_the_study(study: Path, tmp_path: Path) -> None:
    """The study is of a CPU that this one is not; its profile and table may be gone."""
    request = study / "request.toml"
    request.write_text(request.read_text().replace('hardware = "xeon-8280"', 'hardware = "gone.toml"'))
    key = keys(study)[0]
    said: list[str] = []
    export(study, tmp_path / "out", key=key, on_stage=said.append)
    member = next(path for path in (study / "pareto").iterdir() if path.name.endswith(key))
    for name in ("model.onnx", "candidate.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (member / name).read_bytes()
    assert said == [f"Wrote {key} to {tmp_path / 'out' / 'model.onnx'}"]


@pytest.mark.parametrize("changed", ["weights", "tokenizer", "data"])
def test_export_and_retarget_refuse_what_the_study_was_not_made_with(
    changed: str, study: Path, tmp_path: Path, supernet: Supernet
) -> None:
    if changed == "weights":
        path = tmp_path / "checkpoint" / "model.safetensors"
        save_file({name: 1.01 * tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    elif changed == "tokenizer":
        path = tmp_path / "checkpoint" / "tokenizer.json"
        words = json.loads(path.read_text())
        vocabulary = words["model"]["vocab"]
        vocabulary["good"], vocabulary["bad"] = vocabulary["bad"], vocabulary["good"]
        path.write_text(json.dumps(words))
    else:
        path = tmp_path / "data" / "train.tsv"
        path.write_text("\n".join(path.read_text().splitlines()[:-20]) + "\n")
    with pytest.raises(StudyError, match="has changed since the study"):
        export(study, tmp_path / "out", key=keys(study)[0])
    assert not (tmp_path / "out").exists()
    table = latency_table.write(table_of(supernet, ELSEWHERE, 1), tmp_path)
    with pytest.raises(StudyError, match="has changed since the study"):
        retarget(study, ELSEWHERE, seq_len=16, table=table, evaluate=1, out=tmp_path / "out")


def test_export_takes_a_study_of_an_older_version(study: Path, tmp_path: Path) -> None:
    """Its result has no identity, and its journal one without what was recorded later."""
    record = json.loads((study / "pareto.json").read_text())
    del record["identity"]
    (study / "pareto.json").write_text(json.dumps(record))
    lines = []
    for line in (study / "study.journal").read_text().splitlines():
        content = json.loads(line)
        for name in ("processor", "max_length", "onnxruntime"):
            content.get("user_attr", {}).get("qnas", {}).get("identity", {}).pop(name, None)
        lines.append(json.dumps(content, separators=(",", ":")))
    (study / "study.journal").write_text("".join(f"{line}\n" for line in lines))
    assert "processor" not in (study / "study.journal").read_text()
    export(study, tmp_path / "out", key=keys(study)[0])
    (study / "study.journal").unlink()
    with pytest.raises(StudyError, match="there is no study"):
        export(study, tmp_path / "other", key=keys(study)[0])


def test_export_never_replaces_what_the_study_reads(study: Path, tmp_path: Path) -> None:
    before = contents(tmp_path / "checkpoint")
    (tmp_path / "link").symlink_to(tmp_path / "checkpoint")
    for out in (tmp_path / "checkpoint", tmp_path / "link", study):
        with pytest.raises(UsageError, match="--out is the folder of the (model that was searched|study)"):
            export(study, out, key=keys(study)[0], overwrite=True)
    assert contents(tmp_path / "checkpoint") == before


def test_export_replaces_another_model_only_when_it_is_meant(study: Path, tmp_path: Path) -> None:
    first, second = keys(study)[:2]
    out, said = tmp_path / "out", list[str]()
    export(study, out, key=first)
    before = contents(out)
    export(study, out, key=first, on_stage=said.append)
    assert said == [f"Already finished: {out} holds this very model"]
    with pytest.raises(OutputError, match=f"{out} holds {first}; give another --out, or --overwrite"):
        export(study, out, key=second)
    assert contents(out) == before
    (out / "model.onnx").write_bytes(b"of another study")
    with pytest.raises(OutputError, match="holds another model of this candidate"):
        export(study, out, key=first)
    export(study, out, key=first, overwrite=True)
    assert contents(out) == before
    (out / "model.onnx").unlink()  # killed before its last file was there
    export(study, out, key=first)
    assert contents(out) == before
    export(study, out, key=second, overwrite=True)
    assert json.loads((out / "candidate.json").read_text())["key"] == second
    foreign = tmp_path / "foreign"
    shutil.copytree(tmp_path / "checkpoint", foreign)
    with pytest.raises(OutputError, match="holds a model that qnas export did not write"):
        export(study, foreign, key=first)
    assert contents(foreign) == contents(tmp_path / "checkpoint")
