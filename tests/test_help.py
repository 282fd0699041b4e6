"""The command line stands as the requests declare it, and says what is missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qnas_plugin import registry
from qnas_plugin.cli import EXIT_USAGE, main
from qnas_plugin.errors import UsageError
from qnas_plugin.request import ExportRequest, Options, ProfileRequest, RetargetRequest, TrainRequest, TuneRequest
from qnas_plugin.request.options import GROUPS, shown

COMMANDS = {
    "train": TrainRequest,
    "tune": TuneRequest,
    "profile": ProfileRequest,
    "retarget": RetargetRequest,
    "export": ExportRequest,
}


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int | str | None, str]:
    """The exit code and what was printed, in one line."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    captured = capsys.readouterr()
    return stop.value.code, captured.out + captured.err


@pytest.mark.parametrize(("name", "request_"), COMMANDS.items())
def test_help_has_each_field_under_its_heading(
    name: str, request_: type[Options], capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = said(capsys, name, "--help")
    assert code == 0
    sections = dict(re.findall(r"^(\w[\w ]*):\n((?:(?: .*)?\n)+)", text + "\n", flags=re.MULTILINE))
    headings = [heading for heading in sections if heading in GROUPS]
    assert headings == [group for group in GROUPS if group in headings]
    for field, declared in request_.model_fields.items():
        words = re.sub(r"[\s-]", "", sections[shown(declared).group])
        assert re.search(rf"^ +(-\w, )?{request_.option(field)}\b", sections[shown(declared).group], flags=re.MULTILINE)
        assert re.sub(r"[\s-]", "", declared.description or "-") in words


def test_help_shows_choices_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    words = " ".join(said(capsys, "tune", "--help")[1].split())
    for text in (
        "--latency measured|table",
        "--against int8|fp32",
        "--seed <int> Of every random choice. [default: 0]",
        f"[{', '.join(registry.names('tasks'))}]",
        f"[{', '.join(registry.names('search'))}]",
    ):
        assert text in words
    assert "-m, --model MODEL" in words


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["retarget"], "--study and --hardware are missing; see: qnas retarget --help"),
        (["tune", "-m", "m.onnx"], "--data and --out are missing; see: qnas tune --help"),
        (["olive-config", "-m", "m.onnx"], "--data and --out are missing; see: qnas olive-config --help"),
        (["tune", "--trials", "0"], "--trials 0: it must be at least 1"),
        (["tune", "--seed", "-1", "--trials", "5"], "--seed -1: it must be at least 0"),
        (["tune", "--seed", "1e999"], "--seed inf: it must be a finite number"),
        (["tune", "--trials", "many"], "--trials 'many': it must be a whole number"),
        (["export", "--study", "s", "--out", "o", "--precision", "int4"], "it must be 'searched', 'int8' or 'fp32'"),
    ],
)
def test_wrong_options_are_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(capsys, *arguments)
    assert code == EXIT_USAGE
    assert text.startswith("qnas: ")
    assert text.endswith(f"{line}\n")
    assert text.count("\n") == 1


def test_what_is_given_wins_though_it_is_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[TuneRequest] = []

    def tuning(request: TuneRequest) -> None:
        asked.append(request)
        raise UsageError("enough")

    monkeypatch.setattr("qnas_plugin.console.tuning", tuning)
    config = tmp_path / "c.toml"
    lines = ("seed = 5", "selection-samples = 9", "insist = true", "latency = 'table'")
    config.write_text("\n".join([*lines, "objective = ['accuracy', 'size_mb']"]))
    given = ["--supernet", "bert", "--checkpoint", "c", "--task", "text-classification", "--data", "d", "--out", "o"]
    wins = ["--seed", "0", "--max-accuracy-drop", "0", "--limit", "size_mb<=3"]
    said(capsys, "tune", *given, "--config", str(config), *wins)
    (request,) = asked
    assert (request.seed, request.selection_samples, request.insist) == (0, 9, True)
    assert (request.max_accuracy_drop, request.limits) == (0, ("size_mb<=3",))
    assert request.objectives == ("accuracy", "size_mb")
