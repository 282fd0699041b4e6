"""Every kind of file that comes from outside, how it is read, and what must hold of what was read."""

from __future__ import annotations

import gzip
import json
import lzma
import math
import shutil
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from qnas_plugin import registry
from qnas_plugin.commands import export, study_folder
from qnas_plugin.data import Dataset, Processor, SplitSizes
from qnas_plugin.hardware import load_profile
from qnas_plugin.latency import measurements as timings
from qnas_plugin.latency import table as latency_table
from qnas_plugin.quantizers import range_cache
from qnas_plugin.request import TrainRequest, TuneRequest, model_name
from qnas_plugin.space import Precision
from qnas_plugin.study.evaluation import Evaluation
from qnas_plugin.study.study import Study
from qnas_plugin.training import state as training
from tests.fuzz import mutators, packed
from tests.fuzz.mutators import Mutator
from tests.latency.test_table import table

SIZES = SplitSizes(calibration=4, search=8)
OBJECTIVES = ("accuracy", "latency_ms")
IDENTITY = {"of": "fuzz"}


@dataclass(frozen=True)
class Door:
    """One file in a folder that a command reads.

    Args:
        kind: What it is, a row of the table.
        file: Its name in the folder.
        mutators: How it is made wrong.
        read: Reads the folder as the commands do, and asserts what everybody relies on later.
        specials: Whether FIFOs, devices and the like are tried as well.
    """

    kind: str
    file: str
    mutators: tuple[Mutator, ...]
    read: Callable[[Path], object]
    specials: bool = True

    def mutant(self, rng: Random, content: bytes) -> mutators.Mutant:
        """One wrong file."""
        if self.specials and rng.random() < 0.03:
            return rng.choice(mutators.SPECIALS)
        return rng.choice(self.mutators)(rng, content)


def text_dataset(folder: Path) -> None:
    _dataset(registry.load("tasks", "text_classification").load(str(folder), sizes=SIZES))


def one_table(name: str) -> Callable[[Path], object]:
    return lambda folder: _dataset(registry.load("tasks", "text_classification").load(str(folder / name), sizes=SIZES))


def image_dataset(name: str) -> Callable[[Path], object]:
    return lambda folder: _dataset(
        registry.load("tasks", "image_classification").load(str(folder / name if name else folder), sizes=SIZES)
    )


def questions(folder: Path) -> None:
    dataset = registry.load("tasks", "visual_question_answering").load(str(folder), sizes=SIZES)
    assert all(isinstance(question.text, str) for question in dataset.train.inputs)


def arrays(folder: Path) -> None:
    dataset = registry.load("tasks", "arrays").load(str(folder / "data.npz"), sizes=SIZES)
    for example in dataset.search.inputs:
        assert all(array.dtype != object for array in example.values())


def text_processor(folder: Path) -> None:
    _processor(
        registry.load("tasks", "text_classification").processor(str(folder)), ["good film", "a very bad plot"], 8
    )


def image_processor(folder: Path) -> None:
    images = [np.full((8, 8, 1), value, dtype=np.uint8) for value in (0, 255)]
    _processor(registry.load("tasks", "image_classification").processor(str(folder)), images, None)


def supernet(family: str) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        loaded = registry.load("supernets", family).load(str(folder))
        loaded.space.corner("largest", Precision.FP32)
        assert len(loaded.fingerprint) == 12
        assert all(isinstance(name, str) for name in loaded.label_names)

    return read


def training_state(folder: Path) -> None:
    state = training.read(folder, {"seed": 0})
    assert state is None or set(state) >= {"identity", "model"}


def tune_request(folder: Path) -> None:
    request = study_folder.request_in(folder)
    request.write(folder / "again.toml")
    assert request.precisions is not None


def train_request(folder: Path) -> None:
    TrainRequest.build({}, folder / "train.toml").write(folder / "again.toml")


def profile(folder: Path) -> None:
    load_profile(folder / "xeon-8280.toml")


def latency(folder: Path) -> None:
    read = latency_table.load(folder / "table.json")
    assert all(math.isfinite(row.ms) for row in read.rows)
    latency_table.dumps(read).encode()


def measurements(folder: Path) -> None:
    known = timings.resume(folder / "table.measured.jsonl", IDENTITY, (4, 2))
    if known.timings:
        networks = timings.joined(known)
        assert np.isfinite(networks.ms).all()
    assert all(math.isfinite(ms) for ms in known.alone.values())


def cached_ranges(folder: Path) -> None:
    found = range_cache.load("key")
    assert found is None or found == {"x": (-1.0, 2.0)}


def named_model(folder: Path) -> None:
    assert model_name.resolve(str(folder)).keys() == {"supernet", "checkpoint"}


def result(network: Any) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        for key in (None, "largest-fp32"):
            network.cut(export._stored(folder, key, network.space))

    return read


def candidate(network: Any) -> Callable[[Path], object]:
    return lambda folder: network.cut(export._read(folder / "candidate.json", network.space))


def study(network: Any, storage: str) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        for write in (False, True):
            where = storage.replace("FOLDER", str(folder))
            with Study.open(where, network.space, OBJECTIVES, identity=IDENTITY, write=write) as opened:
                for trial in opened.trials():
                    network.cut(trial.candidate)
                    assert all(math.isfinite(value) for value in trial.metrics.values())
                    assert trial.error is not None or {*OBJECTIVES} <= trial.metrics.keys()
                    assert all(isinstance(value, float) for value in (*trial.seconds.values(), *trial.spread.values()))
                    assert trial.error is None or isinstance(trial.error, str)
                if write:
                    sound = network.space.corner("smallest", Precision.FP32)
                    opened.add(sound, Evaluation({"accuracy": 0.5, "latency_ms": 1.0}))

    return read


def doors(checkpoints: Mapping[str, Path], sentences: Path, vqa: Path, home: Path) -> dict[str, tuple[Door, Path]]:
    """All doors, each with the sound folder that its file is in.

    Args:
        checkpoints: Family to a tiny checkpoint.
        sentences: A folder of sentences.
        vqa: A folder of questions.
        home: For what is made.
    """
    anything, text = mutators.anything, mutators.json_text
    found: list[tuple[Door, Path]] = []
    for family, source in checkpoints.items():
        folder = home / f"{family}-supernet"
        shutil.copytree(source, folder)
        registry.load("supernets", family).load(str(source)).save(folder)
        read = supernet(family)
        found += [
            (Door(f"config.json of {family}", "config.json", (anything, text, text), read), folder),
            (Door("supernet.json", "supernet.json", (anything, text, text), read), folder),
            (Door("safetensors", "model.safetensors", (anything, mutators.safetensors), read), folder),
        ]
    published = home / "published"
    shutil.copytree(checkpoints["resnet50"], published)
    (published / "model.safetensors").unlink()
    network = registry.load("supernets", "resnet50").load(str(checkpoints["resnet50"]))
    torch.save({"state_dict": network.model.state_dict()}, published / "weights.pth")
    torch.save({"identity": {"seed": 0}, "model": network.model.state_dict()}, published / "training.pt")
    found += [
        (Door("*.pth", "weights.pth", (anything, packed.archive), supernet("resnet50")), published),
        (Door("training.pt", "training.pt", (anything, packed.archive), training_state), published),
        (Door("config.json of a --model", "config.json", (anything, text), named_model), checkpoints["bert"]),
    ]
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        found.append((Door("tokenizer files", name, (anything, text, text), text_processor), checkpoints["bert"]))
    found.append(
        (Door("image processor", "preprocessor_config.json", (anything, text), image_processor), checkpoints["vit"])
    )
    found += _data(sentences, vqa, home)
    found += _studies(registry.load("supernets", "bert").load(str(checkpoints["bert"])), home)
    return {f"{door.kind} ({folder.name}/{door.file})": (door, folder) for door, folder in found}


def _data(sentences: Path, vqa: Path, home: Path) -> list[tuple[Door, Path]]:
    anything, table_text = mutators.anything, mutators.table_text
    tables = home / "tables"
    tables.mkdir()
    rows = [line.split("\t") for line in (sentences / "train.tsv").read_text().splitlines()[1:80]]
    (tables / "t.tsv").write_text("sentence\tlabel\n" + "".join(f"{a}\t{b}\n" for a, b in rows))
    (tables / "t.csv").write_text("sentence,label\n" + "".join(f'"{a}",{b}\n' for a, b in rows))
    (tables / "t.jsonl").write_text("".join(json.dumps({"text": a, "label": b}) + "\n" for a, b in rows))
    (tables / "t.tsv.gz").write_bytes(gzip.compress((tables / "t.tsv").read_bytes(), mtime=0))
    found = [
        (Door("tables of text", "t.tsv", (anything, table_text), one_table("t.tsv")), tables),
        (Door("tables of text", "t.csv", (anything, table_text), one_table("t.csv")), tables),
        (Door("tables of text", "t.jsonl", (anything, mutators.json_lines), one_table("t.jsonl")), tables),
        (Door("gzip", "t.tsv.gz", (packed.gzipped(table_text),), one_table("t.tsv.gz")), tables),
    ]
    asked = home / "questions"
    shutil.copytree(vqa, asked)
    found += [
        (Door("questions", "train.jsonl", (anything, mutators.json_lines), questions), asked),
        (Door("questions", "train0.png", (packed.png,), questions), asked),
    ]
    rng = np.random.default_rng(0)
    images = home / "images"
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (images / split / name).mkdir(parents=True)
            for i in range(8):
                suffix = ("png", "jpg", "bmp")[i % 3]
                pixels = rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(images / split / name / f"{i}.{suffix}")
    for i, suffix in enumerate(("png", "jpg", "bmp")):
        found.append((Door("images", f"train/cat/{i}.{suffix}", (packed.png,), image_dataset("")), images))
    archives = home / "archives"
    archives.mkdir()
    with tarfile.open(archives / "images.tar", "w") as archive:
        archive.add(images / "train", "train")
        archive.add(images / "test", "test")
    content = (archives / "images.tar").read_bytes()
    (archives / "images.tar.gz").write_bytes(gzip.compress(content, mtime=0))
    (archives / "images.tar.xz").write_bytes(lzma.compress(content))
    for name, packing in (("images.tar", ""), ("images.tar.gz", "gz"), ("images.tar.xz", "xz")):
        found.append((Door("tar", name, (packed.tar_file(packing),), image_dataset(name)), archives))  # type: ignore[arg-type]
    labels = np.arange(40) % 2
    pixels = rng.integers(0, 255, (40, 8, 8)).astype(np.uint8)
    np.savez_compressed(archives / "images.npz", x_train=pixels, y_train=labels, x_test=255 - pixels, y_test=labels)
    np.savez(archives / "data.npz", x=rng.standard_normal((40, 3)).astype(np.float32), labels=labels)
    found += [
        (Door("npz", "images.npz", (packed.archive,), image_dataset("images.npz")), archives),
        (Door("npz", "data.npz", (packed.archive,), arrays), archives),
    ]
    return found


def _studies(network: Any, home: Path) -> list[tuple[Door, Path]]:
    anything, text, toml = mutators.anything, mutators.json_text, mutators.toml_text
    folder = home / "study"
    folder.mkdir()
    common: dict[str, Any] = {"supernet": "bert", "checkpoint": "bert", "task": "text_classification", "data": "words"}
    TuneRequest(**common, out=folder, limits=("latency_ms<=5",), trials=4).write(folder / "request.toml")
    TrainRequest(**common, out=folder, depth=(2, 3, 4)).write(folder / "train.toml")
    rng = np.random.default_rng(0)
    candidates = [network.space.decode(genes) for genes in network.space.sample(6, rng)]
    for storage in ("study.journal", "sqlite:///study.db"):
        where = storage.replace("study.", f"{folder}/study.")
        with Study.open(where, network.space, OBJECTIVES, identity=IDENTITY) as study_:
            for i, one in enumerate(candidates):
                error = "MeasurementError: no" if i == 3 else None
                metrics = {} if error else {"accuracy": 0.5 + i / 100, "latency_ms": 1.0 + i, "size_mb": 2.0}
                study_.add(one, Evaluation(metrics, {"accuracy": 0.1}, {"build": 1.0}, {}, error))
    members = [
        {"name": name, "key": one.key, "candidate": dict(one), "search": {"accuracy": 0.5}, "report": {"accuracy": 0.5}}
        for name, one in zip(("1", "2", "largest-fp32"), candidates, strict=False)
    ]
    record = {
        "schema_version": 1,
        "members": members[:2],
        "baselines": members[2:],
        "recommended": "1",
        "reason": "the best within all limits",
    }
    (folder / "pareto.json").write_text(json.dumps(record, indent=2, sort_keys=True))
    (folder / "candidate.json").write_text(json.dumps({"candidate": dict(candidates[0]), "key": candidates[0].key}))
    (folder / "xeon-8280.toml").write_bytes(
        (Path(__file__).parents[2] / "hardware_profiles" / "xeon-8280.toml").read_bytes()
    )
    (folder / "table.json").write_text(latency_table.dumps(table({"a|int8": 1.0, "a|fp32": 2.0, "b": 0.5})))
    visit = {
        "networks": [
            {"purpose": purpose, "genes": [i, 1], "ms": 1.0 + i, "spread": 0.01, "core_share": 1.0}
            for i, purpose in enumerate(("fit", "fit", "test"))
        ],
        "seconds": 1.0,
    }
    lines = [IDENTITY, {"alone": {"a": 1.0}, "seconds": 1.0}, visit, visit, visit]
    (folder / "table.measured.jsonl").write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))
    return [
        (Door("pareto.json", "pareto.json", (anything, text, text), result(network)), folder),
        (Door("candidate.json", "candidate.json", (anything, text, text), candidate(network)), folder),
        (
            Door("journal", "study.journal", (anything, mutators.json_lines), study(network, "FOLDER/study.journal")),
            folder,
        ),
        (Door("SQLite", "study.db", (mutators.sqlite,), study(network, "sqlite:///FOLDER/study.db")), folder),
        (Door("TOML", "request.toml", (anything, toml, toml), tune_request), folder),
        (Door("TOML", "train.toml", (anything, toml, toml), train_request), folder),
        (Door("TOML", "xeon-8280.toml", (anything, toml, toml), profile), folder),
        (Door("latency table", "table.json", (anything, text, text), latency), folder),
        (Door("measured.jsonl", "table.measured.jsonl", (anything, mutators.json_lines), measurements), folder),
    ]


def _dataset(dataset: Dataset) -> None:
    """Everything is there, in the types that everybody relies on."""
    for part in (dataset.train, dataset.calibration, dataset.search, dataset.report):
        assert len(part.inputs) == len(part.labels)
        assert part.labels.dtype == np.int64
        assert part.labels.min() >= 0
        assert part.labels.max() < len(dataset.label_names)
        for example in part.inputs:
            if isinstance(example, np.ndarray):
                assert example.dtype == np.uint8
                assert example.ndim == 3
            else:
                assert "".join(example).encode()


def _processor(processor: Processor, examples: list[Any], length: int | None) -> None:
    """It gives numbers for every example, and inputs to time."""
    for batch in processor.batches(examples, 2):
        for array in batch.inputs.values():
            assert array.dtype.kind in "if"
            assert len(array) == len(batch.positions)
    processor.timing_inputs(1, length)
