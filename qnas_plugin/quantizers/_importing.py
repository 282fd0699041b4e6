"""How Neural Compressor 3.7.1 is imported: without its warnings, and without torch."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec


@contextmanager
def importing() -> Iterator[None]:
    """While this lasts, Neural Compressor can be imported.

    It imports pkg_resources, which warns; and torch, where ``importlib.util.find_spec`` finds it, for models of torch
    alone. What is not loaded yet is not found here, so a worker does without the 250 MB.
    """
    find = importlib.util.find_spec

    def found(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "torch" and name not in sys.modules else find(name, package)

    importlib.util.find_spec = found
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        importlib.util.find_spec = find
