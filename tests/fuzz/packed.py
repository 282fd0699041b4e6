"""Packed files and images made wrong: members, headers, and what they unpack to."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from random import Random
from typing import Literal

from tests.fuzz.mutators import LONG, Mutator, anything


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


def png(rng: Random, content: bytes) -> bytes:
    """An image whose header claims other sizes, with a right checksum."""
    if rng.random() < 0.6 or not content.startswith(b"\x89PNG"):
        return anything(rng, content)
    width, height = rng.choice(((2**31 - 1, 2**31 - 1), (0, 0), (1, 2**31 - 1), (20_000, 20_000), (13_000, 13_000)))
    chunk = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + content[24:29]
    return content[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + content[33:]
