"""Evaluates real candidates of a supernet once and stores what each of them answered.

    python -m benchmarks.search.record digits --checkpoint demo/digits-supernet --data digits --candidates 5000
    python -m benchmarks.search.record minilm --checkpoint runs/minilm --data runs/sst2 --candidates 2500
    python -m benchmarks.search.record digits --checkpoint demo/digits-supernet --data digits --candidates 400 --soft

Each candidate is built and run as ``qnas tune`` does it. Kept are its genes, the size of its file, and for each example
of the search and the report split whether it was right; with ``--soft`` also the probability of its label in 255 steps.
Stop it at any time; the same command goes on, and packs all there is into ``recorded/<name>.npz`` (with ``--soft``
``<name>-soft.npz``) when it ends.

The first half of the candidates covers the space: depth, size and share of FP32 are stratified. The others are where
searches go: the predicted fronts of all records so far and their neighbours.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.search.spaces import SOFT, SPACES, Recorded
from qnas_plugin import registry
from qnas_plugin.data import Dataset, Processor
from qnas_plugin.evaluate.bench import Bench, Job, write
from qnas_plugin.files import write_bytes
from qnas_plugin.hardware import RuntimeSetting
from qnas_plugin.hardware.machine import environment
from qnas_plugin.measure.accuracy import scores, size_mb
from qnas_plugin.measure.metrics import Scorer
from qnas_plugin.search import _evolution
from qnas_plugin.space import Genes, Precision, SearchSpace
from qnas_plugin.supernets import Supernet

BATCH = 32
STRATA = 5
"""Levels of size and of the share of FP32, each."""


def main() -> None:
    """Records until there are so many candidates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space", choices=SPACES)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--candidates", type=int, required=True)
    parser.add_argument("--soft", action="store_true", help="keep the probability of the label too, in a file beside")
    options = parser.parse_args()
    recorded = (SOFT if options.soft else SPACES)[options.space]
    live = Live(recorded, options.checkpoint, options.data)
    journal = recorded.records.with_suffix(".jsonl")
    with contextlib.suppress(KeyboardInterrupt):
        _record(live, journal, options.candidates)
    pack(journal, recorded.records, live.about | {"covering": options.candidates // 2})


def pack(journal: Path, target: Path, about: dict[str, Any]) -> None:
    """Turns the lines of a journal into one compressed file."""
    rows = _read(journal)
    arrays = {
        "genes": np.array([row["genes"] for row in rows], dtype=np.uint8),
        "size_mb": np.array([row["size_mb"] for row in rows]),
        "search": np.array([_bytes(row["search"]) for row in rows]),
        "report": np.array([_bytes(row["report"]) for row in rows]),
        "about": np.array(json.dumps(about, sort_keys=True)),
    }
    for name in ("soft_search", "soft_report"):
        if name in rows[0]:
            arrays[name] = np.array([_bytes(row[name]) for row in rows])
    with tempfile.TemporaryFile() as file:
        np.savez_compressed(file, **arrays)
        file.seek(0)
        write_bytes(target, file.read())


class Live:
    """Real candidates, built and run.

    Args:
        recorded: Their space.
        checkpoint: The supernet with its weights.
        data: The task's data.
    """

    def __init__(self, recorded: Recorded, checkpoint: str, data: str) -> None:
        self.recorded = recorded
        self.supernet: Supernet = registry.load("supernets", recorded.supernet).load(checkpoint)
        assert self.supernet.space.fingerprint == recorded.shape.space.fingerprint
        task = registry.load("tasks", recorded.task)
        dataset: Dataset = task.load(data, sizes=recorded.sizes)
        processor: Processor = task.processor(checkpoint)
        calibration = list(processor.batches(dataset.calibration.inputs, 8))
        self.splits = {"search": dataset.search, "report": dataset.report}
        self.batches = {name: list(processor.batches(split.inputs, BATCH)) for name, split in self.splits.items()}
        inputs = calibration[0].inputs
        graph = self.supernet.graph(inputs)
        self.bench = Bench(
            graph,
            calibration,
            self.batches["search"],
            Scorer("accuracy", dataset.search.labels),
            inputs,
            RuntimeSetting(),
        )
        self.about = {
            "space": self.supernet.space.fingerprint,
            "checkpoint": self.supernet.fingerprint,
            "data": dataset.fingerprint,
            "examples": {name: len(split) for name, split in self.splits.items()},
            "versions": environment()["versions"],
        }

    def row(self, genes: Genes) -> dict[str, Any]:
        """What is recorded of a canonical genotype ``(n,)``: genes, size, and what it answered on each split."""
        candidate = self.supernet.space.decode(genes)
        model = self.bench.build(Job(candidate, self.supernet.cut(candidate), self.supernet.space.policy(candidate)))
        with tempfile.TemporaryDirectory(prefix="qnas-") as folder:
            path = Path(folder) / "model.onnx"
            write(path, model)
            answers = {}
            for name, split in self.splits.items():
                scored = scores(path, self.batches[name], Scorer("accuracy", split.labels), threads=1)
                answers[name] = _text(np.packbits(scored.scores == 1))
                if self.recorded.soft:
                    assert scored.soft is not None
                    answers[f"soft_{name}"] = _text(np.round(255 * scored.soft).astype(np.uint8))
            return {"genes": genes.tolist(), "size_mb": size_mb(path)} | answers


def _record(live: Live, journal: Path, candidates: int) -> None:
    recorded, supernet, space = live.recorded, live.supernet, live.supernet.space
    rows = _read(journal)
    seen = {space.decode(np.array(row["genes"])).key for row in rows}
    front, tries = np.empty((0, len(space)), dtype=np.int64), 0
    with journal.open("a") as file:
        while len(rows) < candidates:
            rng = np.random.default_rng([len(rows), tries := tries + 1])
            if len(rows) < candidates // 2:
                group = _covering(recorded, space, rng) if rows else _corners(space)
            else:
                if not len(front) or rng.random() < 0.05:
                    front = _front(recorded, supernet, rows, rng)
                group = _near(recorded, space, front, rng)
            for genes in group:
                key = space.decode(genes).key
                if key not in seen:
                    seen.add(key)
                    rows.append(live.row(genes))
                    print(json.dumps(rows[-1]), file=file, flush=True)


def _text(values: npt.NDArray[np.uint8]) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _corners(space: SearchSpace) -> Iterator[Genes]:
    for size in ("largest", "smallest"):
        for precision in Precision:
            yield space.encode(space.corner(size, precision))


def _covering(recorded: Recorded, space: SearchSpace, rng: np.random.Generator) -> Iterator[Genes]:
    """Genotypes ``(n,)`` of one subnet, their shares of FP32 spread over all."""
    first = _stratified(space, rng)
    for share in (np.arange(recorded.policies) + rng.random(recorded.policies)) / recorded.policies:
        yield _policy(space, first, share, rng)


def _near(recorded: Recorded, space: SearchSpace, front: Genes, rng: np.random.Generator) -> Iterator[Genes]:
    """Genotypes ``(n,)`` of one subnet, on a front or some mutations from it."""
    first = space.mutate(front[[rng.integers(len(front))]], rng, rng.choice([0.0, 0.5, 1.0, 2.0]) / len(space))[0]
    yield space.canonical(first[None])[0]
    precision = _precision(space)
    for _ in range(recorded.policies - 1):
        other = front[rng.integers(len(front))] if rng.random() < 0.5 else first
        other = space.mutate(other[None], rng, 2 / len(space))[0]
        yield space.canonical(np.where(precision, other, first)[None])[0]


def _stratified(space: SearchSpace, rng: np.random.Generator) -> Genes:
    """A genotype ``(n,)`` of uniform depth and uniform mean size; in a third of them, all layers are alike."""
    level = (rng.integers(STRATA) + rng.random()) / STRATA
    genes = rng.binomial(space.sizes - 1, level)
    genes[space.index["depth"]] = rng.integers(space.sizes[space.index["depth"]])
    if rng.random() < 1 / 3:
        for kind in ("heads", "ffn"):
            columns = [i for i, variable in enumerate(space.variables) if variable.name.endswith(f".{kind}")]
            genes[columns] = genes[columns[0]]
    return genes


def _policy(space: SearchSpace, genes: Genes, share: float, rng: np.random.Generator) -> Genes:
    """The same subnet with this share of its groups in FP32: drawn one by one, by layer, or by kind of group."""
    names = [variable.group or variable.name for variable in space.variables]
    by = rng.integers(4)
    keys = [
        (name.rpartition(".")[0] or name) if by == 0 else name.rpartition(".")[2] if by == 1 else name for name in names
    ]
    draws = dict(zip(dict.fromkeys(keys), rng.random(len(names)), strict=False))
    fp32 = np.array([draws[key] < share for key in keys])
    return space.canonical(np.where(_precision(space), fp32, genes)[None])[0]


def _precision(space: SearchSpace) -> npt.NDArray[np.bool_]:
    return np.array([variable.kind == "precision" for variable in space.variables])


def _front(recorded: Recorded, supernet: Supernet, rows: list[dict[str, Any]], rng: np.random.Generator) -> Genes:
    """The predicted front ``(f, n)`` of accuracy, latency and size, by all records."""
    space = supernet.space
    genes = np.array([row["genes"] for row in rows], dtype=np.int64)
    accuracy = np.array([np.unpackbits(_bytes(row["search"])).sum() for row in rows], dtype=float)
    ridge = registry.load("predictors", "ridge").create()
    ridge.fit(space.features(genes), accuracy)

    def score(found: Genes) -> _evolution.Scores:
        found = space.canonical(found)
        accuracies = ridge.predict(space.features(found))
        losses = np.column_stack([-accuracies, recorded.latency(found), recorded.size_mb(found)])
        return losses, np.zeros((len(found), 0))

    start = genes[rng.permutation(len(genes))[:200]]
    return space.canonical(_evolution.minimise(space, score, start, population=150, generations=60, rng=rng))


def _read(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []


def right(text: str, count: int) -> npt.NDArray[np.uint8]:
    """Which of so many examples were right ``(count,)``, as it stands in a row."""
    return np.unpackbits(_bytes(text), count=count)


def _bytes(text: str) -> npt.NDArray[np.uint8]:
    return np.frombuffer(base64.b64decode(text), dtype=np.uint8)


if __name__ == "__main__":
    main()
