"""Rewrites the golden record: ``python -m tests.golden.record``.

Only where what is recorded is meant to change; whoever commits the new record says why.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.golden import recorded


class Recorder:
    """Has the tests of a session record instead of compare."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[recorded.FOUND] = self.found


def main() -> int:
    """0 when the record was written."""
    recorder = Recorder()
    code = pytest.main([str(Path(__file__).with_name("test_golden.py")), "-p", "no:xdist"], plugins=[recorder])
    if not code:
        recorded.write({**recorder.found, "versions": recorded.versions()})
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
