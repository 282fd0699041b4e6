"""The Python functions take what the command line takes, and give what it writes."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import pytest
import typer.main

import qnas_plugin as qnas
from qnas_plugin import cli
from qnas_plugin.errors import UsageError
from qnas_plugin.request import ProfileRequest, TrainRequest, TuneRequest

RENAMED = {"objective": "objectives", "limit": "limits"}
ONLY_THERE = {"config", "as_json", "help", "detect", "name", "compare", "merge", "plot"}
"""Options of the command line that are no part of a request."""


def test_import_loads_nothing_but_itself() -> None:
    code = "import sys, qnas_plugin; print([name for name in sys.modules if name.startswith('qnas_plugin.')])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "['qnas_plugin._version']"


def test_public_names_stay_functions_when_their_modules_are_loaded() -> None:

    assert set(qnas.__all__) <= set(dir(qnas))
    assert inspect.isfunction(qnas.tune)
    with pytest.raises(AttributeError, match="no attribute 'tuen'"):
        qnas.tuen  # noqa: B018


@pytest.mark.parametrize("name", ["tune", "train", "profile", "retarget", "export"])
def test_functions_have_the_options_of_the_command_line_with_its_defaults(name: str) -> None:
    command: Any = typer.main.get_command(cli.app)
    options = {RENAMED.get(p.name, p.name): p for p in command.commands[name].params}
    parameters = inspect.signature(getattr(qnas, name)).parameters
    assert {*options} - ONLY_THERE == {*parameters} - {"on_stage"}
    kind = {"tune": TuneRequest, "train": TrainRequest, "profile": ProfileRequest}.get(name)
    for field in parameters.keys() & options.keys() if kind else ():
        default, shown = kind.model_fields[field].get_default(call_default_factory=True), options[field].show_default
        if isinstance(default, bool):
            assert options[field].default == default, field
        elif isinstance(default, int | float):
            assert float(shown) == default, field
        elif field == "objectives":
            assert tuple(shown.split(", ")) == default
        elif isinstance(default, str) and field != "against":  # the help names both of its defaults
            assert shown == default, field


def test_tune_says_what_is_wrong_with_its_options() -> None:
    given = {"task": "text-classification", "data": "d", "out": "o"}
    with pytest.raises(TypeError, match="unexpected keyword argument 'trails'"):
        qnas.tune(**given, trails=3)
    with pytest.raises(TypeError, match="missing a required argument"):
        qnas.tune(supernet="bert")  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="did you mean 'bert'"):
        qnas.tune(supernet="brt", checkpoint="c", task="text-classification", data="d", out="o")
