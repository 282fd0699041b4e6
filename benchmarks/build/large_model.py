"""Memory that the search and the export of an ONNX model of more than 2 GB take: a stack of MatMuls, weights beside it.

    python benchmarks/build/large_model.py --hardware PROFILE.toml [--layers 36] [--width 4096] [--trials 4]

It runs ``qnas tune --model`` and ``qnas export`` and looks every tenth of a second at each of their processes.
*Resident* is what a process has in memory, *own* the part of it that no file holds: the rest are pages of files that
are mapped, which the system drops where memory is short.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper


def main() -> int:
    """Prints a table; the exit code is that of the first command that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="for all files, of ten times the model; one for temporary files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qnas-bench-", dir=options.folder) as name:
        folder = Path(name)
        model, data, out = folder / "model.onnx", folder / "data.npz", folder / "out"
        size = write(model, options.layers, options.width)
        np.savez(data, x=np.random.default_rng(0).standard_normal((60, options.width)).astype(np.float32))
        print(
            f"model of {size / 1e9:.2f} GB\n\n"
            "| command | process | resident GB | of the model | own GB | of the model |\n|---|---|---|---|---|---|"
        )
        asked = ["--model", model, "--data", data, "--hardware", options.hardware, "--trials", options.trials]
        for command in (
            ["tune", *asked, "--out", out],
            ["export", "--study", out, "--key", "largest-fp32", "--out", folder / "exported"],
        ):
            code, peaks = watched([sys.executable, "-m", "qnas_plugin", *map(str, command)])
            for process, (resident, own) in peaks.items():
                print(
                    f"| {command[0]} | {process} | {resident / 1e9:.2f} | {resident / size:.2f} | {own / 1e9:.2f} | "
                    f"{own / size:.2f} |",
                    flush=True,
                )
            if code not in (0, 3, 4):  # 3 and 4 are about limits of accuracy
                return code
    return 0


def write(path: Path, layers: int, width: int) -> int:
    """Writes the model, and how many bytes its weights have."""
    nodes, weights, one = [], [], width * width * 4
    for i in range(layers):
        nodes.append(helper.make_node("MatMul", [f"t{i}", f"w{i}"], [f"m{i}"], f"fc{i}"))
        nodes.append(helper.make_node("Tanh", [f"m{i}"], [f"t{i + 1}"], f"tanh{i}"))
        weight = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[width, width])
        weight.data_location = TensorProto.EXTERNAL
        for key, value in {"location": "weights.bin", "offset": i * one, "length": one}.items():
            weight.external_data.add(key=key, value=str(value))
        weights.append(weight)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name in ("t0", f"t{layers}")]
    ends[0].name = nodes[0].input[0] = "x"
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    rng = np.random.default_rng(0)
    with path.with_name("weights.bin").open("wb") as file:
        for _ in range(layers):
            file.write((rng.random((width, width), dtype=np.float32) - 0.5) * np.float32(6 / width**0.5))
    return layers * one


def watched(command: Sequence[str]) -> tuple[int, dict[str, tuple[int, int]]]:
    """The exit code of a command, and the most memory of the driver and of any other of its processes, in bytes."""
    peaks: dict[str, tuple[int, int]] = {}
    with subprocess.Popen(command, stdout=sys.stderr) as driver:
        tree = psutil.Process(driver.pid)
        while driver.poll() is None:
            for process in [tree, *_children(tree)]:
                name, before = "driver" if process == tree else "timing", (0, 0)
                before = peaks.get(name, before)
                now = _memory(process.pid)
                peaks[name] = max(before[0], now[0]), max(before[1], now[1])
            time.sleep(0.1)
    return driver.returncode, peaks


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def _memory(process: int) -> tuple[int, int]:
    """The bytes that are resident, and those of them that no file holds."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    except OSError:  # it ended
        return 0, 0
    return tuple(int(lines.get(name, "0 kB").split()[0]) * 1024 for name in ("VmRSS", "RssAnon"))  # type: ignore[return-value]


if __name__ == "__main__":
    sys.exit(main())
