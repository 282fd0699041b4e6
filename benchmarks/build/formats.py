"""What each INT8 format costs in accuracy and latency, with all groups of one network in it.

    PYTHONPATH=examples/onnx_models python benchmarks/build/formats.py $RAPIDOCR/models/ch_PP-OCRv4_rec_infer.onnx \\
        --data ocr:lines --metric ocr:characters --examples 300
    python benchmarks/build/formats.py runs/minilm --supernet bert --task text_classification --data data/sst2 \\
        --max-length 64

Of a supernet, it is the largest network. Accuracies are of held-out examples, paired one by one: points are against
FP32, the gain is over ``int8``, each with its standard error. Where labels are classes, the last two columns are the
gain in the probability of the right one, in points too, which tells formats apart with fewer examples. A row is printed
as soon as it is known. Latencies are measured in turns, at batch 1 on one thread; ``--only latency`` takes no
accuracies, and after a first run, whose calibration ranges are kept, is a matter of a minute.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from qnas_plugin import registry
from qnas_plugin.data import SplitSizes
from qnas_plugin.evaluate.lab import Lab
from qnas_plugin.hardware import RuntimeSetting, describe
from qnas_plugin.hardware.machine import detect
from qnas_plugin.measure.accuracy import size_mb
from qnas_plugin.measure.latency import disturbed, time_models
from qnas_plugin.measure.metrics import Scored, Scores, standard_error
from qnas_plugin.quantizers.formats import FORMATS, Precisions
from qnas_plugin.space import Precision
from qnas_plugin.supernets.onnx_file import onnx_model

FP32, INT8 = Precision.FP32.value, Precision.INT8.value


def arguments(about: str | None) -> argparse.ArgumentParser:
    """What names a network and its data, and the formats of it."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an ONNX file, or the checkpoint of a supernet")
    parser.add_argument("--supernet")
    parser.add_argument("--task")
    parser.add_argument("--data", required=True)
    parser.add_argument("--metric")
    parser.add_argument("--calibration", type=int, default=64)
    parser.add_argument("--examples", type=int, default=300, help="for the accuracy, at most")
    parser.add_argument("--max-length", type=int, help="tokens of a text")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    return parser


def main() -> None:
    """Prints a table of accuracies and one of latencies."""
    parser = arguments(__doc__)
    parser.add_argument("--only", choices=("accuracy", "latency"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    # Nothing is searched, so that all held-out examples may be used.
    lab = load(options, SplitSizes(options.calibration, options.examples, selection=0, report=1))
    print(f"{detect()}", flush=True)
    with tempfile.TemporaryDirectory(prefix="qnas-bench-") as folder:
        paths = {name: Path(folder) / f"{name}.onnx" for name in dict.fromkeys([FP32, INT8, *options.formats])}
        if options.only == "latency":
            for name in paths:
                write(lab, name, paths[name])
        else:
            accuracies(lab, paths)
        if options.only != "accuracy":
            latencies(lab, paths)


def load(options: argparse.Namespace, sizes: SplitSizes) -> Lab:
    """The network with its data."""
    precisions = Precisions(tuple(FORMATS))
    task = registry.load("tasks", options.task or "arrays")
    dataset = task.load(options.data, sizes=sizes)
    dataset = replace(dataset, metric=options.metric or dataset.metric)
    if options.supernet:
        network = registry.load("supernets", options.supernet).load(options.model, precisions=precisions)
    else:
        network = onnx_model.load(options.model, precisions=precisions)
    processor = task.processor(options.model, max_length=options.max_length)
    return Lab(
        network, dataset, processor, describe(detect(), "here"), RuntimeSetting(sequence_length=options.max_length)
    )


def write(lab: Lab, name: str, path: Path) -> None:
    """Writes the largest network with all groups in one format."""
    space = lab.network.space
    largest = space.corner("largest", Precision.FP32)
    lab.write(space.with_policy(largest, dict.fromkeys(space.policy(largest), name)), path)


def accuracies(lab: Lab, paths: Mapping[str, Path]) -> None:
    """Writes the files and prints what each loses and gains; FP32 and ``int8`` come first."""
    print(f"\n{len(lab.dataset.search)} examples, ranges from {len(lab.dataset.calibration)}\n")
    print("| format | MB | accuracy | points | error | gain over int8 | error | probability | error |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    found: dict[str, Scored] = {}
    for name, path in paths.items():
        write(lab, name, path)
        found[name] = own = lab.scores(path, "search")
        base = found.get(INT8, own)
        cells = [*_change(own.scores - found[FP32].scores), *_change(own.scores - base.scores)]
        cells += ["", ""] if own.soft is None or base.soft is None else _change(own.soft - base.soft)
        shown = cells if INT8 in found else [""] * len(cells)
        print(f"| {name} | {size_mb(path):.2f} | {own.scores.mean():.4f} | {' | '.join(shown)} |", flush=True)


def latencies(lab: Lab, paths: Mapping[str, Path]) -> None:
    """Prints how long files take, in turns."""
    setting = lab.setting
    found = time_models(list(paths.values()), lab.bench.timing_inputs, setting, rounds=5)
    base = dict(zip(paths, found, strict=True))[INT8].median
    print("\n| format | ms | spread of the rounds | time of int8 |\n|---|---|---|---|")
    for name, own in zip(paths, found, strict=True):
        print(f"| {name} | {own.median:.3f} | {own.spread:.1%} | {own.median / base:.2f}x |")
    if disturbed(found, setting):
        share = min(own.core_share for own in found)
        print(f"\nsomething else ran on the core: a model had it for {share:.0%} of the time; take them again")


def _change(differences: Scores) -> list[str]:
    """The mean of differences and its standard error, in points."""
    return [f"{100 * differences.mean():+.2f}", f"{100 * standard_error(differences):.2f}"]


if __name__ == "__main__":
    main()
