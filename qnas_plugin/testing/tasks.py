"""What every task promises, on its own tiny data."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qnas_plugin import registry
from qnas_plugin.data import Dataset, Processor, SplitSizes
from qnas_plugin.tasks import Tiny
from qnas_plugin.testing._contract import Contract, printed_with

PARTS = ("train", "calibration", "search", "selection", "report")
SIZES = SplitSizes(calibration=5, search=9)


class TaskContract(Contract):
    """A task's parts are disjoint and the same everywhere, and its batches hold each example once, unchanged."""

    @pytest.fixture(scope="class")
    @classmethod
    def tiny(cls, name: str, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
        """The data and the checkpoint."""
        made: Tiny = registry.load("tasks", name).tiny(tmp_path_factory.mktemp(name))
        return made

    @pytest.fixture(scope="class")
    @classmethod
    def dataset(cls, name: str, tiny: Tiny) -> Dataset:
        """The data, loaded."""
        return _load(name, tiny)

    @pytest.fixture
    def processor(self, name: str, tiny: Tiny) -> Processor:
        """What turns them into inputs of the checkpoint."""
        return _processor(name, tiny.checkpoint)

    def test_load_gives_disjoint_parts(self, dataset: Dataset) -> None:
        seen = Counter(content for part in PARTS for content in {_content(x) for x in getattr(dataset, part).inputs})
        assert max(seen.values()) == 1

    def test_load_gives_the_sizes_asked_for(self, dataset: Dataset) -> None:
        assert len(dataset.calibration) == 5
        assert abs(len(dataset.search) - 9) <= 1  # examples of one cluster stay together
        assert abs(len(dataset.selection) - 9) <= 1
        for part in PARTS:
            assert len(getattr(dataset, part).inputs) == len(getattr(dataset, part)) > 0

    def test_load_gives_labels_in_range(self, dataset: Dataset) -> None:
        for part in PARTS:
            labels = getattr(dataset, part).labels
            assert labels.dtype == np.int64
            assert labels.min() >= 0
            assert not dataset.label_names or labels.max() < len(dataset.label_names)

    def test_load_gives_the_same_in_another_process(self, name: str, tiny: Tiny, dataset: Dataset) -> None:
        program = (
            "import sys; from qnas_plugin import registry; from qnas_plugin.data import SplitSizes\n"
            "d = registry.load('tasks', sys.argv[1]).load(sys.argv[2], sizes=SplitSizes(calibration=5, search=9))\n"
            "parts = d.train, d.calibration, d.search, d.report\n"
            "print(d.fingerprint, d.label_names, *(part.labels.tolist() for part in parts))"
        )
        printed = printed_with(program, "PYTHONHASHSEED", ("1", "2"), name, str(tiny.data))
        assert printed.split()[0] == dataset.fingerprint

    @pytest.mark.parametrize("batch_size", [1, 4, 1000])
    def test_batches_hold_each_example_once(self, dataset: Dataset, processor: Processor, batch_size: int) -> None:
        examples = dataset.report
        batches = list(processor.batches(examples.inputs, batch_size))
        positions = np.concatenate([batch.positions for batch in batches])
        assert sorted(positions.tolist()) == list(range(len(examples)))
        for batch in batches:
            assert 1 <= len(batch.positions) <= batch_size
            assert {len(array) for array in batch.inputs.values()} == {len(batch.positions)}

    def test_batches_give_an_example_the_same_values_in_any_batch(self, dataset: Dataset, processor: Processor) -> None:
        examples = dataset.report
        for batch in processor.batches(examples.inputs, 4):
            for i, position in enumerate(batch.positions):
                (alone,) = processor.batches([examples.inputs[position]], 1)
                for name, array in batch.inputs.items():
                    expected = alone.inputs[name][0]
                    np.testing.assert_array_equal(array[i][tuple(slice(n) for n in expected.shape)], expected)

    def test_batches_are_none_when_there_are_no_examples(self, processor: Processor) -> None:
        assert list(processor.batches([], 4)) == []

    def test_timing_inputs_are_the_same_each_time_and_shaped_like_a_batch(
        self, dataset: Dataset, processor: Processor
    ) -> None:
        (batch,) = processor.batches(dataset.report.inputs[:3], 3)
        first, second = (processor.timing_inputs(3, 12, dataset.calibration.inputs) for _ in range(2))
        assert first.keys() == batch.inputs.keys()
        for name, array in first.items():
            np.testing.assert_array_equal(array, second[name])
            assert array.dtype == batch.inputs[name].dtype
            assert array.ndim == batch.inputs[name].ndim
            assert len(array) == 3

    def test_save_gives_files_that_the_processor_loads(
        self, name: str, tiny: Tiny, dataset: Dataset, processor: Processor, tmp_path: Path
    ) -> None:
        inputs, saved = dataset.report.inputs, tmp_path / "saved"
        processor.save(saved)
        if tiny.checkpoint.is_file():
            saved = Path(shutil.copy(tiny.checkpoint, saved))
        reloaded = _processor(name, saved)
        for before, after in zip(processor.batches(inputs, 4), reloaded.batches(inputs, 4), strict=True):
            for input_name, array in before.inputs.items():
                np.testing.assert_array_equal(array, after.inputs[input_name])


def _load(name: str, tiny: Tiny) -> Dataset:
    dataset: Dataset = registry.load("tasks", name).load(str(tiny.data), sizes=SIZES)
    return dataset


def _processor(name: str, checkpoint: Path) -> Processor:
    processor: Processor = registry.load("tasks", name).processor(str(checkpoint))
    return processor


def _content(example: Any) -> Any:
    """What an example is, in a form that can be compared and hashed."""
    if isinstance(example, Mapping):
        return tuple(_content(array) for array in example.values())
    return (example.shape, example.tobytes()) if isinstance(example, np.ndarray) else example
