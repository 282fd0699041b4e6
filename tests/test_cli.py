"""The commands from end to end, on a tiny BERT and tiny data: the real quantizer, runtime, and timing process."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from qnas_plugin.cli import main
from tests.sessions import exact


@pytest.fixture(scope="module")
def hardware(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile of whatever machine the tests run on."""
    from qnas_plugin.hardware import describe, write_profile
    from qnas_plugin.hardware.machine import detect

    return write_profile(describe(detect(), "this-machine"), tmp_path_factory.mktemp("hardware"))


def run(*arguments: str | Path) -> int:
    """The exit code of a command line."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def supernet(bert_checkpoint: Path, sentences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "supernet"
    code = run(
        *("train", "--supernet", "bert", "--checkpoint", bert_checkpoint, "--task", "text-classification"),
        *("--data", sentences, "--depth", "2,3,4", "--ffn", "16,32,48", "--epochs", "12", "--batch-size", "16"),
        *("--learning-rate", "1e-3", "--subnets", "sandwich", "--arithmetic", "fp32", "--out", out),
    )
    assert code == 0
    return out


def tune_arguments(supernet: Path, sentences: Path, hardware: Path, out: Path) -> list[str | Path]:
    return [
        *("tune", "--supernet", "bert", "--checkpoint", supernet, "--task", "text_classification", "--data", sentences),
        *("--hardware", hardware, "--seq-len", "16", "--search-samples", "80", "--calibration-samples", "16"),
        *("--objective", "accuracy", "--objective", "latency_ms", "--objective", "size_mb", "--out", out),
    ]


@pytest.fixture(scope="module")
def tuned(supernet: Path, sentences: Path, hardware: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "out"
    arguments = tune_arguments(supernet, sentences, hardware, out)
    assert run(*arguments, "--trials", "8", "--population", "4", "--max-accuracy-drop", "1") == 0
    return out


def test_train_writes_a_checkpoint_with_its_record(supernet: Path) -> None:
    record = json.loads((supernet / "supernet.json").read_text())
    assert record["supernet"] == "bert"
    assert record["elastic"]["depth"] == [2, 3, 4]
    assert record["training"]["accuracy"]["largest_search"] > 0.6
    assert (supernet / "tokenizer.json").is_file()
    assert not (supernet / "training.pt").exists()


def test_tune_writes_what_it_promises(tuned: Path) -> None:
    record = json.loads((tuned / "pareto.json").read_text())
    assert record["trials"]["complete"] == 8
    assert record["trials"]["failed"] == 0
    assert record["data"]["examples"]["report"] == 100
    assert [row["name"] for row in record["baselines"]] == [
        "largest-fp32",
        "largest-int8",
        "smallest-fp32",
        "smallest-int8",
    ]
    assert record["schema_version"] == 2
    assert record["recommended"] in [row["name"] for row in [*record["members"], *record["baselines"]]]
    assert record["limit"]["kept"] is True
    assert record["data"]["examples"]["selection"] == 80
    assert record["selection"]["tests"]
    assert set(record["witness"]) >= {"witness", "soft_correlation", "accuracy_correlation"}
    assert not all(row["dominated"] for row in record["members"])
    for row in [*record["members"], *record["baselines"]]:
        folder = tuned / row["folder"]
        assert {"model.onnx", "config.json", "tokenizer.json", "candidate.json", "metrics.json"} <= {
            path.name for path in folder.iterdir()
        }
        assert row["report"]["size_mb"] == (folder / "model.onnx").stat().st_size / 1e6
        assert row["latency"]["runs"] >= 30
        searched = [name for name in row["candidate"] if name.startswith("precision.")]
        assert {f"precision.{group}" for group in row["kernels"]["groups"]} == set(searched)
        assert row["kernels"]["not_integer"] == []
    int8 = next(row for row in record["baselines"] if row["name"] == "largest-int8")["kernels"]["groups"]
    assert {name for names in int8.values() for name in names} == {"Gather", "MatMulIntegerToFloat", "QGemm"}
    assert int8["pooler"] == int8["classifier"] == ["QGemm"]
    assert sorted(path.name for path in (tuned / "pareto").iterdir()) == sorted(r["name"] for r in record["members"])
    html = (tuned / "report.html").read_text()
    assert record["recommended"] in html
    assert "<script src=" not in html


def test_members_load_in_optimum_and_predict_the_same(tuned: Path, sentences: Path) -> None:
    """A client that isn't ours: Optimum's model class and its own tokenizer call."""
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer

    record = json.loads((tuned / "pareto.json").read_text())
    lines = (sentences / "validation.tsv").read_text().splitlines()[1:]
    texts, labels = zip(*(line.split("\t") for line in lines), strict=True)
    for row in record["members"]:
        folder = tuned / row["folder"]
        model = ORTModelForSequenceClassification.from_pretrained(folder, session_options=exact())
        tokens = AutoTokenizer.from_pretrained(folder)(list(texts), padding=True, return_tensors="pt")
        classes = model(**tokens).logits.argmax(-1).numpy()
        assert np.mean(classes == np.array(labels, dtype=int)) == pytest.approx(row["report"]["accuracy"])


@pytest.fixture(scope="module")
def exported(bert_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``optimum-cli export onnx`` writes it: the model, its configuration and its tokenizer."""
    import onnx
    from transformers import BertForSequenceClassification

    from qnas_plugin.build.export import export_module

    folder = tmp_path_factory.mktemp("exported")
    for path in bert_checkpoint.iterdir():
        if path.suffix in (".json", ".txt"):
            shutil.copy(path, folder)
    model = BertForSequenceClassification.from_pretrained(bert_checkpoint, attn_implementation="eager")
    ids = np.ones((2, 5), dtype=np.int64)
    inputs = {"input_ids": ids, "attention_mask": ids, "token_type_ids": 0 * ids}
    onnx.save(export_module(model, inputs), str(folder / "model.onnx"))
    return folder


@pytest.mark.parametrize("task", ["text_classification", "arrays"])
def test_tune_takes_one_onnx_model(
    task: str, exported: Path, sentences: Path, hardware: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Members load in Optimum, goes on where it was, and gives the same bytes again."""
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer

    data = sentences
    if task == "arrays":
        rng, data = np.random.default_rng(0), tmp_path / "data.npz"
        ids = rng.integers(5, 20, (90, 7))
        np.savez(data, input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids))
    arguments = [
        *("tune", "--model", exported / "model.onnx", "--task", task, "--data", data, "--hardware", hardware),
        *("--seq-len", "16", "--search-samples", "40", "--calibration-samples", "8", "--population", "4"),
        *("--precision", "int8", "--precision", "int8-asym", "--precision", "fp32", "--keep-fp32", "*classifier*"),
        *("--group", "embeddings=*embeddings*", "--algorithm", "random", "--max-accuracy-drop", "1", "--out"),
    ]
    assert run(*arguments, tmp_path / "out", "--trials", "4") == 0
    assert run(*arguments, tmp_path / "out", "--trials", "5") == 0
    error = capsys.readouterr().err
    assert "4 trials are stored already" in error
    assert "few: small differences are chance" in " ".join(error.split())
    record = json.loads((tmp_path / "out" / "pareto.json").read_text())
    assert record["trials"]["complete"] == 5
    assert record["trials"]["failed"] == 0
    assert record["data"]["metric"] == ("accuracy" if task == "text_classification" else "cosine")
    assert [row["name"] for row in record["baselines"]] == ["largest-fp32", "largest-int8"]
    fp32 = record["baselines"][0]
    assert task == "text_classification" or fp32["report"]["accuracy"] == 1
    assert set(fp32["candidate"]) >= {"precision.embeddings"}
    assert not any("classifier" in name for name in fp32["candidate"])
    for row in record["members"]:
        folder = tmp_path / "out" / row["folder"]
        model = ORTModelForSequenceClassification.from_pretrained(folder, session_options=exact())
        tokens = AutoTokenizer.from_pretrained(folder)(["good film", "bad plot"], return_tensors="pt")
        assert model(**tokens).logits.shape == (2, 2)
    row = record["members"][0]
    assert run("export", "--study", tmp_path / "out", "--key", row["key"], "--out", tmp_path / "again") == 0
    again = (tmp_path / "again" / "model.onnx").read_bytes()
    assert again == (tmp_path / "out" / row["folder"] / "model.onnx").read_bytes()


def test_export_gives_the_bytes_that_tune_wrote(tuned: Path, tmp_path: Path) -> None:
    record = json.loads((tuned / "pareto.json").read_text())
    row = record["members"][0]
    expected = (tuned / row["folder"] / "model.onnx").read_bytes()
    assert run("export", "--study", tuned, "--key", row["key"][:8], "--out", tmp_path / "a") == 0
    assert (tmp_path / "a" / "model.onnx").read_bytes() == expected
    candidate = tuned / row["folder"] / "candidate.json"
    assert run("export", "--study", tuned, "--candidate", candidate, "--out", tmp_path / "b") == 0
    assert (tmp_path / "b" / "model.onnx").read_bytes() == expected
    assert run("export", "--study", tuned, "--key", row["key"], "--precision", "fp32", "--out", tmp_path / "c") == 0
    assert (tmp_path / "c" / "model.onnx").stat().st_size > len(expected) * 0.9


def test_tune_goes_on_where_it_was(
    tuned: Path, supernet: Path, sentences: Path, hardware: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (tuned / "study.journal").read_bytes()
    arguments = tune_arguments(supernet, sentences, hardware, tuned)
    assert run(*arguments, "--trials", "9", "--population", "4", "--max-accuracy-drop", "1", "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["trials"]["complete"] == 9
    assert json.loads(captured.out)["trials"]["failed"] == 0
    assert "8 trials are stored already" in captured.err
    assert (tuned / "study.journal").read_bytes().startswith(before)


def test_tune_refuses_to_mix_latencies_of_two_runtimes(
    tuned: Path,
    supernet: Path,
    sentences: Path,
    hardware: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (tuned / "study.journal").read_bytes()
    monkeypatch.setattr("qnas_plugin.runtimes.onnxruntime.version", lambda: "1.0")
    assert run(*tune_arguments(supernet, sentences, hardware, tuned), "--trials", "99") == 1
    assert re.search(r"has onnxruntime \d.*, this run has onnxruntime 1\.0; use another", capsys.readouterr().err)
    assert (tuned / "study.journal").read_bytes() == before


def test_tune_compares_with_baselines_that_the_algorithm_did_not_ask_for(
    supernet: Path, sentences: Path, hardware: Path, tmp_path: Path
) -> None:
    arguments = tune_arguments(supernet, sentences, hardware, tmp_path)
    assert run(*arguments, "--trials", "2", "--algorithm", "random", "--max-accuracy-drop", "1") == 0
    record = json.loads((tmp_path / "pareto.json").read_text())
    assert all(0 <= row["search"]["accuracy"] <= 1 for row in record["baselines"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--objective", "accuracy", "--objective", "size_mb"], "objectives"),
        (["--seq-len", "8"], "setting"),
        (["--search-samples", "60"], "data"),
    ],
)
def test_tune_refuses_the_folder_of_another_study(
    changed: list[str],
    message: str,
    tuned: Path,
    supernet: Path,
    sentences: Path,
    hardware: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (tuned / "study.journal").read_bytes()
    arguments = tune_arguments(supernet, sentences, hardware, tuned)
    if "--objective" in changed:
        arguments = [a for a in arguments if a not in ("--objective", "accuracy", "latency_ms", "size_mb")]
    assert run(*arguments, *changed) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("qnas: the study in")
    assert message in error
    assert (tuned / "study.journal").read_bytes() == before


def test_tune_names_the_nearest_member_when_nothing_keeps_a_limit(
    tuned: Path, supernet: Path, sentences: Path, hardware: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = tune_arguments(supernet, sentences, hardware, tuned)
    code = run(*arguments, "--trials", "8", "--population", "4", "--limit", "latency_ms<=0.000001")
    assert code == 3
    assert "No member keeps latency_ms<=1e-06" in " ".join(capsys.readouterr().err.split())
    assert json.loads((tuned / "pareto.json").read_text())["recommended"] is None


@pytest.mark.parametrize(("name", "kept", "code"), [("1-a", True, 0), ("1-a", False, 4), (None, None, 3)])
def test_the_exit_code_says_whether_the_limits_are_kept(
    name: str | None, kept: bool | None, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qnas_plugin import console
    from qnas_plugin.results.member import Result

    monkeypatch.setattr(console, "tuning", lambda request: Result((), (), name, "why", kept))
    options = ["--supernet", "bert", "--checkpoint", "c", "--task", "text_classification", "--data", "d"]
    assert run("tune", *options, "--out", tmp_path) == code


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (
            ["tune", "--supernet", "brt"],
            2,
            "unknown supernet 'brt'; did you mean 'bert'? have: beit3, bert, mobilenet_v3, resnet50, vit",
        ),
        (
            ["tune", "--supernet", "bert", "--checkpoint", "c", "--task", "text"],
            2,
            "did you mean 'text_classification'",
        ),
        (["show", "suprnets"], 2, "did you mean 'supernets'"),
        (["export", "--study", "nowhere", "--out", "o"], 2, "nowhere is no folder that qnas tune wrote"),
        (["train", "--depth", "3,x"], 2, "--depth takes numbers"),
    ],
)
def test_wrong_options_give_one_line(
    options: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*options) == code
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_tune_gives_one_line_for_bad_data_and_folders(
    supernet: Path, sentences: Path, hardware: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def last_line(*changed: str | Path, code: int = 1) -> str:
        assert run(*tune_arguments(supernet, sentences, hardware, tmp_path / "out"), *changed) == code
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "no file or folder" in last_line("--data", tmp_path / "missing.tsv")
    bad = tmp_path / "bad.tsv"
    bad.write_text("sentence\tlabel\na good film\t1\nno label\n")
    assert "bad.tsv:3: 1 fields" in last_line("--data", bad)
    three = tmp_path / "three.tsv"
    three.write_text("sentence\tlabel\n" + "".join(f"film {i}\t{i % 3}\n" for i in range(60)))
    assert "the checkpoint has 2 classes" in last_line("--data", three)
    (tmp_path / "file").touch()
    assert "cannot write to the folder" in last_line("--out", tmp_path / "file")
    assert "unknown hardware profile 'xeon-8280x'; did you mean 'xeon-8280'" in last_line(
        "--hardware", "xeon-8280x", code=2
    )
    assert "latencies are measured here" in last_line("--hardware", "xeon-8280")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_one_line_and_keeps_the_trials(
    stop: signal.Signals, supernet: Path, sentences: Path, hardware: Path, tmp_path: Path
) -> None:
    command = [str(a) for a in tune_arguments(supernet, sentences, hardware, tmp_path / "out")]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "qnas_plugin", *command, "--trials", "500"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(scratch)},
    ) as process:
        journal = tmp_path / "out" / "study.journal"
        deadline = time.monotonic() + 90
        while not (journal.exists() and journal.read_bytes().count(b'"metrics"') >= 2):
            assert time.monotonic() < deadline, "no trial was stored"
            time.sleep(0.1)
        process.send_signal(stop)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert not list(scratch.glob("qnas-scratch-*"))
    assert error.strip().splitlines()[-1].startswith("qnas: stopped; what was finished is kept")
    assert "Traceback" not in error
    assert journal.read_bytes().endswith(b"\n")


def test_a_full_disk_is_one_line_wherever_it_shows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(what: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/file")

    monkeypatch.setattr("qnas_plugin.console.showing", full)
    assert run("show", "tasks") == 1
    assert capsys.readouterr().err.startswith("qnas: the disk is full at /tmp/file; make room")


def test_show_lists_everything(capsys: pytest.CaptureFixture[str]) -> None:
    for what, name in (
        ("supernets", "bert"),
        ("tasks", "text_classification"),
        ("algorithms", "linas"),
        ("predictors", "ridge"),
        ("hardware", "xeon-8480plus"),
    ):
        assert run("show", what) == 0
        assert name in capsys.readouterr().out


def test_the_module_runs_as_a_program() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "qnas_plugin", "--version"],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    assert ran.stdout.startswith("qnas ")


def test_tune_with_workers_goes_on_after_kill_and_interrupt_and_leaves_no_process(
    supernet: Path, sentences: Path, hardware: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = [
        *tune_arguments(supernet, sentences, hardware, out),
        *("--population", "4", "--max-accuracy-drop", "1", "--workers", "2"),
    ]
    finished: list[str] = []
    for number, stop in ((2, signal.SIGKILL), (4, signal.SIGINT)):
        process = subprocess.Popen(
            [sys.executable, "-m", "qnas_plugin", *map(str, arguments), "--trials", "40"],
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        until(lambda n=number: len(stored(out)) >= n)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        if stop == signal.SIGKILL:
            assert run(*arguments, "--trials", "40") == 1  # another run writes there
            process.kill()
        else:
            os.killpg(process.pid, stop)  # as a terminal does
        _, stderr = process.communicate(timeout=30)
        if stop == signal.SIGINT:
            assert process.returncode == 130
            assert "Traceback" not in stderr.decode()
        assert not psutil.wait_procs(children, timeout=20)[1]
        assert stored(out)[: len(finished)] == finished
        finished = stored(out)
    assert run(*arguments, "--trials", str(len(finished) + 1)) == 0
    assert stored(out)[:-1] == finished
    assert len(set(stored(out))) == len(finished) + 1


def stored(out: Path) -> list[str]:
    """The keys of the candidates in a study's journal."""
    path = out / "study.journal"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return [record["user_attrs"]["candidate"] for record in records if "candidate" in record.get("user_attrs", {})]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 90
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
