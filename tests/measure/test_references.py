from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from qnas_plugin.errors import OutputError
from qnas_plugin.measure.metrics.metric import Outputs
from qnas_plugin.measure.metrics.references import References

EACH = 200_000


class Counted:
    """Runs of four examples, five of them, large ones; the last of one example without a batch axis."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> Iterator[tuple[np.ndarray, Outputs]]:
        self.made += 1
        for first in range(0, 20, 4):
            positions = np.arange(first + 3, first - 1, -1)
            yield positions, {"y": np.repeat(positions[:, None], EACH, axis=1) + 0.5, "text": np.array(["a"] * 4)}
        yield np.array([20]), {"y": np.full(EACH, 20.5), "text": ["b"]}  # type: ignore[dict-item]


def test_references_give_each_example_its_outputs_in_any_grouping() -> None:
    found = References(Counted())
    for positions in ([3, 2], [20], [0, 19, 20, 7]):
        rows = found.of(np.array(positions))
        assert list(rows) == ["y"]
        assert rows["y"].shape == (len(positions), EACH)
        np.testing.assert_array_equal(rows["y"][:, 0], np.array(positions) + 0.5)
    assert (found.names, found.kinds) == (("y", "text"), {"y": ("f", True)})


def test_references_are_not_in_memory_all_at_once() -> None:
    found = References(Counted())
    tracemalloc.start()
    found.make()
    for first in range(0, 20, 4):
        found.of(np.arange(first, first + 4))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.75 * 21 * EACH * 8  # a few runs of 4 of the 21 examples


def test_references_travel_without_their_outputs_and_are_made_once_a_process() -> None:
    found = References(Counted())
    found.make()
    sent = pickle.dumps(found)
    assert len(sent) < 10_000
    there = pickle.loads(sent)
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda i: there.of(np.array([i]))["y"][0, 0], range(20)))
    assert rows == [i + 0.5 for i in range(20)]
    assert there.runs.made == 2  # it counted one when it was sent


def test_references_say_when_there_is_no_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.save", full)
    with pytest.raises(OutputError, match="No space left on device; set TMPDIR"):
        References(Counted()).make()
