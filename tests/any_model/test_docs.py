"""The tables of ``docs/onnx_models.md`` say which test holds each kind of fault."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "onnx_models.md"


def named() -> list[tuple[Path, str]]:
    """Each file of tests that a table names, with a part of the name of a test in it."""
    found, folder = [], TESTS
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if header := re.search(r"\| test \(`tests/(.*?)/?`\) \|$", line):
            folder = TESTS / header[1]
        for file, parts in re.findall(r"`((?:\w+/)*test_\w+)`: ([\w, ]+)", line.rpartition(" | ")[2]):
            found += [(folder / f"{file}.py", part) for part in re.findall(r"\w+", parts) if part != "slow"]
    return found


def test_tests_of_the_tables_are_there() -> None:
    rows = named()
    assert len(rows) > 60
    missing = [
        f"{file.name}: {part}"
        for file, part in rows
        if not re.search(rf"^def test_\w*{part}", file.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert not missing
