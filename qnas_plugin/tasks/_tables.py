"""Tables of text with named columns, as the files of tasks have them.

Files end in ``.tsv`` (no quoting, as in GLUE), ``.csv`` (quoted) or ``.jsonl`` (an object a line, of texts, numbers and
truth values), packed or not as ``.gz``. The first line of the first two names the columns; the objects of the third all
have the same fields.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qnas_plugin.errors import DataError, UsageError, door, reason
from qnas_plugin.files.doors import parse_json, unpacked

SUFFIXES = (".tsv", ".csv", ".jsonl", ".tsv.gz", ".csv.gz", ".jsonl.gz")


@dataclass(frozen=True)
class Table:
    """One split as text: columns of equal length, and the line that each row ended at."""

    name: str
    columns: Mapping[str, Sequence[str]]
    lines: Sequence[int]
    label_names: tuple[str, ...] | None = None

    def where(self, row: int, column: str) -> str:
        return f"{self.name}:{self.lines[row]}: column '{column}'"


def file_of(folder: Path, split: str) -> Path | None:
    """The table of a split in a folder.

    Raises:
        DataError: There are several.
    """
    files = [file for suffix in SUFFIXES if (file := folder / f"{split}{suffix}").is_file()]
    if len(files) > 1:
        raise DataError(f"{folder}: {' and '.join(file.name for file in files)} are the same split; keep one")
    return files[0] if files else None


def read(path: Path) -> Table:
    """A file as a table.

    Raises:
        DataError: With the line, when the file is malformed.
    """
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"{path}: cannot tell the format; the name must end in {', '.join(SUFFIXES)}")
    if path.name.removesuffix(".gz").endswith(".jsonl"):
        return _read_json(path)
    if path.name.removesuffix(".gz").endswith(".tsv"):
        reader = csv.reader(_text_lines(path), delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    else:
        reader = csv.reader(_text_lines(path), strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        for row in reader:
            if rows and row and len(row) != len(rows[0]):
                raise DataError(f"{path}:{reader.line_num}: {len(row)} fields, the first line names {len(rows[0])}")
            if row:
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: {error}") from error
    if len(rows) < 2:
        raise DataError(f"{path}: the file is empty; it needs a line of column names and one line for each example")
    header = [name.strip() for name in rows[0]]
    if len(set(header)) < len(header):
        raise DataError(f"{path}:{lines[0]}: a column is named twice: {', '.join(header)}")
    return Table(str(path), dict(zip(header, zip(*rows[1:], strict=True), strict=True)), lines[1:])


def some(values: Iterable[object]) -> str:
    """The first of some values, for a message."""
    shown = [str(value) for value in values]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")


def _read_json(path: Path) -> Table:
    rows: list[dict[str, str]] = []
    for number, line in enumerate(_text_lines(path), start=1):
        with door(DataError, f"{path}:{number}: no JSON"):
            row = parse_json(line)
        if not isinstance(row, dict) or not all(isinstance(value, str | int | float) for value in row.values()):
            raise DataError(f"{path}:{number}: not an object of texts and numbers: {line.strip():.80}")
        if rows and row.keys() != rows[0].keys():
            raise DataError(f"{path}:{number}: its fields are {', '.join(row)}, those before it {', '.join(rows[0])}")
        rows.append({name: str(value) for name, value in row.items()})
    if not rows:
        raise DataError(f"{path}: the file is empty; it needs a line for each example")
    return Table(str(path), {name: [row[name] for row in rows] for name in rows[0]}, range(1, len(rows) + 1))


def _text_lines(path: Path) -> Iterator[str]:
    number = 0
    try:
        with unpacked(path) as file:
            for number, line in enumerate(file, start=1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number}: not UTF-8: {reason(error)}; save the file as UTF-8") from error
    except UsageError:
        raise
    except (OSError, EOFError, ValueError, MemoryError, zlib.error) as error:
        raise DataError(f"{path}:{number + 1}: cannot be read: {reason(error)}; fetch the file again") from error
