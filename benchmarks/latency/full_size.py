"""Latency and size of the published networks, largest and smallest, in FP32 and INT8, with random weights.

    python benchmarks/latency/full_size.py [--networks bert-base vit-base ...] [--threads 1]

Neither needs trained weights. The four networks of a supernet are timed in turns in one run: batch 1, texts of 128
tokens, images of the size in ``examples/shapes``. Size is that of the ONNX file.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path
from typing import Literal

from qnas_plugin import registry
from qnas_plugin.hardware import RuntimeSetting
from qnas_plugin.latency.parts_alone import build
from qnas_plugin.measure.accuracy import size_mb
from qnas_plugin.measure.latency import time_models
from qnas_plugin.space import Precision
from qnas_plugin.supernets import Supernet

SHAPES = {
    "bert-base": "bert",
    "vit-base": "vit",
    "beit3-base": "beit3",
    "ofa-resnet50": "resnet50",
    "ofa-mobilenet-v3": "mobilenet_v3",
}
"""Folders of ``examples/shapes`` and their supernets."""

SIZES: tuple[Literal["largest", "smallest"], ...] = ("largest", "smallest")
TOKENS = 128


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print("| network | FP32 ms | INT8 ms | faster | FP32 MB | INT8 MB | smaller |")
    print("|---|---|---|---|---|---|---|")
    for name in options.networks:
        checkpoint = f"examples/shapes/{name}"
        supernet: Supernet = registry.load("supernets", SHAPES[name]).load(checkpoint)
        compare(name, supernet, RuntimeSetting(threads=options.threads, sequence_length=TOKENS))


def compare(name: str, supernet: Supernet, setting: RuntimeSetting) -> None:
    """Prints the rows of one supernet."""
    inputs = supernet.example(setting)
    graph = supernet.graph(inputs)
    corners = [(size, precision) for size in SIZES for precision in (Precision.FP32, Precision.INT8)]
    with tempfile.TemporaryDirectory(prefix="qnas-") as folder:
        paths = [Path(folder) / f"{size}-{precision}.onnx" for size, precision in corners]
        for path, (size, precision) in zip(paths, corners, strict=True):
            path.write_bytes(build(graph, supernet, supernet.space.corner(size, precision)).SerializeToString())
        times = [latency.median for latency in time_models(paths, inputs, setting, rounds=8)]
        sizes = [size_mb(path) for path in paths]
    for i, size in enumerate(SIZES):
        (fp32_ms, int8_ms), (fp32_mb, int8_mb) = times[2 * i : 2 * i + 2], sizes[2 * i : 2 * i + 2]
        print(
            f"| {name}, {size} | {fp32_ms:.2f} | {int8_ms:.2f} | {fp32_ms / int8_ms:.2f}x | {fp32_mb:.1f} | "
            f"{int8_mb:.1f} | {fp32_mb / int8_mb:.2f}x |",
            flush=True,
        )


if __name__ == "__main__":
    main()
