"""Latency tables as data: rows with their milliseconds, what they were measured on, and their own tested error.

One file a SKU, supernet shape and runtime setting: ``latency_tables/<sku>/<supernet>-<shape and setting>.json``. A
network takes the sum of its rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from qnas_plugin.additive import Term
from qnas_plugin.data import Inputs
from qnas_plugin.errors import LatencyTableError, door, quoted
from qnas_plugin.files import write_bytes
from qnas_plugin.files.doors import parse_json, read_bytes
from qnas_plugin.hardware import HardwareProfile, RuntimeSetting, data_folder, user_folder
from qnas_plugin.hardware.machine import environment
from qnas_plugin.latency.rows import Decomposition, Granularity, join
from qnas_plugin.space import Genes
from qnas_plugin.supernets import Supernet

if TYPE_CHECKING:
    import pandas

SCHEMA_VERSION = 1
_DIGITS = 6
"""Significant digits of what is written: far below the noise, and diffs stay readable."""

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Scalar = int | float | str | bool | None


class _Checked(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Row(_Checked):
    """One component in one setting.

    Args:
        key: Kind and values, ``query heads=8 precision=int8``.
        ms: What it adds to a network.
        spread_ms: Standard deviation of that number as an estimate.
        networks: How many measured networks had it; 0 means it rests on its own timing alone.
        alone_ms: Its time when run alone, the sum of its parts.
    """

    key: Annotated[str, Field(min_length=1)]
    ms: NotNegative
    spread_ms: NotNegative
    networks: Annotated[int, Field(ge=0)]
    alone_ms: NotNegative


class Errors(_Checked):
    """How predictions differ from what was measured on networks that they were not fitted to.

    Args:
        mean_error: Mean absolute difference, relative to what was measured.
        bias: Mean difference, relative; above 0 the prediction is too slow.
        within_5: Share of the networks within 5 %; ``within_10`` in the same way.
        kendall_tau: Of predicted and measured order.
    """

    mean_error: NotNegative
    bias: float
    within_5: Share
    within_10: Share
    kendall_tau: Annotated[float, Field(ge=-1, le=1)]


Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,+-]*$")]
"""Becomes a part of a file's name, so it must name no other folder."""


class Fidelity(_Checked):
    """A table's own tested accuracy.

    Args:
        held_out: Number of networks that were tested; none was fitted to, or used to choose anything.
        errors: Of the table.
        noise: Mean absolute difference, relative, between two measurements of one network.
        repeated: How many networks were measured twice for that.
        alone: Of the sum of parts that were timed alone.
        by_granularity: Of rows fitted at each granularity.
        by_networks: Number of networks fitted to, and the mean error that this gave.
    """

    held_out: Annotated[int, Field(ge=1)]
    errors: Errors
    noise: NotNegative
    repeated: Annotated[int, Field(ge=0)]
    alone: Errors
    by_granularity: Mapping[Granularity, Errors]
    by_networks: Annotated[tuple[tuple[int, float], ...], Field(strict=False)]


class LatencyTable(_Checked):
    """A latency table; see the docstring of the module.

    Args:
        supernet: The registered family.
        shape: See ``Supernet.shape``.
        granularity: What is one row; see ``qnas_plugin.latency.rows``.
        hardware: The SKU.
        setting: What the latencies are for.
        machine: The CPU that was detected.
        system: The operating system.
        versions: Of the runtime and other packages; ``quantizer`` is the name and version of what made INT8 layers.
        created: Date and time, ISO 8601.
        merged: When the tables were created that this one was merged from; its fidelity is that of the worse one.
        networks: How many whole networks were fitted to.
        seconds: How long it took to measure, build and test.
        disturbance: Median over all measurements of how far the rounds of one were apart after adjustment, relative.
        problems: What speaks against the table, one sentence each; empty for a good one.
        fidelity: Its tested accuracy.
        offset_ms: What every network takes beside its rows; below 0 where weights of small networks stay in caches.
        tested: Measured and predicted milliseconds of each held-out network.
        rows: In the order of their keys.
    """

    schema_version: Literal[1]
    supernet: Word
    shape: Mapping[Word, int | str]
    granularity: Granularity
    hardware: HardwareProfile
    setting: RuntimeSetting
    machine: Mapping[str, Scalar | list[str]]
    system: str
    versions: Mapping[str, str | None]
    created: str
    merged: Annotated[tuple[str, ...], Field(strict=False)] = ()
    networks: Annotated[int, Field(ge=0)]
    seconds: NotNegative
    disturbance: NotNegative
    problems: Annotated[tuple[str, ...], Field(strict=False)]
    fidelity: Fidelity
    offset_ms: float
    tested: Annotated[tuple[tuple[Positive, NotNegative], ...], Field(strict=False)]
    rows: Annotated[tuple[Row, ...], Field(strict=False, min_length=1)]

    @field_validator("rows")
    @classmethod
    def _sorted_rows(cls, rows: tuple[Row, ...]) -> tuple[Row, ...]:
        twice = [key for key, count in Counter(row.key for row in rows).items() if count > 1]
        if twice:
            raise ValueError(f"the row '{twice[0]}' stands twice")
        return tuple(sorted(rows, key=lambda row: row.key))

    def to_dataframe(self) -> pandas.DataFrame:
        """The rows, by key."""
        import pandas

        return pandas.DataFrame([row.model_dump() for row in self.rows]).set_index("key")

    def by_key(self) -> dict[str, Row]:
        """Each row by its key."""
        return {row.key: row for row in self.rows}

    @property
    def quantizer(self) -> str:
        """What made the INT8 layers, with its version; older tables do not say."""
        return self.versions.get("quantizer") or "neural_compressor 3.7.1"

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return table_name(self.supernet, self.shape, self.setting)

    def __str__(self) -> str:
        return f"{self.hardware.name}/{self.name}"


def table_name(supernet: str, shape: Mapping[str, int | str], setting: RuntimeSetting) -> str:
    """Supernet, sizes and setting in one word, ``bert-hidden384-head32-threads1-batch1-seq64``."""
    sizes = [f"{label}{size}" for label, size in sorted(shape.items(), reverse=True) if isinstance(size, int)]
    words = [supernet, *sizes, f"threads{setting.threads}", f"batch{setting.batch_size}"]
    words += [f"seq{setting.sequence_length}"] if setting.sequence_length else []
    words += [f"res{setting.resolution}"] if setting.resolution else []
    return "-".join(words)


def setting_of(inputs: Inputs, setting: RuntimeSetting) -> RuntimeSetting:
    """A setting with the sequence length or the resolution that inputs really have."""
    length = next((array.shape[1] for array in inputs.values() if array.ndim == 2), None)
    resolution = next((array.shape[2] for array in inputs.values() if array.ndim == 4), None)
    return setting.model_copy(update={"sequence_length": length, "resolution": resolution})


def load(path: Path) -> LatencyTable:
    """Reads a table and checks it.

    Raises:
        LatencyTableError: The file is missing, malformed, or newer than this program.
    """
    with door(LatencyTableError, f"cannot read the latency table {path}"):
        text = read_bytes(path)
    return parse(text, str(path))


def parse(text: bytes, where: str) -> LatencyTable:
    """Checks the JSON of a table that was read from ``where``.

    Raises:
        LatencyTableError: It is malformed, or newer than this program.
    """
    try:
        parse_json(text)  # fields that stand twice
        return LatencyTable.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        got = "" if first["type"] in ("missing", "json_invalid") else f", got {quoted(first['input'])}"
        place = ".".join(str(part) for part in first["loc"]) or "file"
        hint = "restore the file or make it again with: qnas profile"
        if place == "schema_version" and isinstance(first["input"], int) and first["input"] > SCHEMA_VERSION:
            hint = f"this program reads version {SCHEMA_VERSION}; update it"
        raise LatencyTableError(f"{where} is no latency table: '{place}': {first['msg']}{got}; {hint}") from None
    except (ValueError, RecursionError) as error:
        raise LatencyTableError(
            f"{where} is no latency table: {error}; restore the file or make it again with: qnas profile"
        ) from None


def write(table: LatencyTable, folder: Path) -> Path:
    """Writes ``<folder>/<sku>/<name>.json``: keys and rows sorted, a row a line.

    Raises:
        OutputError: The folder cannot be written.
    """
    path = folder / table.hardware.name / f"{table.name}.json"
    write_bytes(path, dumps(table).encode())
    return path


def dumps(table: LatencyTable) -> str:
    """The text of a table's file; equal tables have equal texts."""
    record = _rounded(table.model_dump(mode="json"))
    lists = {name: record[name] for name in ("rows", "tested")}
    text = json.dumps(record | {name: [f"@{name}"] for name in lists}, indent=2, sort_keys=True, allow_nan=False)
    for name, items in lists.items():
        lines = ",\n    ".join(json.dumps(item, sort_keys=True, allow_nan=False) for item in items)
        text = text.replace(f'"@{name}"', lines)
    return text + "\n"


def tables() -> Iterator[Path]:
    """The files of the user's tables and of those that come with the package, sorted in each folder."""
    for folder in (user_folder("latency_tables"), data_folder("latency_tables")):
        yield from sorted(folder.glob("*/*.json"))


def find(supernet: str, shape: Mapping[str, int | str], hardware: str, setting: RuntimeSetting) -> LatencyTable:
    """The table of a SKU for a supernet's shape and a setting; the user's own comes before one of the package.

    Raises:
        LatencyTableError: There is none, or it is malformed.
    """
    name = table_name(supernet, shape, setting)
    have = []
    for path in tables():
        if path.parent.name == hardware and path.stem == name:
            return load(path)
        have.append(f"{path.parent.name}/{path.stem}")
    raise LatencyTableError(
        f"no latency table '{name}' for '{hardware}'; have: {', '.join(sorted(set(have))) or 'none'}; on that machine, "
        f"make one with: {command(supernet, hardware, setting)}"
    )


def command(supernet: str, hardware: str, setting: RuntimeSetting) -> str:
    """The command that makes a table."""
    length = f" --seq-len {setting.sequence_length}" if setting.sequence_length else ""
    return (
        f"qnas profile --supernet {supernet} --checkpoint DIR --hardware {hardware} --threads {setting.threads} "
        f"--batch {setting.batch_size}{length}"
    )


def check(
    table: LatencyTable, supernet: str, shape: Mapping[str, int | str], hardware: str, setting: RuntimeSetting
) -> list[str]:
    """What speaks against using a table for a SKU and a setting with the runtime of this process; often nothing.

    Raises:
        LatencyTableError: It is for another supernet or shape, of which no number can be used.
    """
    if (table.supernet, dict(table.shape)) != (supernet, dict(shape)):
        raise LatencyTableError(
            f"the latency table {table} is for {describe(table.supernet, table.shape)}, not for "
            f"{describe(supernet, shape)}; make one with: {command(supernet, hardware, setting)}"
        )
    against = []
    if table.hardware.name != hardware:
        against.append(f"it is of the SKU '{table.hardware.name}', not '{hardware}'")
    for name, value in setting.model_dump().items():
        measured = getattr(table.setting, name)
        if measured != value:
            against.append(f"its {name} is {measured}, not {value}")
    theirs, ours = table.versions.get("onnxruntime"), environment()["versions"]["onnxruntime"]
    if minor(theirs) != minor(ours):
        against.append(f"it was measured with onnxruntime {theirs}, this is {ours}")
    return [*against, *table.problems]


def accept(table: LatencyTable, against: Sequence[str], *, insist: bool) -> None:
    """Refuses a table that something speaks against, unless the user insists.

    Raises:
        LatencyTableError: The first thing that speaks against it.
    """
    if against and not insist:
        more = f" (and {len(against) - 1} more)" if len(against) > 1 else ""
        raise LatencyTableError(
            f"the latency table {table} does not fit: {against[0]}{more}; take another, or insist on it with --insist"
        )


@dataclass(frozen=True)
class Estimator:
    """Canonical genotypes ``(m, n)`` to milliseconds ``(m,)``: an exact metric of the search.

    Raises:
        LatencyTableError: The table lacks rows that candidates need; the message names all of them.
    """

    table: LatencyTable
    supernet: Supernet

    def __post_init__(self) -> None:
        rows = self.table.by_key()
        missing = [str(key) for key in self._decomposition.keys if str(key) not in rows]
        if missing:
            remedy = command(self.table.supernet, self.table.hardware.name, self.table.setting)
            raise LatencyTableError(
                f"the latency table {self.table} has no row for: {', '.join(missing)}; measure the missing ones with: "
                f"{remedy} --out MORE, and put them in with: qnas profile --merge TABLE MORE_TABLE"
            )

    def __call__(self, genes: Genes) -> npt.NDArray[np.float64]:
        return self._decomposition.counts(genes) @ self._ms + self.table.offset_ms

    @property
    def terms(self) -> tuple[Term, ...]:
        """The same as a sum of parts, without ``offset_ms``."""
        return self._decomposition.terms(self._ms)

    @cached_property
    def _decomposition(self) -> Decomposition:
        return Decomposition(self.supernet.space, join(self.supernet.parts, self.table.granularity))

    @cached_property
    def _ms(self) -> npt.NDArray[np.float64]:
        rows = self.table.by_key()
        return np.array([rows[str(key)].ms for key in self._decomposition.keys])


def minor(version: str | None) -> str:
    """The first two numbers of a version: runtimes that share them are taken as equally fast."""
    return ".".join((version or "unknown").split(".")[:2])


def describe(supernet: str, shape: Mapping[str, int | str]) -> str:
    """A supernet and its shape in words."""
    return f"'{supernet}' ({', '.join(f'{label} {size}' for label, size in sorted(shape.items()))})"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
