"""Puts damaged and forged files of every kind through their readers, and counts what comes of it.

    python -m benchmarks.robustness.fuzz [--minutes 5] [--rounds N] [--seed 0] [--only journal,TOML]

Prints a table: how many mutants were refused in one line, read all the same, or ended in a traceback, a hang or a value
that nobody should have accepted. The last three must be 0. With the same seed and rounds the mutants are the same.
"""

from __future__ import annotations

import argparse
import os
import sys

import pytest


def main() -> int:
    """Runs the campaign of ``tests/fuzz``; 0 when there was no fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("minutes", "rounds", "seed"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--only", help="Parts of the names of files, with commas.")
    given = vars(parser.parse_args())
    if given["minutes"] is None and given["rounds"] is None:
        given["minutes"] = 5
    os.environ |= {f"FUZZ_{name.upper()}": str(value) for name, value in given.items() if value is not None}
    return int(
        pytest.main(["tests/fuzz/test_campaign.py", "-m", "slow", "--tb=no", "--no-header", "-p", "no:warnings"])
    )


if __name__ == "__main__":
    sys.exit(main())
