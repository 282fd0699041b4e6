"""The campaign: all doors for some minutes, with a table at the end; ``make fuzz``."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import pytest

from tests.fuzz.campaign import report, run
from tests.fuzz.doors import Door


@pytest.mark.slow
def test_campaign(all_doors: dict[str, tuple[Door, Path]], capsys: pytest.CaptureFixture[str]) -> None:
    """``FUZZ_MINUTES`` or ``FUZZ_ROUNDS`` say how long, ``FUZZ_SEED`` which mutants, ``FUZZ_ONLY`` of which files."""
    given = {name: float(text) for name in ("MINUTES", "ROUNDS", "SEED") if (text := os.environ.get(f"FUZZ_{name}"))}
    rounds = given.get("ROUNDS", math.inf)
    minutes = given.get("MINUTES", 1 if rounds == math.inf else math.inf)
    only = os.environ.get("FUZZ_ONLY", "").split(",")
    chosen = {name: door for name, door in all_doors.items() if any(part in name for part in only)}
    counts = run(chosen, seconds=60 * minutes, rounds=rounds, seed=int(given.get("SEED", 0)))
    with capsys.disabled():
        sys.stdout.write(f"\n{report(counts)}\n")
    assert not sum(sum(count.faults.values()) for count in counts.values())
