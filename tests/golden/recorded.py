"""The golden record as a file, and what it was made with."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ASSETS = Path(__file__).resolve().parents[1] / "assets"
FILE = ASSETS / "golden.json"

FOUND = pytest.StashKey[dict[str, Any]]()
"""In the stash of a session that records: what it has found."""

PACKAGES = ("neural-compressor", "onnx", "onnxruntime", "torch", "transformers")
"""What writes the bytes of a file with us."""


def load() -> dict[str, Any]:
    """The record."""
    record: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return record


def write(record: dict[str, Any]) -> None:
    """Replaces the record."""
    FILE.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """Those here, without what says how a package was compiled."""
    return {name: version(name).partition("+")[0] for name in PACKAGES}
