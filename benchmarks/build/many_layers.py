"""CPU seconds to load, list and quantize ONNX models of more and more layers: linear, where all is well.

    python benchmarks/build/many_layers.py [--layers 250 500 1000 2000]

Each layer is an unnamed MatMul of 8 x 8 with a Tanh behind it, and all become INT8. CPU seconds say the same with other
work on the machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qnas_plugin.data import Batch
from qnas_plugin.quantizers.quantize import calibrate
from qnas_plugin.supernets.onnx_file.onnx_model import load


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[250, 500, 1000, 2000])
    warnings.simplefilter("ignore")
    print("| layers | load and group | calibrate | quantize |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="qnas-bench-") as folder:
        for count in parser.parse_args().layers:
            seconds = measure(count, Path(folder) / "model.onnx")
            print(f"| {count} | {' | '.join(f'{part:.2f} s' for part in seconds)} |", flush=True)


def measure(count: int, path: Path) -> list[float]:
    """CPU seconds of the three stages."""
    chain(count, path)
    times = [time.process_time()]
    network = load(str(path))
    times.append(time.process_time())
    inputs = {"t0": np.ones((4, 8), np.float32)}
    calibrated = calibrate(network.outline, network.groups, [Batch(inputs, np.arange(4))])
    times.append(time.process_time())
    calibrated.outline(dict.fromkeys(network.groups, "int8"))
    times.append(time.process_time())
    return np.diff(times).tolist()


def chain(count: int, path: Path) -> None:
    """Writes the model."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for i in range(count):
        nodes += [
            helper.make_node("MatMul", [f"t{i}", f"w{i}"], [f"m{i}"]),
            helper.make_node("Tanh", [f"m{i}"], [f"t{i + 1}"]),
        ]
        weights.append(numpy_helper.from_array(rng.normal(size=(8, 8)).astype(np.float32), f"w{i}"))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in ("t0", f"t{count}")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


if __name__ == "__main__":
    main()
