"""Whole commands on wrong files: one line on standard error, and the exit code that the documentation names."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from qnas_plugin.cli import EXIT_ERROR, EXIT_USAGE, main
from qnas_plugin.hardware import describe, write_profile
from qnas_plugin.hardware.machine import detect
from tests.fuzz.campaign import limited


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def surrogate(path: Path) -> None:
    path.write_text('{"x": "\\ud800"}')


TUNE = ("tune", "--supernet", "bert", "--checkpoint", "c", "--task", "text_classification", "--out", "out", "--data")


@pytest.mark.parametrize("make", [deep, fifo, device, surrogate])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("tune", "--config", "FILE.toml"), EXIT_USAGE),
        (("train", "--config", "FILE.toml"), EXIT_USAGE),
        (("profile", "--plot", "FILE.json"), EXIT_ERROR),
        (("profile", "--compare", "FILE.json", "FILE.json"), EXIT_ERROR),
        (("retarget", "--study", ".", "--hardware", "FILE.toml"), EXIT_USAGE),
        (("export", "--study", ".", "--out", "out"), EXIT_USAGE),
        ((*TUNE, "FILE.tsv"), EXIT_ERROR),
        ((*TUNE, "FILE.csv.gz"), EXIT_ERROR),
        (("tune", "--model", "."), EXIT_USAGE),
    ],
)
def test_command_is_one_line_when_a_file_is_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], None],
    arguments: tuple[str, ...],
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [text for text in arguments if text.startswith("FILE")]
    for name in (*names[:1], "request.toml", "config.json"):
        make(tmp_path / name)
    assert said(capsys, *arguments) == code


@pytest.mark.parametrize(
    ("data", "code"), [("x" * 5000, EXIT_ERROR), ("\udcff", EXIT_USAGE), ("no/such\nfile", EXIT_ERROR)]
)
def test_command_is_one_line_when_a_name_cannot_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: str, code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said(capsys, *TUNE, data) == code


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("leaves", "raise SystemExit(0)", "failed: SystemExit: 0"),
        ("raises", "raise KeyError('y')", "failed: KeyError: 'y'"),
        ("turns", "while True: pass", "failed: no end within 0.5 seconds"),
        ("exceeds", "return [2.0] * len(labels)", "must give"),
    ],
)
def test_tune_is_one_line_when_a_metric_misbehaves(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    body: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("QNAS_FUNCTION_SECONDS", "0.5")
    (tmp_path / f"metric_{name}.py").write_text(f"def score(outputs, labels):\n    {body}\n")
    onnx.save(product(), tmp_path / "model.onnx")
    x = np.random.default_rng(0).standard_normal((12, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, labels=np.arange(12) % 2)
    profile = write_profile(describe(detect(), "this-machine"), tmp_path)
    code = said(
        *(capsys, "tune", "--model", "model.onnx", "--data", "data.npz", "--metric", f"metric_{name}:score"),
        *("--hardware", str(profile), "--out", "out", "--trials", "4", "--population", "4"),
        message=f"the metric 'metric_{name}:score' {message}",
    )
    assert code == EXIT_USAGE


def product() -> onnx.ModelProto:
    """Two classes from eight numbers."""
    weight = onnx.numpy_helper.from_array(np.eye(8, 2, dtype=np.float32), "w")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "graph",
        [value("x", onnx.TensorProto.FLOAT, ["n", 8])],
        [value("y", onnx.TensorProto.FLOAT, ["n", 2])],
        [weight],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def said(capsys: pytest.CaptureFixture[str], *arguments: str, message: str = "") -> int | str | None:
    """The exit code of a command that says one line, which the message is in."""
    with limited(30), pytest.raises(SystemExit) as stop:
        main(list(arguments))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("qnas: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert len(lines[0]) < 2000 + len(max(arguments, key=len))
    return stop.value.code
