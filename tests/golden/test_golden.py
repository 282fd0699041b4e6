"""What must stay as it is, bit by bit: keys, fingerprints, rows of latency tables, and emitted files of candidates.

Stored studies, tables and exports hang on them. A change that is meant is recorded by ``tests.golden.record``.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import qnas_plugin as qnas
from tests.golden import recorded
from tests.golden.adapter import GRANULARITIES, SESSION, Opened
from tests.golden.given import give_weights, given, given_observations, write_model

COUNT = 10
"""Candidates of each network."""

FORMATS = (
    *("int8", "int8-asym", "int8-per-tensor", "int8-percentile", "int8-kl", "int8-dynamic", "int8-smooth"),
    *("int8-corrected", "fp32"),
)
FINE = GRANULARITIES[:2]
"""Those at which a space with all formats can be seen: coarser rows are the products of many choices."""

UNSTEADY = "int8-smooth-75"
"""Its powers differ in last bits between CPUs: files that have it are recorded without their values."""

SLOW = "int8-kl"
"""Only the small ONNX model has it."""

TASKS = {
    "bert": "text_classification",
    "beit3": "visual_question_answering",
    "mobilenet_v3": "image_classification",
    "resnet50": "image_classification",
    "vit": "image_classification",
}


@pytest.fixture(scope="module", params=[*sorted(TASKS), "onnx"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def options(family: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a request for the network."""
    folder = tmp_path_factory.mktemp(family)
    samples = {"calibration_samples": 12, "search_samples": 10}
    if family == "onnx":
        write_model(folder / "model.onnx")
        np.savez(folder / "data.npz", pixels=given("pixels", (60, 1, 8, 8), -32, 32, 32), labels=np.arange(60) % 10)
        return {"model": str(folder / "model.onnx"), "data": str(folder / "data.npz"), **samples}
    checkpoint = shutil.copytree(request.getfixturevalue(f"{family}_checkpoint"), folder / "checkpoint")
    give_weights(checkpoint)
    data = "digits"
    if family == "bert":
        data = str(request.getfixturevalue("sentences"))
    if family == "beit3":
        data = str(_four_answers(request.getfixturevalue("questions"), folder / "data"))
    return {"supernet": family, "checkpoint": str(checkpoint), "task": TASKS[family], "data": data, **samples}


def _four_answers(questions: Path, folder: Path) -> Path:
    """Questions with the classes of the checkpoint."""
    shutil.copytree(questions, folder)
    for path in folder.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row | {"answer": str(i % 4)}) + "\n" for i, row in enumerate(rows)))
    return folder


@pytest.fixture(scope="module")
def opened(options: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Opened]:
    """The network with its own choices of precision, and with all."""
    return {
        "own": Opened(options, tmp_path_factory.mktemp("own")),
        "all": Opened({**options, "precision": (*FORMATS, UNSTEADY)}, tmp_path_factory.mktemp("all")),
    }


@pytest.fixture(scope="module")
def candidates(family: str, opened: Mapping[str, Opened]) -> list[tuple[str, Any]]:
    """The name of a space and a candidate of it: corners, draws, and three in which groups take formats in turn."""
    rng = np.random.default_rng(0)
    own, every = opened["own"].space, opened["all"].space
    drawn = [own.decode(genes) for genes in own.sample(2 * COUNT, rng)]
    found = list(dict.fromkeys([*opened["own"].corners(), *drawn]))[: COUNT - 3]
    mixed = []
    quick = FORMATS if family == "onnx" else [name for name in FORMATS if name != SLOW]
    for first, formats in ((0, quick), (5, quick), (7, [*quick, UNSTEADY])):
        values = dict(every.decode(every.sample(1, rng)[0]))
        groups = [name for name in values if name.startswith("precision.")]
        values |= {name: formats[(i + first) % len(formats)] for i, name in enumerate(groups)}
        mixed.append(every.candidate(values))
    return [("own", candidate) for candidate in found] + [("all", candidate) for candidate in mixed]


@pytest.fixture
def check(request: pytest.FixtureRequest) -> Any:
    """Compares a part of the record with what is found, or records it."""

    def compare(name: str, part: str, found: Any) -> None:
        recording = request.config.stash.get(recorded.FOUND, None)
        if recording is not None:
            recording.setdefault(name, {})[part] = found
            return
        assert found == recorded.load()[name][part]

    return compare


def test_spaces_and_networks_keep_their_fingerprints(family: str, opened: Mapping[str, Opened], check: Any) -> None:
    found = {name: own.space.fingerprint for name, own in opened.items()}
    check(family, "fingerprints", {**found, "network": opened["own"].fingerprint})


def test_candidates_keep_their_keys(family: str, candidates: list[tuple[str, Any]], check: Any) -> None:
    assert len({candidate.key for _, candidate in candidates}) == COUNT
    check(family, "keys", [candidate.key for _, candidate in candidates])


def test_candidates_keep_their_rows_of_latency_tables(
    family: str, opened: Mapping[str, Opened], candidates: list[tuple[str, Any]], check: Any
) -> None:
    """The first candidate's stand there for people; of each one's there is a hash for each granularity."""
    found = [
        {name: opened[space].rows(candidate, name) for name in (GRANULARITIES if space == "own" else FINE)}
        for space, candidate in candidates
    ]
    check(family, "first_rows", found[0])
    check(family, "rows", [{name: _hash(rows)[:16] for name, rows in one.items()} for one in found])


def test_candidates_keep_the_bytes_of_their_files(
    family: str,
    opened: Mapping[str, Opened],
    candidates: list[tuple[str, Any]],
    check: Any,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = recorded.versions()
    then = here if recorded.FOUND in request.config.stash else recorded.load()["versions"]
    if here != then:
        other = [f"{name} {value}, here is {here[name]}" for name, value in then.items() if here[name] != value]
        pytest.skip(f"the golden files were made with {'; '.join(other)}, which may write other bytes")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with given_observations(SESSION):
        check(family, "files", [_digest(opened[space].file(one), one) for space, one in candidates])


def _digest(file: bytes, candidate: Mapping[str, Any]) -> str:
    """SHA-256 of a file, or of what it is made of."""
    if UNSTEADY not in candidate.values():
        return hashlib.sha256(file).hexdigest()
    graph = onnx.load_from_string(file).graph
    nodes = [[node.op_type, node.name, list(node.input), list(node.output)] for node in graph.node]
    return "structure " + _hash([nodes, [[i.name, i.data_type, list(i.dims)] for i in graph.initializer]])


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@pytest.mark.parametrize("command", ["export", "profile", "retarget", "train", "tune"])
def test_options_stay_with_their_defaults(command: str, request: pytest.FixtureRequest) -> None:
    """They are the keys of a request.toml too. New ones may come."""
    plain = (bool, int, float, str, tuple, type(None))
    parameters = inspect.signature(getattr(qnas, command)).parameters.values()
    found = {p.name: repr(p.default) if isinstance(p.default, plain) else "" for p in parameters}
    recording = request.config.stash.get(recorded.FOUND, None)
    if recording is not None:
        recording.setdefault("options", {})[command] = found
        return
    old = recorded.load()["options"][command]
    assert {name: found.get(name, "is gone") for name in old} == old
