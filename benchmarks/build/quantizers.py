"""What each INT8 format costs by each quantizer, in accuracy and latency, with all groups of one network in it.

    python benchmarks/build/quantizers.py runs/minilm --supernet bert --task text_classification --data data/sst2 \\
        --max-length 64 --quantizers neural_compressor onnxruntime

Of a supernet, it is the largest network. With ``--quantizers neural_compressor onnxruntime``, each format by each of
them. Accuracies are of the search part, paired example by example: points are
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
from qnas_plugin.quantizers import DEFAULT
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
    parser.add_argument("--quantizers", nargs="+", choices=registry.names("quantizers"), default=[DEFAULT])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lab = load(options)
    space = lab.network.space
    largest = space.corner("largest", Precision.FP32)
    with tempfile.TemporaryDirectory(prefix="qnas-bench-") as folder:
        scores, paths = {}, {}
        names = dict.fromkeys(["int8", *(name for name in options.formats if FORMATS[name].quantized)])
        for name, quantizer in (("fp32", ""), *((name, each) for name in names for each in options.quantizers)):
            paths[name, quantizer] = path = Path(folder) / f"{name}-{quantizer}.onnx"
            own = replace(lab, quantizer=quantizer or DEFAULT)
            own.write(space.with_policy(largest, dict.fromkeys(space.policy(largest), name)), path)
            scores[name, quantizer] = lab.bench.scores(path, threads=1).scores
        inputs = lab.bench.timing_inputs
        latencies = time_models(list(paths.values()), inputs, lab.setting, rounds=5)
    print("format           quantizer           accuracy  points    gain   error  others       ms")
    for ((name, quantizer), own), latency in zip(scores.items(), latencies, strict=True):
        first = scores["int8", options.quantizers[0]]
        lost, gain = 100 * (own - scores["fp32", ""]), 100 * (own - first)
        spread = gain.std() / len(gain) ** 0.5
        print(
            f"{name:16} {quantizer:18} {own.mean():9.4f} {lost.mean():7.2f} {gain.mean():7.2f} {spread:7.2f} "
            f"{(own != first).sum():7} {latency.median:8.3f}"
        )


def load(options: argparse.Namespace) -> Lab:
    """The network with its data."""
    precisions = Precisions(tuple(FORMATS))
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
