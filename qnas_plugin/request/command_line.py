"""What a request declares, as options of a Typer command, with help under headings."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from types import UnionType
from typing import Any, Concatenate, Literal, TypeVar, Union, cast, get_args, get_origin

import typer
from pydantic_core import PydanticUndefined
from typer.core import TyperCommand

from qnas_plugin import registry
from qnas_plugin.request.options import GROUPS, REGISTERED, Options, shown

R = TypeVar("R")

INSTEAD = "In place of a new table"
HEADINGS = (*GROUPS, INSTEAD, "Options")
"""Of the options in help; what has none stands under the last."""


class Command(TyperCommand):
    """A command whose help has its options under headings."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the options, those without a heading last."""
        groups: dict[str, list[tuple[str, str]]] = {heading: [] for heading in HEADINGS}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                text = re.sub(r"\[default: \((.*)\)\]", r"[default: \1]", record[1])  # Typer puts texts into brackets
                listed = (record[0], f"{text}{names(param.name)}")
                groups[getattr(param, "rich_help_panel", None) or HEADINGS[-1]].append(listed)
        for heading, records in groups.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def names(field: str | None) -> str:
    """What help adds about an option whose values are registered: their names."""
    kind = REGISTERED.get(field or "")
    return f"  [{', '.join(registry.names(kind))}]" if kind else ""


def asking(
    request: type[Options], *only: str
) -> Callable[[Callable[Concatenate[dict[str, Any], ...], R]], Callable[..., R]]:
    """Gives a command the options that a request declares, all or ``only`` some.

    The command gets what was given, by field, as its first argument.
    """
    fields = {name: field for name, field in request.model_fields.items() if not only or name in only}

    def decorate(run: Callable[Concatenate[dict[str, Any], ...], R]) -> Callable[..., R]:
        @functools.wraps(run)
        def command(**given: Any) -> R:
            asked = {name: given.pop(name) for name in fields}
            absent = [name for name, value in asked.items() if value is None or value is False or value == []]
            return run({name: value for name, value in asked.items() if name not in absent}, **given)

        own = list(inspect.signature(run, eval_str=True).parameters.values())[1:]
        options = [_option(request, name) for name in fields]
        everything = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*options, *own)]
        command.__signature__ = inspect.Signature(everything)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in everything}
        return command

    return decorate


def _option(request: type[Options], name: str) -> inspect.Parameter:
    """The parameter that Typer makes a field's option from; it is None, or False, when not given."""
    field = request.model_fields[name]
    how, kind, metavar, text = shown(field), cast(Any, field.annotation), None, field.description or ""
    parser = None
    if get_origin(kind) in (Union, UnionType):
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        kind, metavar = str, "|".join(get_args(kind))
    elif kind in (int, float):  # Typer takes three lines to say what is wrong, and the request one
        kind, metavar, parser = str, f"<{kind.__name__}>", _number
    elif get_origin(kind) is tuple:
        kind = list[str] if get_args(kind)[0] is str else str
        text += " May be repeated." if kind == list[str] else ""
    option = typer.Option(
        False if kind is bool else None,
        *(how.names or (request.option(name),)),
        help=text,
        parser=parser,
        show_default=how.default or _text(field.get_default()) or False,
        metavar=how.metavar or metavar,
        rich_help_panel=how.group,
    )
    annotation = bool if kind is bool else kind | None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=annotation)


def _number(text: str) -> int | float | str:
    """The number that a text is, or the text, which the request refuses."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _text(default: Any) -> str | None:
    """A default in help; None is one that needs no words."""
    if default in (None, (), PydanticUndefined) or isinstance(default, bool):
        return None
    return f"{default:g}" if isinstance(default, float) else str(default)
