"""Latency of INT8 here, in the form before, and in what ONNX Runtime's own tools make, in turns on one core.

    python benchmarks/build/int8_forms.py [--models minilm-l6 bert-base] [--seconds 3]

Weights are random, which changes no time. For the largest network: its FP32 file, this package's INT8, ONNX Runtime's
static quantization (QDQ, a scale for each channel), its dynamic quantization, and dynamic quantization of the graph
that its transformers optimizer fused. For the smallest and the largest: this package's file as it is, and in the form
that ONNX Runtime joined to FP32 layers (a MatMul and an Add on matrices: pooler and classifier), with 16 tokens too.

Times are those that the thread had on its core, so that a loaded machine can be used: there the least of all runs says
more than the median.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.optimizer import optimize_model

from qnas_plugin import registry
from qnas_plugin.build.export import export_module
from qnas_plugin.build.graph import Graph
from qnas_plugin.data import Inputs
from qnas_plugin.hardware import RuntimeSetting
from qnas_plugin.hardware.machine import detect
from qnas_plugin.latency.parts_alone import build
from qnas_plugin.measure.accuracy import size_mb
from qnas_plugin.quantizers import kernels
from qnas_plugin.runtimes import onnxruntime as runtime
from qnas_plugin.space import Precision
from qnas_plugin.supernets import Supernet

TOKENS = {"minilm-l6": 64, "bert-base": 128}
"""Folders of ``examples/shapes``, and how long their texts are."""

SHORT = 16
TURNS = 12


def main() -> None:
    """Prints two tables for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(TOKENS), choices=TOKENS)
    parser.add_argument("--seconds", type=float, default=3, help="time of each model in each table, at least")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print(f"{detect()}")
    for name in options.models:
        supernet: Supernet = registry.load("supernets", "bert").load(f"examples/shapes/{name}")
        inputs = supernet.example(RuntimeSetting(sequence_length=TOKENS[name]))
        graph = supernet.graph(inputs)
        with tempfile.TemporaryDirectory(prefix="qnas-bench-") as folder:
            against_tools(name, supernet, graph, inputs, Path(folder), options.seconds)
        with tempfile.TemporaryDirectory(prefix="qnas-bench-") as folder:
            before_and_after(name, supernet, graph, Path(folder), options.seconds)


def against_tools(name: str, supernet: Supernet, graph: Graph, inputs: Inputs, folder: Path, seconds: float) -> None:
    """Prints the largest network in each kind of INT8."""
    fp32 = folder / "fp32.onnx"
    onnx.save(export_module(supernet.model, inputs), fp32)
    made: Mapping[str, Callable[[Path], None]] = {
        "this package": lambda path: emitted(path, supernet, graph, "largest"),
        "ONNX Runtime, static": lambda path: static(fp32, path, inputs),
        "ONNX Runtime, dynamic": lambda path: quantize_dynamic(fp32, path, weight_type=QuantType.QInt8),
        "ONNX Runtime, dynamic on the fused graph": lambda path: fused_dynamic(fp32, path, supernet),
    }
    paths = {"FP32": fp32}
    for i, (title, make) in enumerate(made.items()):
        paths[title] = folder / f"{i}.onnx"
        make(paths[title])
    table(f"{name}, largest, {TOKENS[name]} tokens", paths, inputs, seconds)


def before_and_after(name: str, supernet: Supernet, graph: Graph, folder: Path, seconds: float) -> None:
    """Prints networks of this package in the form of today and in the one before."""
    paths: dict[str, Path] = {}
    for size in ("smallest", "largest"):
        paths[f"{size}, before"], paths[size] = folder / f"{size}-before.onnx", folder / f"{size}.onnx"
        emitted(paths[size], supernet, graph, size)
        joined(paths[size], paths[f"{size}, before"])
    for tokens in (SHORT, TOKENS[name]):
        inputs = supernet.example(RuntimeSetting(sequence_length=tokens))
        table(f"{name}, {tokens} tokens", paths, inputs, seconds)


def emitted(path: Path, supernet: Supernet, graph: Graph, size: str) -> None:
    """Writes a corner of the space, all INT8, with ranges that are made up."""
    corner = supernet.space.corner("smallest" if size == "smallest" else "largest", Precision.INT8)
    onnx.save(build(graph, supernet, corner), path)
    assert not kernels.executed(path, graph.groups).not_integer


def joined(model: Path, path: Path) -> None:
    """Writes a file of this package in the form in which ONNX Runtime makes some layers FP32."""
    before = onnx.load(model)
    for node in before.graph.node:
        if node.op_type == "Gemm" and len(node.input) == 2:
            node.op_type = "MatMul"
    onnx.save(before, path)
    assert any(layer.int8 and not layer.integer for layer in kernels.layers(path))


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Four texts of random tokens."""

    def __init__(self, inputs: Inputs) -> None:
        rng = np.random.default_rng(0)
        ids = inputs["input_ids"]
        self._left = [dict(inputs) | {"input_ids": rng.integers(1000, 20000, ids.shape)} for _ in range(4)]

    def get_next(self) -> Inputs | None:
        return self._left.pop() if self._left else None


def static(fp32: Path, path: Path, inputs: Inputs) -> None:
    """ONNX Runtime's static quantization as its documentation has it: pre-processed, QDQ, a scale for each channel."""
    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(fp32, prepared, skip_symbolic_shape=True)  # it does not know the shapes of this graph
    quantize_static(
        prepared,
        path,
        _Reader(inputs),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def fused_dynamic(fp32: Path, path: Path, supernet: Supernet) -> None:
    """Dynamic quantization of the graph with attention, layer norms and activations fused."""
    config = supernet.model.config
    heads, width = config.num_attention_heads, config.hidden_size
    fused = path.with_suffix(".fused.onnx")
    optimized = optimize_model(str(fp32), model_type="bert", num_heads=heads, hidden_size=width, opt_level=0)
    optimized.save_model_to_file(str(fused))
    assert optimized.get_fused_operator_statistics()["Attention"] > 0
    default = {"DefaultTensorType": onnx.TensorProto.FLOAT}  # of what fused operators give
    quantize_dynamic(fused, path, weight_type=QuantType.QInt8, extra_options=default)


def table(title: str, paths: Mapping[str, Path], inputs: Inputs, seconds: float) -> None:
    """Times files in turns and prints them."""
    sessions = [runtime.session(path, 1, spinning=False) for path in paths.values()]
    times: list[list[float]] = [[] for _ in sessions]
    for turn in range(TURNS + 1):  # the first one warms up
        for session, found in list(zip(sessions, times, strict=True))[:: 1 if turn % 2 else -1]:
            given = runtime.feed(session, inputs)
            began, runs = time.perf_counter(), 0
            while runs < 3 or time.perf_counter() - began < seconds / TURNS:
                before = time.thread_time_ns()
                session.run(None, given)
                runs += 1
                if turn and runs > 1:
                    found.append((time.thread_time_ns() - before) / 1e6)
    print(f"\n| {title} | median ms | least ms | runs | MB |\n|---|---|---|---|---|")
    for (name, path), found in zip(paths.items(), times, strict=True):
        size = size_mb(path)
        print(f"| {name} | {np.median(found):.3f} | {min(found):.3f} | {len(found)} | {size:.1f} |", flush=True)


if __name__ == "__main__":
    main()
