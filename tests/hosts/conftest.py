"""A small ONNX model with its data, for every host."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from qnas_plugin import registry
from qnas_plugin.cli import main
from qnas_plugin.data import Dataset, SplitSizes
from tests.sessions import session

SEARCH = (
    "--trials",
    "10",
    "--population",
    "5",
    "--seed",
    "3",
    "--calibration-samples",
    "32",
    "--search-samples",
    "100",
)


@dataclass(frozen=True)
class Case:
    """An ONNX file, an .npz file whose labels are what that model says, and a profile of this machine."""

    model: Path
    data: Path
    hardware: Path

    @property
    def dataset(self) -> Dataset:
        """The parts that ``qnas tune`` makes of the data."""
        loaded: Dataset = registry.load("tasks", "arrays").load(str(self.data), sizes=SplitSizes(32, 100))
        return loaded

    def accuracy(self, model: onnx.ModelProto) -> float:
        """On the search part."""
        part = self.dataset.search
        images = np.stack([example["pixel_values"] for example in part.inputs])
        return float((session(model).run(None, {"pixel_values": images})[0].argmax(-1) == part.labels).mean())


@pytest.fixture(scope="session")
def case(vit_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Digits and a ViT of random weights."""
    from sklearn.datasets import load_digits
    from transformers import ViTForImageClassification

    from qnas_plugin.build.export import export_module
    from qnas_plugin.hardware import describe, write_profile
    from qnas_plugin.hardware.machine import detect

    folder = tmp_path_factory.mktemp("host")
    images = (load_digits().images[:400, None] / 8 - 1).astype(np.float32)
    model = export_module(
        ViTForImageClassification.from_pretrained(vit_checkpoint).eval(), {"pixel_values": images[:2]}
    )
    onnx.save(model, folder / "digits.onnx")
    labels = session(model).run(None, {"pixel_values": images})[0].argmax(-1)
    np.savez(folder / "digits.npz", pixel_values=images, labels=labels)
    return Case(folder / "digits.onnx", folder / "digits.npz", write_profile(describe(detect(), "here"), folder))


@pytest.fixture(scope="session")
def tuned(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``qnas tune`` finds, for objectives that are the same in each run."""
    out = tmp_path_factory.mktemp("tuned") / "out"
    options = ["--data", case.data, "--hardware", case.hardware, "--out", out, *SEARCH]
    with pytest.raises(SystemExit) as stop:
        main(["tune", "-m", *map(str, [case.model, *options]), "--objective", "accuracy", "--objective", "size_mb"])
    assert stop.value.code in (0, 3)
    return out


def trials(out: Path) -> list[tuple[str, float, float]]:
    """Key, accuracy and size of each trial of a study, in order."""
    lines = [json.loads(line) for line in (out / "study.journal").read_text().splitlines()]
    found = [line["user_attrs"] for line in lines if "candidate" in line.get("user_attrs", {})]
    return [(trial["candidate"], trial["metrics"]["accuracy"], trial["metrics"]["size_mb"]) for trial in found]


def front(out: Path) -> list[tuple[str, float, float]]:
    """The same of each member of the Pareto set."""
    members = json.loads((out / "pareto.json").read_text())["members"]
    return [(member["key"], member["search"]["accuracy"], member["search"]["size_mb"]) for member in members]
