"""Optimum: ``optimum-cli tune``, ``profile`` and ``retarget``, with the options, help and exit codes of ``qnas``.

``optimum/commands/register/register_qnas.py`` is what Optimum finds. Options are those of the command line's own
commands: they are translated to argparse, and what was given is handed back to the command line.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any, NoReturn

import typer.main

from qnas_plugin import cli
from qnas_plugin.request.command_line import HEADINGS, names


def add_options(parser: ArgumentParser) -> None:
    """Gives a parser the help text and the options of the command that its name ends with."""
    command = _command(parser.prog.split()[-1])
    parser.description = command.help
    groups = {heading: parser.add_argument_group(heading) for heading in HEADINGS}
    for option in command.params:
        if "--help" in option.opts:
            continue
        text = option.help.replace("%", "%%") + names(option.name)
        if isinstance(option.show_default, str):
            text += f" [default: {option.show_default}]"
        settings: dict[str, Any] = {"dest": option.name, "default": None, "help": text}
        if option.is_flag:
            settings["action"] = "store_true"
        else:
            settings["required"] = option.required
            settings["metavar"] = option.metavar or option.name.upper()
            if option.multiple:
                settings["action"] = "append"
            if option.nargs > 1:
                settings["nargs"], settings["metavar"] = option.nargs, tuple(option.metavar.split())
        groups[option.rich_help_panel or HEADINGS[-1]].add_argument(*option.opts, **settings)


def run(name: str, given: Namespace) -> NoReturn:
    """Runs a command of the command line with what argparse found; its exit code is this process's."""
    arguments = [name]
    for option in _command(name).params:
        value = getattr(given, option.name, None)
        each = value if option.multiple else [value]
        for one in each or ():
            if one is True:
                arguments.append(option.opts[0])
            elif one not in (None, False):
                arguments += [option.opts[0], *(one if option.nargs > 1 else [one])]
    cli.main(arguments, "optimum-cli")
    raise SystemExit(0)


def _command(name: str) -> Any:
    """The command of that name, as Typer builds it."""
    group: Any = typer.main.get_command(cli.app)
    return group.commands[name]
