"""ONNX Runtime without this package's own session, as another client has it, and the machine of the tests."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime as ort

from qnas_plugin.hardware import describe
from qnas_plugin.hardware.machine import detect
from qnas_plugin.runtimes.onnxruntime import make_exact

HERE = describe(detect(), "here")


def exact() -> ort.SessionOptions:
    """Options with which a model gives the same on every CPU: without VNNI, INT8 products overflow by default."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    make_exact(options)
    return options


def session(model: onnx.ModelProto | bytes | Path, *, optimize: bool = True) -> ort.InferenceSession:
    """One that gives the same on every CPU."""
    options = exact()
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    source = str(content) if isinstance(content, Path) else content
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
