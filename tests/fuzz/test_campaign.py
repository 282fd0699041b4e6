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
    """As long as ``FUZZ_MINUTES`` or ``FUZZ_ROUNDS`` says, with the chance of ``FUZZ_SEED``."""
    given = {name: float(text) for name in ("MINUTES", "ROUNDS", "SEED") if (text := os.environ.get(f"FUZZ_{name}"))}
    rounds = given.get("ROUNDS", math.inf)
    minutes = given.get("MINUTES", 1 if rounds == math.inf else math.inf)
    counts = run(all_doors, seconds=60 * minutes, rounds=rounds, seed=int(given.get("SEED", 0)))
    with capsys.disabled():
        sys.stdout.write(f"\n{report(counts)}\n")
    assert not sum(sum(count.faults.values()) for count in counts.values())
