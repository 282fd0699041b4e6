from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qnas_plugin.data import SplitSizes
from qnas_plugin.errors import CheckpointError, DataError, UsageError
from qnas_plugin.tasks.arrays import load, processor

SIZES = SplitSizes(calibration=4)


def write_model(path: Path, *, batch: str | int = "b") -> str:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, "n"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, "n"])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [out])
    onnx.save(helper.make_model(graph), str(path))
    return str(path)


def test_load_reads_a_folder_of_splits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(20, 3)), rng.normal(size=(6, 3))
    np.savez(tmp_path / "train.npz", x=np.concatenate([train, test[:2]]))
    np.savez(tmp_path / "test.npz", x=test)
    dataset = load(str(tmp_path), sizes=SIZES)
    np.testing.assert_array_equal([example["x"] for example in dataset.report.inputs], test)
    assert (len(dataset.calibration), len(dataset.search), len(dataset.selection)) == (4, 8, 8)
    assert dataset.metric == "cosine"


def test_load_calls_a_function_that_gives_arrays_or_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user_data.py").write_text(
        "import numpy as np\n"
        "def arrays():\n    return {'x': np.arange(30.0).reshape(15, 2), 'labels': ['a', 'b', 'c'] * 5}\n"
        "def examples():\n    return [{'x': np.ones(2 + i % 3) * i, 'labels': i} for i in range(15)]\n"
        "def broken():\n    return {}['x']\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "user_data", raising=False)
    dataset = load("user_data:arrays", sizes=SIZES)
    assert (dataset.metric, set(dataset.search.labels.tolist()) <= {"a", "b", "c"}) == ("accuracy", True)
    dataset = load("user_data:examples", sizes=SIZES)
    batches = processor(write_model(tmp_path / "m.onnx")).batches(dataset.search.inputs, 8)
    assert {batch.inputs["x"].shape[1] for batch in batches} == {2, 3, 4}
    for batch in batches:
        for row, position in zip(batch.inputs["x"], batch.positions, strict=True):
            assert row[0] == dataset.search.labels[position]
    with pytest.raises(DataError, match="user_data:broken' failed: KeyError"):
        load("user_data:broken", sizes=SIZES)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((2, 3))}, "1 different examples are too few"),
        ({"x": np.ones((4, 3)), "labels": np.ones(3)}, "equally many examples, got {'labels': 3, 'x': 4}|equally many"),
        ({}, "equally many examples, got none"),
    ],
)
def test_load_names_what_is_wrong(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load(str(tmp_path / "data.npz"), sizes=SIZES)


def test_load_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no arrays")
    with pytest.raises(DataError, match="cannot read"):
        load(str(tmp_path / "text.npz"), sizes=SIZES)
    with pytest.raises(DataError, match="no file or folder 'nowhere'"):
        load("nowhere", sizes=SIZES)


def test_batches_name_what_does_not_fit_the_model(tmp_path: Path) -> None:
    made = processor(write_model(tmp_path / "m.onnx"))
    with pytest.raises(DataError, match="no array 'x', which m.onnx takes; have: z"):
        made.batches([{"z": np.ones(3)}], 2)
    with pytest.raises(DataError, match="'x' is complex128 in the data, m.onnx takes float32"):
        made.batches([{"x": np.ones(3, complex)}], 2)
    with pytest.raises(DataError, match=r"has shape \(1, 1, 1\), m.onnx takes 2 axes"):
        made.batches([{"x": np.ones((1, 1, 1))}], 2)
    with pytest.raises(CheckpointError, match="needs an ONNX file"):
        processor(str(tmp_path))


def test_batches_are_single_examples_when_the_model_takes_no_more(tmp_path: Path) -> None:
    fixed, free = (processor(write_model(tmp_path / f"{b}.onnx", batch=b)) for b in (1, "b"))
    examples = [{"x": np.full(3, i)} for i in range(5)]
    assert [batch.inputs["x"].shape for batch in fixed.batches(examples, 4)] == [(1, 3)] * 5
    assert [batch.inputs["x"].shape for batch in free.batches(examples, 4)] == [(4, 3), (1, 3)]
    assert free.timing_inputs(2, None, examples)["x"].shape == (2, 3)
    with pytest.raises(UsageError, match="takes one example a run, latencies were asked for 2"):
        fixed.timing_inputs(2, None, examples)
