"""What each INT8 format costs in accuracy and latency, with all groups of one network in it.

    PYTHONPATH=examples/onnx_models python benchmarks/formats.py $RAPIDOCR/models/ch_PP-OCRv4_rec_infer.onnx \\
        --data ocr:lines --metric ocr:characters --examples 300
    python benchmarks/formats.py runs/minilm --supernet bert --task text_classification --data data/sst2 --max-length 64

Of a supernet, it is the largest network. Accuracies are of the search part, paired example by example: points are
against FP32, the gain is over ``int8``, the error is its standard error. Latencies are measured in turns, at batch 1 on
one thread.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

from qnas_plugin import registry
from qnas_plugin.data import SplitSizes
from qnas_plugin.evaluate.lab import Lab
from qnas_plugin.hardware import RuntimeSetting, describe
from qnas_plugin.hardware.machine import detect
from qnas_plugin.measure.latency import time_models
from qnas_plugin.quantizers.formats import FORMATS, Precisions
from qnas_plugin.space import Precision
from qnas_plugin.supernets.onnx_file import onnx_model


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an ONNX file, or the checkpoint of a supernet")
    parser.add_argument("--supernet")
    parser.add_argument("--task")
    parser.add_argument("--data", required=True)
    parser.add_argument("--metric")
    parser.add_argument("--calibration", type=int, default=64)
    parser.add_argument("--examples", type=int, default=300, help="for the accuracy, at most")
    parser.add_argument("--max-length", type=int, help="tokens of a text")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lab = load(options)
    space = lab.network.space
    largest = space.corner("largest", Precision.FP32)
    with tempfile.TemporaryDirectory(prefix="qnas-bench-") as folder:
        scores, paths = {}, {}
        for name in (Precision.FP32.value, *dict.fromkeys(["int8", *options.formats])):
            values = {key: name if key.startswith("precision.") else value for key, value in largest.items()}
            paths[name] = Path(folder) / f"{name}.onnx"
            lab.write(space.candidate(values), paths[name])
            scores[name] = lab.bench.scores(paths[name], threads=1).scores
        inputs = lab.bench.timing_inputs
        latencies = time_models(list(paths.values()), inputs, lab.setting, rounds=5)
    print("format           accuracy  points    gain   error       ms")
    for (name, own), latency in zip(scores.items(), latencies, strict=True):
        lost, gain = 100 * (own - scores["fp32"]), 100 * (own - scores["int8"])
        spread = gain.std() / len(gain) ** 0.5
        print(f"{name:16} {own.mean():8.4f} {lost.mean():7.2f} {gain.mean():7.2f} {spread:7.2f} {latency.median:8.3f}")


def load(options: argparse.Namespace) -> Lab:
    """The network with its data."""
    precisions = Precisions((*FORMATS, Precision.FP32.value))
    task = registry.load("tasks", options.task or "arrays")
    dataset = task.load(options.data, sizes=SplitSizes(calibration=options.calibration, search=options.examples))
    dataset = replace(dataset, metric=options.metric or dataset.metric)
    if options.supernet:
        network = registry.load("supernets", options.supernet).load(options.model, precisions=precisions)
    else:
        network = onnx_model.load(options.model, precisions=precisions)
    processor = task.processor(options.model, max_length=options.max_length)
    return Lab(
        network, dataset, processor, describe(detect(), "here"), RuntimeSetting(sequence_length=options.max_length)
    )


if __name__ == "__main__":
    main()
