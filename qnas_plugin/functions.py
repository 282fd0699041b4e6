"""Functions of the user's, named ``module:function``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from qnas_plugin.errors import UsageError


def load_function(name: str) -> Any:
    """The function ``module:function``; modules of the current folder are found too.

    Raises:
        UsageError: There is no such module or function, or the module fails.
    """
    module, _, function = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # the qnas command starts without it, python -m with it
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever a user's module raises
        raise UsageError(f"cannot import '{name}': {type(error).__name__}: {error}") from error
    if not callable(found):
        raise UsageError(f"'{name}' is no function, but {type(found).__name__}")
    return found
