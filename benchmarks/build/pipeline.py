"""Seconds and memory from a candidate to its quantized ONNX file: this package against the plain way.

    python benchmarks/build/pipeline.py [--models minilm bert-base resnet50] [--candidates 3] [--examples 100]

The plain way is a ``torch.onnx.export`` of the subnet and a ``neural_compressor.quantization.fit`` for each candidate.
Both get the same candidates and 100 calibration texts with the lengths of SST-2 sentences, in turns; as usual, the
plain way pads all texts to one length, and this package sorts them into batches of like length. The ResNet-50 gets
images of 224 pixels; this package also estimates its BatchNorm statistics anew, the plain way does not. ``--examples``
gives this package fewer of them. The weights are random, which changes no time. Where other work shares the machine,
compare the seconds of CPU, which all threads together took. Memory is what a process of its own has at its peak above
what it has when all is imported.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import psutil
from neural_compressor import PostTrainingQuantConfig, quantization
from neural_compressor.config import options
from transformers import BertConfig, BertForSequenceClassification

from qnas_plugin import registry
from qnas_plugin.build.export import export_module
from qnas_plugin.build.graph import Graph
from qnas_plugin.data import Batch, Inputs
from qnas_plugin.evaluate.bench import Bench, Job, write
from qnas_plugin.hardware import RuntimeSetting
from qnas_plugin.hardware.machine import detect
from qnas_plugin.measure.metrics import Scorer
from qnas_plugin.space import Candidate, Precision
from qnas_plugin.supernets import Supernet

TEXTS = 100
MODELS: Mapping[str, tuple[int, int, int, int, int]] = {
    "tiny": (32, 2, 2, 64, 32),
    "minilm": (384, 6, 12, 1536, 64),
    "bert-base": (768, 12, 12, 3072, 128),
}
"""Width, layers, heads, feed-forward width, and the length that the plain way pads to."""


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*MODELS, "resnet50"]
    parser.add_argument("--models", nargs="+", choices=every, default=["minilm", "bert-base", "resnet50"])
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--examples", type=int, default=TEXTS, help="calibration examples that this package takes")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory, which needs minutes")
    parser.add_argument("--memory-of", choices=["here", "plain"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("neural_compressor").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="qnas-bench-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # no ranges of an earlier run
        options.workspace = folder
        if arguments.memory_of:
            print(json.dumps(peak(arguments.models[0], arguments.memory_of, Path(folder))))
            return
        for name in arguments.models:
            compare(name, arguments.candidates, arguments.examples, Path(folder))
            if not arguments.no_memory:
                compare_memory(name)


def compare(name: str, count: int, examples: int, folder: Path) -> None:
    """Times one model and prints its table."""
    supernet, bench, padded = prepare(name, folder, examples)
    space = supernet.space
    rows: dict[str, list[float]] = {}
    for genes, other in zip(*(space.sample(count, np.random.default_rng(seed)) for seed in (0, 1)), strict=True):
        candidate = space.decode(genes)
        second = space.with_policy(candidate, space.policy(space.decode(other)))
        for title, which in (("here", candidate), ("second", second)):
            seconds: dict[str, float] = {}
            began, cpu = time.perf_counter(), time.process_time()
            job = Job(which, supernet.cut(which), supernet.space.policy(which))
            write(folder / "here.onnx", bench.build(job, seconds, threads=detect().usable_cores))
            seconds["all"] = time.perf_counter() - began
            seconds["CPU"] = time.process_time() - cpu
            for stage, value in seconds.items():
                rows.setdefault(f"{title} {stage}", []).append(value)
        for stage, value in plain(supernet, bench.graph, candidate, padded, folder).items():
            rows.setdefault(f"plain {stage}", []).append(value)
    print(f"\n{name}: median of {count} candidates, seconds")
    for title, values in rows.items():
        print(f"  {title:16} {median(values):8.3f}   ({min(values):.3f} to {max(values):.3f})")
    for title, way in (("a new subnet:", "here"), ("a further policy:", "second")):
        wall, cpu = (median(rows[f"plain {unit}"]) / median(rows[f"{way} {unit}"]) for unit in ("all", "CPU"))
        print(f"  {title:18} {wall:5.1f} times as fast, by seconds of CPU {cpu:.1f}")


def compare_memory(name: str) -> None:
    """Prints the peaks of one model."""
    for way in ("here", "plain"):
        command = [sys.executable, __file__, "--models", name, "--memory-of", way]
        peaks = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        fp32_mb = peaks.pop("fp32")
        for title, megabytes in peaks.items():
            print(f"  peak memory, {way}, {title}: {megabytes:.0f} MB, {megabytes / fp32_mb:.1f} x {fp32_mb:.0f} MB")


def peak(name: str, which: str, folder: Path) -> dict[str, float]:
    """Megabytes at the peaks, above those after the imports: exported, then each candidate built, then run."""
    start = psutil.Process().memory_info().rss / 1e6
    supernet, bench, padded = prepare(name, folder)
    peaks = {"fp32": sum(array.nbytes for array in bench.graph.weights.values()) / 1e6}

    def mark(title: str) -> None:
        peaks[title] = highest() - start
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten

    mark("supernet exported")
    for precision in (Precision.INT8, Precision.FP32):
        candidate = supernet.space.corner("largest", precision)
        if which == "plain":
            plain(supernet, bench.graph, candidate, padded, folder)
            mark(f"largest candidate in {precision} built")
        else:
            job = Job(candidate, supernet.cut(candidate), supernet.space.policy(candidate), (1.0, 0.0))
            bench.evaluate(job, folder, threads=detect().usable_cores)
            mark(f"largest candidate in {precision} built and run")
    return peaks


def highest() -> float:
    """Megabytes that this process had at its peak; ``getrusage`` would count those of the parent too."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024 / 1e6


def prepare(name: str, folder: Path, examples: int = TEXTS) -> tuple[Supernet, Bench, list[Batch]]:
    """A random supernet with its bench, and the calibration data as the plain way gets them."""
    if name == "resnet50":
        supernet, batches = images()
        return supernet, bench(supernet, batches[: -(-examples // 8)], RuntimeSetting(resolution=224)), batches
    supernet, batches, padded = texts(name, folder, examples)
    return supernet, bench(supernet, batches, RuntimeSetting(sequence_length=MODELS[name][-1])), padded


def bench(supernet: Supernet, batches: Sequence[Batch], setting: RuntimeSetting) -> Bench:
    """What builds candidates with these calibration data."""
    first = batches[0]
    count = len(first.positions)
    search, labels = [Batch(first.inputs, np.arange(count))], np.zeros(count, dtype=np.int64)
    built = Bench(supernet.graph(first.inputs), batches, search, Scorer("accuracy", labels), first.inputs, setting)
    assert built.fingerprint  # hashes the weights, once a run
    return built


def images() -> tuple[Supernet, list[Batch]]:
    """OFA's ResNet-50, and random images."""
    folder = Path(__file__).parents[2] / "examples" / "shapes" / "ofa-resnet50"
    supernet: Supernet = registry.load("supernets", "resnet50").load(str(folder))
    pixels = np.random.default_rng(0).standard_normal((TEXTS, 3, 224, 224), dtype=np.float32)
    parts = np.split(np.arange(TEXTS), range(8, TEXTS, 8))
    return supernet, [Batch({"pixel_values": pixels[part]}, part) for part in parts]


def texts(name: str, folder: Path, examples: int = TEXTS) -> tuple[Supernet, list[Batch], list[Batch]]:
    """A BERT, and calibration texts: in batches of like length, and padded to one length."""
    width, layers, heads, ffn, length = MODELS[name]
    config = BertConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=ffn, num_labels=2
    )
    checkpoint = folder / name
    BertForSequenceClassification(config).save_pretrained(checkpoint)
    supernet: Supernet = registry.load("supernets", "bert").load(str(checkpoint))
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(3.1, 0.55, TEXTS).astype(int), 4, length)  # SST-2: median 22 tokens
    tokens = [rng.integers(1000, config.vocab_size, size) for size in lengths]
    order = np.argsort(lengths[:examples], kind="stable")
    sorted_ = [batch(tokens, chunk, None) for chunk in np.split(order, range(8, len(order), 8))]
    padded = [batch(tokens, chunk, length) for chunk in np.split(np.arange(TEXTS), range(8, TEXTS, 8))]
    return supernet, sorted_, padded


def batch(texts: Sequence[Any], positions: Any, length: int | None) -> Batch:
    """Some texts, padded to a length or to their longest."""
    length = length or max(len(texts[i]) for i in positions)
    ids = np.zeros((len(positions), length), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, i in enumerate(positions):
        ids[row, : len(texts[i])], mask[row, : len(texts[i])] = texts[i], 1
    inputs: Inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return Batch(inputs, positions)


def plain(
    supernet: Supernet, graph: Graph, candidate: Candidate, batches: Sequence[Batch], folder: Path
) -> dict[str, float]:
    """Seconds of each stage of the plain way, to a file on disk."""
    began, cpu = time.perf_counter(), time.process_time()
    supernet.activate(candidate)
    exported = folder / "exported.onnx"
    onnx.save(export_module(supernet.model, batches[0].inputs), exported)
    supernet.activate(None)
    done = time.perf_counter()
    policy = supernet.space.policy(candidate)
    int8 = {node for group, nodes in graph.groups.items() if policy.get(group) == "int8" for node in nodes}
    off = {"weight": {"dtype": ["fp32"]}, "activation": {"dtype": ["fp32"]}}
    model = onnx.load(exported)
    config = PostTrainingQuantConfig(
        quant_format="QDQ",
        quant_level=1,
        reduce_range=False,
        calibration_sampling_size=TEXTS,
        op_name_dict={re.escape(node.name): off for node in model.graph.node if node.name not in int8},
    )
    quantized = quantization.fit(model, config, calib_dataloader=_Loader(batches))
    onnx.save(quantized.model, folder / "plain.onnx")
    end = time.perf_counter()
    return {"export": done - began, "fit": end - done, "all": end - began, "CPU": time.process_time() - cpu}


class _Loader:
    """Batches as ``fit`` wants them."""

    batch_size = 8

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[tuple[dict[str, Any], None]]:
        return ((dict(batch.inputs), None) for batch in self._batches)


if __name__ == "__main__":
    main()
