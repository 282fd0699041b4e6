"""Joint search of sub-network and INT8/FP32 precision for ONNX models on server CPUs.

    import qnas_plugin as qnas

    result = qnas.tune(supernet="bert", checkpoint="ck", task="text-classification", data="data/sst2", out="runs/tuned")
    result.to_dataframe()

Nothing heavy is imported before one of the functions is used.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from qnas_plugin._version import __version__ as __version__

if TYPE_CHECKING:
    from qnas_plugin.api import export, profile, retarget, train, tune
    from qnas_plugin.hosts.optuna import LinasSampler

# ONNX Runtime 1.31 opens a database of events in the user's cache and looks up a host as it is imported. This variable
# alone keeps it from that: its disable_telemetry_events() comes too late.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["LinasSampler", "export", "profile", "retarget", "train", "tune"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'qnas_plugin' has no attribute '{name}'")
    home = "qnas_plugin.hosts.optuna" if name == "LinasSampler" else "qnas_plugin.api"
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
