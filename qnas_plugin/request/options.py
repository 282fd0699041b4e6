"""How options are declared: once, as the fields of a request, from wherever their values come.

A field's type, default and bounds are the check, its ``description`` is the help text, and ``Shown`` beside it says
where and how it stands on the command line. The options of ``qnas`` and of hosts, the signatures and docstrings of the
Python functions and the keys of TOML files follow. Help loads these modules, so they import what is slow where they
use it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from qnas_plugin import registry
from qnas_plugin.errors import MissingOptionsError, UnknownNameError, UsageError, quoted
from qnas_plugin.files import write_bytes
from qnas_plugin.files.doors import read_toml

if TYPE_CHECKING:
    from qnas_plugin.data import SplitSizes

Group = Literal["What", "Data", "Training", "Hardware", "Search", "Measurement", "Output"]
GROUPS: tuple[Group, ...] = get_args(Group)
"""The headings of help, in their order."""


REGISTERED: Mapping[str, registry.Kind] = {
    "supernet": "supernets",
    "task": "tasks",
    "quantizer": "quantizers",
    "algorithm": "search",
}
"""Fields of any request that name what is registered; help lists the names."""


@dataclass(frozen=True)
class Shown:
    """How an option stands in help, beside its description.

    Args:
        group: Its heading.
        default: What is taken when it is not given, where the default value does not say it.
        metavar: What its value is called; None is the choices, or the type.
        names: On the command line and in TOML, in place of the field's name.
    """

    group: Group
    default: str | None = None
    metavar: str | None = None
    names: tuple[str, ...] = ()


def shown(field: FieldInfo) -> Shown:
    """How a field stands in help."""
    return [mark for mark in field.metadata if isinstance(mark, Shown)][-1]


class Options(BaseModel):
    """Options of a command, from wherever they come."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    @field_validator(*REGISTERED, check_fields=False)
    @classmethod
    def _as_registered(cls, name: str | None, info: ValidationInfo) -> str | None:
        if name is None:
            return None
        registry.check(REGISTERED[str(info.field_name)], name)
        return name.replace("-", "_")

    @classmethod
    def build(cls, options: Mapping[str, Any], config: Path | None = None) -> Self:
        """Merges a TOML file with options, which win, and checks the result.

        Raises:
            UsageError: The file cannot be read, or a name or value in either is wrong.
            MissingOptionsError: Nothing is wrong, but options that must be given are not.
        """
        values = cls._read(config) if config else {}
        values |= {name: value for name, value in options.items() if value is not None}
        for name, value in values.items():
            if name not in cls.model_fields:
                raise UnknownNameError("option", f"{name:.80}", cls.model_fields)
            _check_value(cls.option(name), value)
        try:
            built = cls(**values)
        except ValidationError as error:
            raise cls._first_error(error, values) from None
        for name, value in built:
            _check_value(cls.option(name), value)
        return built

    @classmethod
    def option(cls, field: str) -> str:
        """The long name of a field's option, like ``--max-length``."""
        names = shown(cls.model_fields[field]).names if field in cls.model_fields else ()
        return next((name for name in names if name.startswith("--")), "--" + field.replace("_", "-"))

    @classmethod
    def missing(cls, given: Mapping[str, Any]) -> list[str]:
        """The options that must be given and are not, each as a sentence names it."""
        required = [name for name, field in cls.model_fields.items() if field.is_required()]
        return [cls.option(name) for name in required if given.get(name) is None]

    @classmethod
    def documented(cls) -> Iterator[str]:
        """A line for each field, as in the ``Args`` of a docstring."""
        for name, field in cls.model_fields.items():
            default = shown(field).default
            yield f"{name}: {field.description}" + (f" Default: {default}." if default else "")

    @classmethod
    def _read(cls, config: Path) -> dict[str, Any]:
        values = read_toml(config, UsageError, f"cannot read --config {config} as TOML")
        fields = {cls.option(field).removeprefix("--"): field for field in cls.model_fields}
        found: dict[str, Any] = {}
        for key, value in values.items():
            name = fields.get(key.replace("_", "-"), key)
            if name not in cls.model_fields:
                raise UsageError(f"{config}: {UnknownNameError('option', f'{key:.80}', cls.model_fields)}")
            if name in found:
                raise UsageError(f"{config}: '{key}' stands there twice, by another name too; leave one out")
            found[name] = value
        return found

    @classmethod
    def _first_error(cls, error: ValidationError, given: Mapping[str, Any]) -> UsageError:
        errors = error.errors()
        causes = [each.get("ctx", {}).get("error") for each in errors]
        for cause in causes:
            if isinstance(cause, UsageError) and not isinstance(cause, MissingOptionsError):
                return cause  # what is wrong says more than what is missing
        for each in errors:
            if each["type"] == "missing" or isinstance(each.get("ctx", {}).get("error"), MissingOptionsError):
                continue
            known = _PROBLEMS.get(each["type"])
            text = known.format(**_words(each.get("ctx", {}))) if known else each["msg"]
            option = cls.option(str(each["loc"][0])) if each["loc"] else "the options"
            return UsageError(f"{option} {quoted(each['input'])}: {text}")
        found = [cls.option(str(each["loc"][0])) for each in errors if each["type"] == "missing"]
        return MissingOptionsError(list(dict.fromkeys([*cls.missing(given), *found])))


_PROBLEMS = {
    "greater_than_equal": "it must be at least {ge}",
    "greater_than": "it must be more than {gt}",
    "less_than_equal": "it must be at most {le}",
    "less_than": "it must be less than {lt}",
    "literal_error": "it must be {expected}",
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float", "int_parsing_size"), "it must be a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "it must be a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "it must be true or false"),
    **dict.fromkeys(("string_type", "path_type"), "it must be a text"),
    "finite_number": "it must be a finite number",
    "tuple_type": "it must be a list",
}
"""What is wrong, for what pydantic 2 calls it."""


def _words(context: Mapping[str, Any]) -> dict[str, Any]:
    return {name: f"{value:g}" if isinstance(value, float) else value for name, value in context.items()}


def _check_value(option: str, value: Any) -> None:
    """Keeps out what no file can be named and no request can be written with.

    Raises:
        UsageError: A text has a NUL character or is not Unicode, or a number is longer than 64 bits.
    """
    for item in value if isinstance(value, list | tuple) else [value]:
        if isinstance(item, str | Path) and re.search("[\0\ud800-\udfff]", str(item)):
            raise UsageError(f"{option} {quoted(str(item))} has a NUL, or is not in UTF-8")
        if isinstance(item, int) and abs(item) >= 2**63:
            raise UsageError(f"{option} is a number of more than 64 bits")


T = TypeVar("T")

Supernet = Annotated[
    T, Field(description="Supernet family, see: qnas show supernets."), Shown("What", metavar="FAMILY")
]
Checkpoint = Annotated[
    T, Field(description="Hugging Face name or folder, or a folder that qnas train wrote."), Shown("What")
]
Seed = Annotated[int, Field(ge=0, description="Of every random choice."), Shown("Search")]
Overwrite = Annotated[
    bool,
    Field(description="Replace what another run left in --out; what this one reads is never replaced."),
    Shown("Output"),
]
Insist = Annotated[
    bool,
    Field(description="Use or make a latency table although it is of other hardware or settings; results say so."),
    Shown("Hardware"),
]
Threads = Annotated[
    int | None, Field(ge=1, description="Threads that a model runs with."), Shown("Hardware", "the profile's")
]
RunSize = Annotated[int | None, Field(ge=1, description="Examples a run."), Shown("Hardware", "the profile's")]
Table = Annotated[Path | None, Field(description="Latency table."), Shown("Hardware", "the one that fits")]


class Request(Options):
    """What all commands that need data share."""

    task: Annotated[str, Shown("Data")] = Field(description="Task, see: qnas show tasks.")
    data: Annotated[str, Shown("Data")] = Field(
        description="The task's data: a file, a folder, or a name that the task knows."
    )
    out: Annotated[Path, Shown("Output")] = Field(description="Folder for the results.")
    max_length: Annotated[int | None, Shown("Data", "the tokenizer's own")] = Field(
        None, ge=2, description="Cut texts after this many tokens."
    )
    calibration_samples: Annotated[int, Shown("Data")] = Field(
        128, ge=1, description="Training examples for the quantization ranges."
    )
    search_samples: Annotated[int, Shown("Data")] = Field(
        2000, ge=1, description="Held-out training examples for the accuracy that steers the search."
    )
    selection_samples: Annotated[int | None, Shown("Data", "as many as --search-samples")] = Field(
        None,
        ge=0,
        description="Held-out training examples that choose the recommended member; nothing is searched on them. Where "
        "there are too few for both, both shrink alike.",
    )

    @property
    def sizes(self) -> SplitSizes:
        """How many examples each part of the data gets."""
        from qnas_plugin.data import SplitSizes

        return SplitSizes(self.calibration_samples, self.search_samples, self.selection_samples)

    def write(self, path: Path) -> None:
        """Writes the request as TOML that ``--config`` takes."""
        write_bytes(path, tomli_w.dumps(self.model_dump(mode="json", exclude_none=True)).encode())


def numbers(value: Any, option: str) -> Any:
    """The numbers of a text like ``3,4,6``; what is no text is left as it is.

    Raises:
        UsageError: The text has another form.
    """
    if not isinstance(value, str):
        return value
    try:
        return tuple(float(part) if "." in part else int(part) for part in value.split(","))
    except ValueError:
        raise UsageError(f"{option} takes numbers with commas between them, like 3,4,6; got '{value}'") from None
