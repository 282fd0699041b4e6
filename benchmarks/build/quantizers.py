"""What each INT8 format costs by each quantizer, in accuracy and latency, with all groups of one network in it.

    python -m benchmarks.build.quantizers runs/minilm --supernet bert --task text_classification --data data/sst2 \\
        --max-length 64 --quantizers neural_compressor onnxruntime

Of a supernet, it is the largest network. With ``--quantizers neural_compressor onnxruntime``, each format by each of
them. Accuracies are of the search part, paired example by example: points are
against FP32, the gain is over ``int8``, the error is its standard error. Latencies are measured in turns, at batch 1 on
one thread.
"""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

from benchmarks.build.formats import arguments, load, write
from qnas_plugin import registry
from qnas_plugin.data import SplitSizes
from qnas_plugin.measure.latency import time_models
from qnas_plugin.quantizers import DEFAULT
from qnas_plugin.quantizers.formats import FORMATS


def main() -> None:
    """Prints a table."""
    parser = arguments(__doc__)
    parser.add_argument("--quantizers", nargs="+", choices=registry.names("quantizers"), default=[DEFAULT])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lab = load(options, SplitSizes(options.calibration, options.examples))
    with tempfile.TemporaryDirectory(prefix="qnas-bench-") as folder:
        scores, paths = {}, {}
        names = dict.fromkeys(["int8", *(name for name in options.formats if FORMATS[name].quantized)])
        for name, quantizer in (("fp32", ""), *((name, each) for name in names for each in options.quantizers)):
            paths[name, quantizer] = path = Path(folder) / f"{name}-{quantizer}.onnx"
            write(replace(lab, quantizer=quantizer or DEFAULT), name, path)
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


if __name__ == "__main__":
    main()
