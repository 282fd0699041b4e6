"""The options of ``qnas tune`` in an Olive configuration, to what builds and measures candidates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from qnas_plugin.commands.loading import load
from qnas_plugin.evaluate.lab import Lab
from qnas_plugin.request import TuneRequest


def lab(request: Mapping[str, Any]) -> Lab:
    """What builds and measures candidates of one ONNX model; kept, since Olive makes a new pass for each trial.

    Raises:
        QnasError: The request cannot be met.
    """
    return _lab(json.dumps(request, sort_keys=True))


@lru_cache(maxsize=2)
def _lab(request: str) -> Lab:
    return load(TuneRequest.build(json.loads(request)))
