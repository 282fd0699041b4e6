"""``optimum-cli`` in a process of its own, as people run it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main

from qnas_plugin import cli
from qnas_plugin.hosts.optimum import add_options, run
from tests.hosts.conftest import SEARCH, Case, front, trials
from tests.test_registry import HEAVY


def installed(distribution: str) -> bool:
    try:
        return bool(importlib.metadata.version(distribution))
    except importlib.metadata.PackageNotFoundError:
        return False


needs_optimum = pytest.mark.skipif(not installed("optimum"), reason="optimum is not installed")
needs_export = pytest.mark.skipif(not installed("optimum-onnx"), reason="optimum-onnx is not installed")
MAIN = "import sys; from optimum.commands.optimum_cli import main; sys.argv[0] = 'optimum-cli'; main()"


def optimum_cli(*arguments: object, first: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs it; ``first`` stands before all other folders that modules come from."""
    path = os.pathsep.join([*([str(first)] if first else []), *filter(None, sys.path)])
    command = [sys.executable, "-P", "-c", MAIN, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ) | {"PYTHONPATH": path})


@needs_optimum
def test_optimum_cli_lists_the_commands_as_they_describe_themselves() -> None:
    shown = " ".join(optimum_cli("--help").stdout.split())
    for text in ("tune Search the INT8/FP32", "profile Make the latency table", "retarget Turn a finished search"):
        assert text in shown


@needs_optimum
@pytest.mark.parametrize("name", ["tune", "profile", "retarget"])
def test_help_has_each_option_with_its_text(name: str) -> None:
    shown = optimum_cli(name, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    words = "".join(shown.stdout.split()).replace("-", "")
    command: Any = typer.main.get_command(cli.app)
    assert "\nWhat:\n" in shown.stdout
    assert "\nHardware:\n" in shown.stdout
    for option in command.commands[name].params:
        for text in (*option.opts, option.help if option.name != "help" else ""):
            assert "".join(text.split()).replace("-", "") in words


@needs_optimum
def test_help_loads_nothing_heavy() -> None:
    code = f"{MAIN.rsplit(';', 1)[0]}\nsys.argv[1:] = ['tune', '--help']\ntry: main()\nexcept SystemExit: pass\n"
    code += f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (
            "tune",
            ["--model", "a.onnx", "--objective", "accuracy", "--objective", "size_mb", "--insist", "--trials", "7"],
        ),
        ("profile", ["--compare", "old.json", "new.json"]),
        ("retarget", ["--study", "s", "--hardware", "xeon-8280", "--evaluate", "0", "--json"]),
    ],
)
def test_run_hands_back_what_was_given(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[list[str]] = []
    monkeypatch.setattr(cli, "main", lambda given, program: handed.append(given))
    parser = ArgumentParser(prog=f"optimum-cli {name}")
    add_options(parser)
    with pytest.raises(SystemExit) as stop:
        run(name, parser.parse_args(arguments))
    assert stop.value.code == 0
    assert handed[0][0] == name
    taken = " ".join(handed[0][1:]).replace("-m a.onnx", "--model a.onnx")
    assert sorted(taken.split()) == sorted(arguments)


@needs_optimum
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["tune", "--supernet", "brt"], 2, "did you mean 'bert'"),
        (
            ["tune", "-m", "nowhere.onnx", "--data", "d.npz", "--out", "OUT", "--hardware", "HERE"],
            1,
            "no file or folder 'd.npz'",
        ),
        (["tune", "-m", "nowhere", "--data", "d", "--out", "OUT"], 2, "'nowhere' is no ONNX file, no folder with one"),
        (["retarget"], 2, "--study and --hardware are missing; see: optimum-cli retarget --help"),
        (["profile"], 2, "give one of --detect"),
        (["tune", "--trials", "many"], 2, "--trials 'many': it must be a whole number"),
    ],
)
def test_exit_codes_are_those_of_qnas(
    arguments: list[str], code: int, message: str, case: Case, tmp_path: Path
) -> None:
    places = {"OUT": tmp_path / "out", "HERE": case.hardware}
    ran = optimum_cli(*(places.get(argument, argument) for argument in arguments))
    assert ran.returncode == code
    assert message in " ".join(ran.stderr.split())
    assert "Traceback" not in ran.stderr


@needs_optimum
def test_a_second_copy_on_the_path_breaks_nothing(tmp_path: Path) -> None:
    import optimum.commands.register.register_qnas as register

    copy = tmp_path / "optimum" / "commands" / "register"
    copy.mkdir(parents=True)
    shutil.copy(register.__file__, copy)
    assert optimum_cli("--help", first=tmp_path).returncode == 0
    assert "--max-accuracy-drop" in optimum_cli("tune", "--help", first=tmp_path).stdout
    (copy / "register_other.py").write_text(Path(register.__file__).read_text())
    assert optimum_cli("env", "--help", first=tmp_path).returncode == 0


@needs_optimum
@pytest.mark.parametrize("content", ["raise RuntimeError('half removed')", "def"])
def test_a_broken_plugin_breaks_no_other_command(content: str, tmp_path: Path) -> None:
    broken = tmp_path / "qnas_plugin"
    broken.mkdir()
    (broken / "__init__.py").write_text(content)
    shown = optimum_cli("--help", first=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert optimum_cli("export", "--help", first=tmp_path).returncode == 0
    tried = optimum_cli("tune", "-m", "x", first=tmp_path)
    assert tried.returncode == 1
    assert tried.stderr.startswith("optimum-cli tune: cannot import qnas_plugin (")
    assert len(tried.stderr.splitlines()) == 1


@needs_optimum
def test_tune_evaluates_what_qnas_does(case: Case, tuned: Path, tmp_path: Path) -> None:
    options = ["--data", case.data, "--hardware", case.hardware, "--out", tmp_path / "out", *SEARCH]
    ran = optimum_cli("tune", "-m", case.model, *options, "--objective", "accuracy", "--objective", "size_mb")
    assert ran.returncode == 0, ran.stderr
    assert trials(tmp_path / "out") == trials(tuned)
    assert front(tmp_path / "out") == front(tuned)


@needs_export
@pytest.mark.parametrize("task", ["text-classification", "image-classification"])
def test_tune_takes_what_export_wrote_and_writes_what_optimum_takes(
    task: str, request: pytest.FixtureRequest, case: Case, tmp_path: Path
) -> None:
    from optimum.onnxruntime import ORTModelForImageClassification, ORTModelForSequenceClassification

    text = task == "text-classification"
    checkpoint = request.getfixturevalue("bert_checkpoint" if text else "vit_checkpoint")
    data = request.getfixturevalue("sentences") if text else "digits"
    exported, out = tmp_path / "exported", tmp_path / "out"
    ran = optimum_cli("export", "onnx", "--model", checkpoint, "--task", task, exported)
    assert ran.returncode == 0, ran.stderr
    options = ["--data", data, "--hardware", case.hardware, *(("--seq-len", "16") if text else ()), *SEARCH]
    ran = optimum_cli("tune", "-m", exported, "--task", task, "--out", out, "--trials", "6", *options)
    assert ran.returncode in (0, 3), ran.stderr
    member = next(iter(sorted((out / "pareto").iterdir())))
    kind = ORTModelForSequenceClassification if text else ORTModelForImageClassification
    model = kind.from_pretrained(member)
    if text:
        from transformers import pipeline

        assert pipeline("text-classification", model=member.as_posix() and model, tokenizer=str(member))("a good film")
        optimized = optimum_cli("onnxruntime", "optimize", "--onnx_model", member, "-O1", "-o", tmp_path / "optimized")
        assert optimized.returncode == 0, optimized.stderr
        assert list((tmp_path / "optimized").glob("*.onnx"))
    else:
        images = np.zeros((2, 1, 8, 8), dtype=np.float32)
        assert model(pixel_values=images).logits.shape == (2, 10)
