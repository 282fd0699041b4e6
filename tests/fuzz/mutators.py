"""Real files made wrong, as disks, editors and strangers make them.

Every mutator takes a source of chance and the content of a sound file. Chance may come from Hypothesis, which then
finds the smallest change that still fails.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import lzma
import os
import sqlite3
import tarfile
import tempfile
import zipfile
import zlib
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


def gzipped(inner: Mutator) -> Mutator:
    """A mutator of what is inside a gzip file, or of the file, or many gigabytes in a few bytes."""

    def mutate(rng: Random, content: bytes) -> bytes:
        kind = rng.randrange(3)
        if kind == 0:
            return anything(rng, content)
        if kind == 1:
            return bomb(".gz")
        return gzip.compress(inner(rng, gzip.decompress(content)), mtime=0)

    return mutate


_BOMBS: dict[str, bytes] = {}
BOMB = 64 * 2**20
"""Bytes that a bomb unpacks to; tests set the limit below them."""


def bomb(suffix: str) -> bytes:
    """A file that unpacks to ``BOMB`` zeros."""
    if suffix not in _BOMBS:
        zeros = bytes(BOMB)
        pack = {".gz": lambda: gzip.compress(zeros, 1, mtime=0), ".xz": lambda: lzma.compress(zeros, preset=0)}
        _BOMBS[suffix] = pack[suffix]()
    return _BOMBS[suffix]


def archive(rng: Random, content: bytes) -> bytes:
    """A zip file (an ``.npz`` is one) with a member changed, renamed, lost, doubled, or huge when it is unpacked."""
    kind = rng.randrange(7)
    if kind == 0:
        return anything(rng, content)
    with zipfile.ZipFile(io.BytesIO(content)) as source:
        members = [(info.filename, source.read(info)) for info in source.infolist()]
    i = rng.randrange(len(members))
    name, inside = members[i]
    if kind == 1:
        members[i] = (name, anything(rng, inside))
    elif kind == 2:
        members[i] = (name, _npy_header(rng, inside))
    elif kind == 3:
        members[i] = (rng.choice(("x", "../x.npy", "labels.npy", name + "\u2028", "a/" * 300 + "x.npy")), inside)
    elif kind == 4:
        del members[i]
    elif kind == 5:
        members[i] = (name, inside[:128] + bytes(BOMB))
    packing = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)) if kind != 5 else zipfile.ZIP_DEFLATED
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packing) as target:
        for name, inside in members:
            target.writestr(name, inside)
    made = bytearray(out.getvalue())
    if kind == 6:  # the flags, the method or the sizes of a member are wrong in one of the two places
        start = made.rfind(b"PK\x01\x02") if rng.random() < 0.5 else 0
        made[start + rng.randrange(6, 30)] ^= 1 << rng.randrange(8)
    return bytes(made)


def _npy_header(rng: Random, content: bytes) -> bytes:
    header = rng.choice(
        (
            "{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
            "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
            "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (3,), }",
            "{'descr': '<U9999999', 'fortran_order': False, 'shape': (3,), }",
            "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,), }",
            "{'descr': '<f4', 'fortran_order': 1, 'shape': 3}",
            "{'shape': " + "(" * 90 + ")" * 90 + "}",
            "__import__('os')",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (" + LONG + ",), }",
            "(" * 3000,
            "\x00",
        )
    ).encode()
    return content[:6] + b"\x01\x00" + len(header).to_bytes(2, "little") + header + content[10:]


def tar_file(packing: Literal["", "gz", "xz"] = "") -> Mutator:
    """A mutator of a tar file: headers, names and kinds of members, sizes that are not theirs."""

    def mutate(rng: Random, content: bytes) -> bytes:
        kind = rng.randrange(6)
        if kind == 0:
            return anything(rng, content)
        if kind == 1 and packing:
            return bomb(f".{packing}")
        plain = {"": lambda b: b, "gz": gzip.decompress, "xz": lzma.decompress}[packing](content)
        plain = anything(rng, plain) if kind == 2 else _tar_members(rng, plain)
        return {
            "": lambda b: b,
            "gz": lambda b: gzip.compress(b, 1, mtime=0),
            "xz": lambda b: lzma.compress(b, preset=0),
        }[packing](plain)

    return mutate


def _tar_members(rng: Random, content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(content)) as source, tarfile.open(fileobj=out, mode="w") as target:
        members = source.getmembers()
        odd = rng.choice([member for member in members if member.isfile()])
        for member in members:
            inside = source.extractfile(member) if member.isfile() else None
            data = inside.read() if inside else b""
            if member is odd:
                kind = rng.randrange(6)
                if kind == 0:
                    member.name = rng.choice(
                        ("../../x.png", "/etc/x.png", "train/x.png", "a/b/c/d.png", "\u2028/x.png")
                    )
                elif kind == 1:
                    member.type, member.linkname, data = (
                        rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE)),
                        "/etc/passwd",
                        b"",
                    )
                elif kind == 2:
                    member.type, data = rng.choice((tarfile.FIFOTYPE, tarfile.CHRTYPE)), b""
                elif kind == 3:
                    data = anything(rng, data)
                elif kind == 4:
                    data = b""
                else:  # a sparse file: nothing in it, and gigabytes of nothing around it
                    member.pax_headers = {
                        "GNU.sparse.major": "0",
                        "GNU.sparse.minor": "1",
                        "GNU.sparse.size": str(BOMB),
                        "GNU.sparse.map": "0,0",
                        "GNU.sparse.realsize": str(BOMB),
                    }
                member.size = len(data)
            target.addfile(member, io.BytesIO(data))
    return out.getvalue()


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


def png(rng: Random, content: bytes) -> bytes:
    """An image whose header claims other sizes, with a right checksum."""
    if rng.random() < 0.6 or not content.startswith(b"\x89PNG"):
        return anything(rng, content)
    width, height = rng.choice(((2**31 - 1, 2**31 - 1), (0, 0), (1, 2**31 - 1), (20_000, 20_000), (13_000, 13_000)))
    chunk = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + content[24:29]
    return content[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + content[33:]


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
