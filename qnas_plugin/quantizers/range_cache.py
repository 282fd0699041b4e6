"""Calibration ranges on disk, by the content that they follow from: shared by processes, bounded, never stale.

A subnet is calibrated once a machine, although it is built again when the Pareto set is verified and when it is
exported. An entry that is damaged, or cannot be read or written, is as good as none.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from qnas_plugin.errors import OutputError
from qnas_plugin.files import write_json
from qnas_plugin.files.doors import read_json

SCHEMA_VERSION = 1
KEPT = 5000
"""Entries; one has some kilobytes. The oldest go first."""

_Ranges = Mapping[str, tuple[float, float]]


def folder() -> Path:
    """Where the entries are."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qnas" / "ranges"


def load(key: str) -> dict[str, tuple[float, float]] | None:
    """The ranges under a key; None when there are none, or not all of them as they were written."""
    try:
        record = read_json(folder() / f"{key}.json", OutputError, "it is made anew")
        ranges = {name: (float(low), float(high)) for name, (low, high) in record["ranges"].items()}
        return ranges if record["seal"] == _seal(key, ranges) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def store(key: str, ranges: _Ranges) -> None:
    """Keeps ranges, which are of use if finite, under a key that says all that they follow from."""
    if not all(math.isfinite(bound) for pair in ranges.values() for bound in pair):
        return
    entry = {
        "schema_version": SCHEMA_VERSION,
        "ranges": {name: list(pair) for name, pair in ranges.items()},
        "seal": _seal(key, ranges),
    }
    with suppress(OutputError):
        write_json(folder() / f"{key}.json", entry)
        _bound()


def _seal(key: str, ranges: _Ranges) -> str:
    content = json.dumps([SCHEMA_VERSION, key, sorted((name, *pair) for name, pair in ranges.items())])
    return hashlib.sha256(content.encode()).hexdigest()


def _bound() -> None:
    entries = []
    with suppress(OSError), os.scandir(folder()) as found:
        for entry in found:
            with suppress(OSError):  # another process took it away
                entries.append((entry.stat().st_mtime_ns, entry.path))
    for _, path in sorted(entries)[: max(0, len(entries) - KEPT)]:
        with suppress(OSError):
            Path(path).unlink()
