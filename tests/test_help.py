"""The command line stands as the requests declare it, and says what is missing."""

from __future__ import annotations

import re

import pytest

from qnas_plugin.cli import EXIT_USAGE, main
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
        "--seed <int> Of every random choice. [default: (0)]",
    ):
        assert text in words
    assert "-m, --model MODEL" in words


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["retarget"], "--study and --hardware are missing; see: qnas retarget --help"),
        (["tune", "-m", "m.onnx"], "--data and --out are missing; see: qnas tune --help"),
        (["olive-config", "-m", "m.onnx"], "--data and --out are missing; see: qnas olive-config --help"),
        (["tune", "--trials", "0"], "--trials '0': it must be at least 1"),
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
