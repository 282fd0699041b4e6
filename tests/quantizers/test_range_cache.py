from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qnas_plugin.build.observe import Ranges
from qnas_plugin.evaluate import bench
from qnas_plugin.evaluate.lab import Lab
from qnas_plugin.quantizers import range_cache
from qnas_plugin.quantizers.formats import Precisions
from qnas_plugin.space import Precision
from tests.evaluate.test_lab import make

RANGES = {"a": (-1.5, 0.1 + 0.2), "b": (0.0, float(np.float32(1) / 3))}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return range_cache.folder()


def test_load_gives_what_was_stored_to_the_last_bit(folder: Path) -> None:
    assert range_cache.load("key") is None
    range_cache.store("key", RANGES)
    assert range_cache.load("key") == RANGES
    assert [path.name for path in folder.iterdir()] == ["key.json"]


def edited(change: Callable[[dict], object]) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        record = json.loads(content)
        change(record)
        return json.dumps(record).encode()

    return edit


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-20],
        lambda content: b"\xff" + content,
        lambda content: b"[]",
        edited(lambda record: record["ranges"]["a"].reverse()),
        edited(lambda record: record["ranges"].pop("a")),
        edited(lambda record: record["ranges"].update(a=[1])),
        edited(lambda record: record["ranges"].update(a=[0, 1])),
        edited(lambda record: record.pop("seal")),
    ],
)
def test_load_ignores_a_damaged_entry_and_store_writes_it_anew(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    range_cache.store("key", RANGES)
    path = folder / "key.json"
    path.write_bytes(damage(path.read_bytes()))
    assert range_cache.load("key") is None
    range_cache.store("key", RANGES)
    assert range_cache.load("key") == RANGES


def test_load_refuses_the_entry_of_another_key(folder: Path) -> None:
    range_cache.store("key", RANGES)
    (folder / "key.json").rename(folder / "other.json")
    assert range_cache.load("other") is None


def test_store_forgets_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(range_cache, "KEPT", 3)
    for key in "abcde":
        range_cache.store(key, RANGES)
    assert [key for key in "abcde" if range_cache.load(key)] == ["c", "d", "e"]


def test_store_does_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    range_cache.store("key", RANGES)
    assert range_cache.load("key") is None


def test_store_leaves_no_half_entry_when_the_disk_is_full(folder: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
    try:
        range_cache.store("key", RANGES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert range_cache.load("key") is None
    assert not list(folder.iterdir())
    range_cache.store("key", RANGES)
    assert range_cache.load("key") == RANGES


def test_two_processes_that_write_and_forget_the_same_entries_see_whole_ones_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = (
        "from qnas_plugin.quantizers import range_cache as ranges\n"
        "ranges.KEPT = 5\n"
        "found = 0\n"
        "for turn in range(30):\n"
        "    for i in range(10):\n"
        "        expected = {'t': (-float(i), float(i))}\n"
        "        got = ranges.load(str(i))\n"
        "        assert got in (None, expected), got\n"
        "        found += got is not None\n"
        "        ranges.store(str(i), expected)\n"
        "print(found)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(2)]
    assert sum(int(process.communicate()[0]) for process in processes) >= 0
    assert [process.returncode for process in processes] == [0, 0]
    assert all(range_cache.load(path.stem) for path in range_cache.folder().iterdir())


@pytest.fixture(scope="module")
def fresh(bert_checkpoint: Path, sentences: Path) -> Callable[[], Lab]:
    return lambda: make("bert", bert_checkpoint, str(sentences))


def test_build_gives_the_same_bytes_with_ranges_of_another_process(
    fresh: Callable[[], Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = fresh(), fresh()
    candidate = first.network.space.corner("largest", Precision.INT8)
    built = first.build(candidate)

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError

    monkeypatch.setattr(bench, "observe", never)
    assert second.build(candidate) == built
    with pytest.raises(AssertionError):
        second.build(first.network.space.corner("smallest", Precision.INT8))


def test_build_calibrates_again_when_a_weight_or_the_data_differ(
    fresh: Callable[[], Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = fresh().network.space.corner("largest", Precision.INT8)
    fresh().build(candidate)
    calls: list[int] = []
    observe = bench.observe

    def counted(*arguments: Any, **options: Any) -> Ranges:
        calls.append(1)
        return observe(*arguments, **options)

    monkeypatch.setattr(bench, "observe", counted)
    fresh().build(candidate)
    assert len(calls) == 0
    other = fresh()
    name = next(name for name in other.bench.graph.weights if name.endswith("classifier.bias"))
    other.bench.graph.weights[name][0] += 1  # type: ignore[index]
    other.build(candidate)
    assert len(calls) == 1
    other = fresh()
    other.bench.calibration[0].inputs["input_ids"][0, 0] += 1
    other.build(candidate)
    assert len(calls) == 2


def test_build_finds_clipped_ranges_when_a_policy_asks_for_them(
    bert_checkpoint: Path, sentences: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    observe = bench.observe

    def counted(*arguments: Any, **options: Any) -> Ranges:
        asked.append(options["algorithm"])
        return observe(*arguments, **options)

    monkeypatch.setattr(bench, "observe", counted)
    choices = ("int8", "int8-percentile", "int8-kl", "fp32")

    def build(**precisions: str) -> onnx.ModelProto:
        lab = make("bert", bert_checkpoint, str(sentences), Precisions(choices))
        space = lab.network.space
        largest = space.corner("largest", Precision.INT8)
        values = {name: precisions.get(name.rpartition(".")[2], value) for name, value in largest.items()}
        return lab.build(space.candidate(values))

    plain = build()
    assert asked == ["minmax"]
    clipped = build(classifier="int8-percentile")
    assert asked == ["minmax", "percentile"]
    assert clipped != plain
    assert build(classifier="int8-percentile") == clipped
    assert asked == ["minmax", "percentile"]
    build(classifier="int8-percentile", pooler="int8-kl")
    assert asked == ["minmax", "percentile", "kl"]
    assert len(list(folder.iterdir())) == 3
