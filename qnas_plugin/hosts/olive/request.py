"""The options of ``qnas tune`` in an Olive configuration, to what builds and measures candidates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from qnas_plugin.commands.tune import load
from qnas_plugin.evaluate import Evaluator
from qnas_plugin.request import TuneRequest

MAX_GROUPS = 60
"""Variables of a pass stand before its model is known, and Olive cannot count spaces of 2**63 points and more."""


def group_name(index: int) -> str:
    """The name of the option that is the precision of a group."""
    return f"group_{index:02}"


def evaluator(request: Mapping[str, Any]) -> Evaluator:
    """What builds and measures candidates of one ONNX model; kept, since Olive makes a new pass for each trial.

    Raises:
        QnasError: The request cannot be met.
    """
    return _evaluator(json.dumps(request, sort_keys=True))


@lru_cache(maxsize=2)
def _evaluator(request: str) -> Evaluator:
    return load(TuneRequest.build(json.loads(request))).evaluator()
