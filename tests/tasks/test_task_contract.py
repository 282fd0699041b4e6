"""What every registered task keeps, on tiny data of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qnas_plugin import registry
from qnas_plugin.data import Dataset, Processor, SplitSizes

SIZES = SplitSizes(calibration=5, search=9)
PARTS = ("train", "calibration", "search", "selection", "report")


@dataclass(frozen=True)
class Case:
    task: str
    data: Path
    checkpoint: Path

    def load(self) -> Dataset:
        dataset: Dataset = registry.load("tasks", self.task).load(str(self.data), sizes=SIZES)
        return dataset

    def processor(self) -> Processor:
        processor: Processor = registry.load("tasks", self.task).processor(str(self.checkpoint))
        return processor


@pytest.fixture(params=registry.names("tasks"))
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    if request.param == "text_classification":
        sentences = request.getfixturevalue("sentences")
        data = request.getfixturevalue("write_texts")(train=sentences(60), validation=sentences(14, "a"))
        return Case(request.param, data, request.getfixturevalue("tokenizer_folder"))
    if request.param == "image_classification":
        write_images = request.getfixturevalue("write_images")
        write_images(tmp_path / "train", each=20, seed=0)
        write_images(tmp_path / "test", each=5, seed=1)
        return Case(request.param, tmp_path, request.getfixturevalue("image_processor_folder"))
    if request.param == "visual_question_answering":
        return Case(request.param, request.getfixturevalue("questions"), request.getfixturevalue("beit3_checkpoint"))
    if request.param == "arrays":
        rng = np.random.default_rng(0)
        arrays = {
            "x": rng.normal(size=(70, 3)),
            "ids": rng.integers(0, 9, (70, 2, 2)),
            "labels": rng.integers(0, 2, 70),
        }
        np.savez(tmp_path / "data.npz", **arrays)
        return Case(request.param, tmp_path / "data.npz", write_model(tmp_path / "model.onnx"))
    pytest.fail(f"add tiny data and a tiny checkpoint for the task '{request.param}' here")


def write_model(path: Path) -> Path:
    """A file with the inputs ``x`` (batch, 3) and ``ids`` (batch, 2, 2)."""
    kinds = {"x": (onnx.TensorProto.FLOAT, ["b", 3]), "ids": (onnx.TensorProto.INT64, ["b", 2, 2])}
    values = [onnx.helper.make_tensor_value_info(name, *kind) for name, kind in kinds.items()]
    nodes = [onnx.helper.make_node("Identity", ["x"], ["y"])]
    outputs = [onnx.helper.make_tensor_value_info("y", *kinds["x"])]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", values, outputs)), path)
    return path


def _content(example: Any) -> Any:
    if isinstance(example, dict):
        return tuple(_content(array) for array in example.values())
    return (example.shape, example.tobytes()) if isinstance(example, np.ndarray) else example


def _row(batch_inputs: Any, i: int) -> dict[str, Any]:
    return {name: array[i] for name, array in batch_inputs.items()}


def test_load_gives_disjoint_parts(case: Case) -> None:
    dataset = case.load()
    seen = Counter(content for part in PARTS for content in {_content(x) for x in getattr(dataset, part).inputs})
    assert max(seen.values()) == 1


def test_load_gives_the_sizes_asked_for(case: Case) -> None:
    dataset = case.load()
    assert len(dataset.calibration) == 5
    assert abs(len(dataset.search) - 9) <= 1  # questions about one image stay together
    assert abs(len(dataset.selection) - 9) <= 1
    for part in PARTS:
        assert len(getattr(dataset, part).inputs) == len(getattr(dataset, part)) > 0


def test_load_gives_labels_in_range(case: Case) -> None:
    dataset = case.load()
    for part in PARTS:
        labels = getattr(dataset, part).labels
        assert labels.dtype == np.int64
        assert labels.min() >= 0
        assert not dataset.label_names or labels.max() < len(dataset.label_names)


def test_load_gives_the_same_in_another_process(case: Case) -> None:
    code = (
        "import sys; from qnas_plugin import registry; from qnas_plugin.data import SplitSizes\n"
        "d = registry.load('tasks', sys.argv[1]).load(sys.argv[2], sizes=SplitSizes(calibration=5, search=9))\n"
        "parts = d.train, d.calibration, d.search, d.report\n"
        "print(d.fingerprint, d.label_names, *(part.labels.tolist() for part in parts))"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code, case.task, str(case.data)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0].split()[0] == case.load().fingerprint


@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_batches_hold_each_example_once(case: Case, batch_size: int) -> None:
    examples = case.load().report
    batches = case.processor().batches(examples.inputs, batch_size)
    assert sorted(np.concatenate([batch.positions for batch in batches]).tolist()) == list(range(len(examples)))
    for batch in batches:
        assert 1 <= len(batch.positions) <= batch_size
        assert {len(array) for array in batch.inputs.values()} == {len(batch.positions)}


def test_batches_give_an_example_the_same_values_in_any_batch(case: Case) -> None:
    examples, processor = case.load().report, case.processor()
    for batch in processor.batches(examples.inputs, 4):
        for i, position in enumerate(batch.positions):
            (alone,) = processor.batches([examples.inputs[position]], 1)
            for name, row in _row(batch.inputs, i).items():
                expected = alone.inputs[name][0]
                np.testing.assert_array_equal(row[tuple(slice(n) for n in expected.shape)], expected)


def test_batches_are_none_when_there_are_no_examples(case: Case) -> None:
    assert list(case.processor().batches([], 4)) == []


def test_timing_inputs_are_the_same_each_time_and_shaped_like_a_batch(case: Case) -> None:
    processor = case.processor()
    (batch,) = processor.batches(case.load().report.inputs[:3], 3)
    examples = case.load().calibration.inputs
    first, second = processor.timing_inputs(3, 12, examples), processor.timing_inputs(3, 12, examples)
    assert first.keys() == batch.inputs.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
        assert array.dtype == batch.inputs[name].dtype
        assert array.ndim == batch.inputs[name].ndim
        assert len(array) == 3


def test_save_gives_files_that_the_processor_loads(case: Case, tmp_path: Path) -> None:
    inputs, processor = case.load().report.inputs, case.processor()
    processor.save(tmp_path / "saved")
    saved = tmp_path / "saved"
    if case.checkpoint.is_file():
        saved = Path(shutil.copy(case.checkpoint, saved))
    reloaded = Case(case.task, case.data, saved).processor()
    for before, after in zip(processor.batches(inputs, 4), reloaded.batches(inputs, 4), strict=True):
        for name, array in before.inputs.items():
            np.testing.assert_array_equal(array, after.inputs[name])
