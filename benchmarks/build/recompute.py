"""Recomputes the members of a search of an ONNX model by plain ONNX Runtime, and compares with ``pareto.json``.

    python benchmarks/build/recompute.py OUT

Which examples a part has is the search's own choice; all else is done here: each file is run by an ``InferenceSession``
with default options, one example at a time, and scored by a few lines of NumPy. Run it where the search was run, since
data and metric may be functions of a module there. Exit code 1 where an accuracy differs by more than 1e-6.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from qnas_plugin.commands.stored import request_in

from qnas_plugin import registry

Outputs = Mapping[str, np.ndarray]


def main() -> int:
    """Prints a table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    sys.path.insert(0, str(Path.cwd()))
    request, record = request_in(out), json.loads((out / "pareto.json").read_text())
    examples = registry.load("tasks", request.task).load(request.data, sizes=request.sizes).report
    metric = record["data"]["metric"]
    expected: Sequence[Any] = examples.labels
    if metric in ("agreement", "cosine"):
        expected = run(request.source, examples.inputs)
    print("| model | accuracy in pareto.json | recomputed |\n|---|---|---|")
    worst = 0.0
    for member in [*record["baselines"], *record["members"]]:
        got = run(out / member["folder"] / "model.onnx", examples.inputs)
        accuracy = float(np.mean([score(metric, *pair) for pair in zip(got, expected, strict=True)]))
        worst = max(worst, abs(accuracy - member["report"]["accuracy"]))
        print(f"| {member['name']} | {member['report']['accuracy']:.6f} | {accuracy:.6f} |", flush=True)
    print(f"\n{len(examples.inputs)} examples; the largest difference is {worst:.1e}")
    return int(worst > 1e-6)


def run(model: str | Path, inputs: Sequence[Mapping[str, np.ndarray]]) -> list[Outputs]:
    """The outputs for each example, of which each array lacks the axis of the batch."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    wanted = [value.name for value in session.get_inputs()]
    runs = (session.run(names, {name: example[name][None] for name in wanted}) for example in inputs)
    return [dict(zip(names, values, strict=True)) for values in runs]


def score(metric: str, outputs: Outputs, expected: Any) -> float:
    """What the outputs for one example are worth."""
    first = next(iter(outputs.values()))
    if metric == "accuracy":
        return float((first.argmax(-1) == expected).mean())
    if metric == "agreement":
        return float((first.argmax(-1) == next(iter(expected.values())).argmax(-1)).mean())
    if metric == "cosine":
        floats = [name for name, values in outputs.items() if values.dtype.kind == "f"]
        pairs = [(outputs[name].ravel().astype(float), expected[name].ravel().astype(float)) for name in floats]
        return float(np.mean([max(0.0, a @ b / np.sqrt(a @ a * (b @ b))) for a, b in pairs]))
    module, _, function = metric.partition(":")
    return float(getattr(importlib.import_module(module), function)(outputs, np.asarray(expected)[None])[0])


if __name__ == "__main__":
    sys.exit(main())
