"""Real files made wrong, as disks, editors and strangers make them.

Every mutator takes a source of chance and the content of a sound file. Chance may come from Hypothesis, which then
finds the smallest change that still fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, Literal

import tomli_w

Special = Literal["fifo", "device", "directory", "dangling", "loop", "missing"]
"""What may stand in the place of a file, beside content."""

Mutant = bytes | Special
Mutator = Callable[[Random, bytes], bytes]

SPECIALS: tuple[Special, ...] = ("fifo", "device", "directory", "dangling", "loop", "missing")
DEEP = 100_000
LONG = "9" * 5000


def place(path: Path, mutant: Mutant) -> None:
    """Puts a mutant where the sound file was."""
    path.unlink(missing_ok=True)
    if isinstance(mutant, bytes):
        path.write_bytes(mutant)
    elif mutant == "fifo":
        os.mkfifo(path)
    elif mutant == "device":
        path.symlink_to("/dev/zero")
    elif mutant == "directory":
        path.mkdir()
    elif mutant == "dangling":
        path.symlink_to(path.with_name("nowhere"))
    elif mutant == "loop":
        path.symlink_to(path)


def anything(rng: Random, content: bytes) -> bytes:
    """Bytes flipped, cut, doubled, zeroed, put in or replaced, without regard to what they mean."""
    start, length = rng.randrange(len(content) + 1), rng.choice((1, 2, 7, 64, 4096))
    before, middle, after = content[:start], content[start : start + length], content[start + length :]
    kind = rng.randrange(8)
    if kind == 0:
        return before + bytes(byte ^ (1 << rng.randrange(8)) for byte in middle) + after
    if kind == 1:
        return before
    if kind == 2:
        return before + middle + middle + after
    if kind == 3:
        return before + bytes(len(middle)) + after
    if kind == 4:
        return before + after
    if kind == 5:
        return (
            before
            + rng.choice((b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n\n", b"\xed\xa0\x80"))
            + content[start:]
        )
    if kind == 6:
        return rng.choice((b"", b"\x00" * 512, b"\xff" * 64, b"{}", b"[]", b"null", content[::-1]))
    return after + before


def json_text(rng: Random, content: bytes) -> bytes:
    """A record with a value, a name or its own syntax changed."""
    if rng.random() < 0.15:
        return rng.choice(
            (
                b"[" * DEEP + b"]" * DEEP,
                b'{"a":' * DEEP + b"1" + b"}" * DEEP,
                b"null",
                b"[]",
                b"{}",
                b'"text"',
                LONG.encode(),
                b"NaN",
                b"\xef\xbb\xbf" + content,
                content.decode().encode("utf-16"),
            )
        )
    record = json.loads(content)
    changed = _changed(rng, record)
    text = json.dumps(changed)
    for mark, raw in _RAW.items():
        text = text.replace(f'"{mark}"', raw)
    return text.encode()


def json_lines(rng: Random, content: bytes) -> bytes:
    """Lines lost, doubled, moved or glued together, or one record changed."""
    lines = content.splitlines(keepends=True)
    i = rng.randrange(len(lines))
    kind = rng.randrange(6)
    if kind == 0:
        lines[i : i + 1] = []
    elif kind == 1:
        lines[i : i + 1] = [lines[i], lines[i]]
    elif kind == 2:
        lines[i] = lines[i].rstrip(b"\n")
    elif kind == 3:
        j = rng.randrange(len(lines))
        lines[i], lines[j] = lines[j], lines[i]
    else:
        lines[i] = json_text(rng, lines[i]).replace(b"\n", b" ") + b"\n"
    return b"".join(lines)


def toml_text(rng: Random, content: bytes) -> bytes:
    """A table with a value or a name changed, nested too deeply, or with numbers that are too long."""
    import tomllib

    if rng.random() < 0.3:
        return (
            content
            + b"\n"
            + rng.choice(
                (
                    b"data = " + b"[" * DEEP + b"]" * DEEP,
                    b"data = " + b"[" * 300 + b"]" * 300,
                    b"data = " + b"{a=" * 300 + b"1" + b"}" * 300,
                    b".".join([b"a"] * 20_000) + b" = 1",
                    b"trials = " + LONG.encode(),
                    b"trials = 0x" + b"f" * 20_000,
                    b"seed = 0x" + b"f" * 20_000,
                    b'data = "a\\u0000b"',
                    b'data = "' + b"x" * 100_000 + b'"',
                    b"max_accuracy_drop = nan",
                    b"max_accuracy_drop = inf",
                    b"data = 2026-01-01T00:00:00Z",
                    b'"" = 1',
                    b'"\\u0000" = 1',
                )
            )
        )
    record = tomllib.loads(content.decode())
    changed = _changed(rng, record)
    if not isinstance(changed, dict):
        return content
    with contextlib.suppress(TypeError, ValueError, RecursionError):
        text = tomli_w.dumps(_without_none(changed))
        for mark, raw in (("@long", LONG), ("@big", "1e999"), ("@nan", "nan"), ("@surrogate", "'\\ud800'")):
            text = text.replace(f'"{mark}"', raw)
        return text.encode(errors="surrogatepass")
    return content


def table_text(rng: Random, content: bytes) -> bytes:
    """A table of text with cells, quotes, ends of lines or columns that do not belong there."""
    lines = content.splitlines(keepends=True)
    i = rng.randrange(len(lines))
    junk = rng.choice(
        (
            b'"',
            b"'",
            b"\t",
            b",",
            b"\r",
            b"\x00",
            b"\x85",
            "\u2028".encode(),
            b"-1",
            b"99999999999999999999",
            b"nan",
            b"",
        )
    )
    cut = rng.randrange(len(lines[i]) + 1)
    lines[i] = rng.choice((lines[i][:cut] + junk + lines[i][cut:], junk + b"\n", lines[i] * 3, b"x" * 200_000 + b"\n"))
    return b"".join(lines)


def safetensors(rng: Random, content: bytes) -> bytes:
    """Weights whose header, or a number in it, is wrong."""
    kind = rng.randrange(4)
    if kind == 0:
        return anything(rng, content)
    length = int.from_bytes(content[:8], "little")
    header, rest = content[8 : 8 + length], content[8 + length :]
    if kind == 1:
        return rng.choice((2**63, 2**40, 0, length + 1, length - 1)).to_bytes(8, "little") + header + rest
    new = json_text(rng, header.strip()) if kind == 2 else anything(rng, header)
    return len(new).to_bytes(8, "little") + new + rest


def sqlite(rng: Random, content: bytes) -> bytes:
    """A database with bytes, values, types or tables changed."""
    if rng.random() < 0.4:
        return anything(rng, content)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.db"
        path.write_bytes(content)
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path)) as database:
            names = [row[0] for row in database.execute("select name from sqlite_master where type = 'table'")]
            table = rng.choice(sorted(names))
            columns = [row[1] for row in database.execute(f"pragma table_info({table})")]
            column = rng.choice(columns)
            value = rng.choice((None, "", "nan", -1, 2**62, 1e308, b"\x00\xff", "\ud83d", "{", '{"a": 1}', "[]", LONG))
            statement = rng.choice(
                (
                    f"drop table {table}",
                    f"delete from {table}",
                    f"alter table {table} rename column {column} to other",
                    f"update {table} set {column} = ? where rowid = 1",
                    f"update {table} set {column} = ?",
                    f"update {table} set {column} = ?",
                )
            )
            with contextlib.suppress(UnicodeEncodeError):
                database.execute(statement, (value,) if "?" in statement else ())
            database.commit()
        return path.read_bytes()


_RAW = {"@long": LONG, "@big": "1e999", "@nan": "NaN", "@surrogate": '"\\ud800"', "@nul": '"a\\u0000b"'}
_ODD: Sequence[Any] = (
    None,
    True,
    0,
    -1,
    2**31,
    2**63,
    10**30,
    0.5,
    -1e308,
    "",
    "text",
    "x" * 10_000,
    "../../x",
    [],
    {},
    [[]],
    [None],
    {"a": None},
    *_RAW,
)


def _changed(rng: Random, record: Any) -> Any:
    """A copy in which one value, at any depth, is another, is gone, is doubled, or has another name."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for name, item in items:
            places.append((value, name))
            walk(item)

    record = json.loads(json.dumps(record, default=str))
    walk(record)
    if not places:
        return rng.choice(_ODD)
    inside, name = rng.choice(places)
    kind = rng.randrange(6)
    if kind == 0:
        del inside[name]
    elif kind == 1 and isinstance(inside, dict):
        inside[rng.choice(("", "other", name.upper(), "@surrogate", "a.b"))] = inside.pop(name)
    elif kind == 1:
        inside.append(inside[name])
    elif kind == 2:
        value = inside[name]
        inside[name] = str(value) if not isinstance(value, str) else rng.choice(([value], {value: value}, len(value)))
    elif kind == 3:
        nested: Any = inside[name]
        for _ in range(200):
            nested = [nested]
        inside[name] = nested
    else:
        inside[name] = rng.choice(_ODD)
    return record


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(item) for name, item in value.items() if item is not None}
    return [_without_none(item) for item in value if item is not None] if isinstance(value, list) else value
