from __future__ import annotations

from pathlib import Path

import pytest

from qnas_plugin.errors import UnknownNameError, UsageError
from qnas_plugin.request import TrainRequest, TuneRequest

GIVEN = {"supernet": "bert", "checkpoint": "ck", "task": "text-classification", "data": "d", "out": "o"}


def test_build_merges_a_file_with_options_that_win(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('supernet = "vit"\ntrials = 7\nobjectives = ["accuracy", "size_mb"]\n')
    request = TuneRequest.build(GIVEN | {"trials": None, "seed": 3}, config)
    assert (request.supernet, request.task, request.trials, request.seed) == ("bert", "text_classification", 7, 3)
    assert request.objectives == ("accuracy", "size_mb")


def test_write_gives_a_file_that_builds_the_same_request(tmp_path: Path) -> None:
    request = TuneRequest.build(GIVEN | {"limits": ["latency_ms<=5", "accuracy >= 0.8"], "threads": 2})
    request.write(tmp_path / "request.toml")
    assert TuneRequest.build({}, tmp_path / "request.toml") == request


def test_build_takes_a_model_in_place_of_a_supernet(tmp_path: Path) -> None:
    given = {"model": "m.onnx", "data": "d", "out": "o"}
    request = TuneRequest.build(given | {"group": ["head=*/head/*"]})
    assert (request.task, request.against, request.source) == ("arrays", "fp32", "m.onnx")
    assert request.precisions.groups == {"head": "*/head/*"}
    request.write(tmp_path / "request.toml")
    assert TuneRequest.build({}, tmp_path / "request.toml") == request
    assert TuneRequest.build(given | {"against": "int8"}).reference == "largest-int8"
    with pytest.raises(UsageError, match="--latency table is for supernets"):
        TuneRequest.build(given | {"latency": "table"})
    with pytest.raises(UsageError, match="cannot read the group 'head'"):
        TuneRequest.build(given | {"group": ["head"]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"supernet": "brt"}, "unknown supernet 'brt'; did you mean 'bert'"),
        ({"task": "text"}, "unknown task 'text'; did you mean 'text_classification'"),
        ({"algorithm": "lina"}, "unknown algorithm 'lina'; did you mean 'linas'"),
        ({"objectives": ["accuracy"]}, "two or three objectives"),
        ({"objectives": ["accuracy", "speed"]}, "unknown objective 'speed'"),
        ({"limits": ["latency_ms<5"]}, "cannot read the limit 'latency_ms<5'"),
        ({"limits": ["latency<=5"]}, "unknown metric 'latency'; did you mean 'latency_ms'"),
        ({"limits": ["latency_ms<=fast"]}, "needs a number after '<='"),
        ({"limits": ["latency_ms<=nan"]}, "finite number"),
        (
            {"objectives": ["accuracy", "size_mb"], "limits": ["latency_ms<=5"]},
            "needs 'latency_ms' among the objectives",
        ),
        ({"trials": 0}, r"--trials 0: .*greater than or equal to 1"),
        ({"trials": "many"}, r"--trials 'many': .*valid integer"),
        ({"checkpoint": None}, "--checkpoint is missing"),
        ({"model": "m.onnx"}, "give --model, or --supernet and --checkpoint, not both"),
        ({"group": ["a=b"]}, "--group is for --model"),
        ({"precision": ["int8", "int4"]}, "unknown precision 'int4'"),
        ({"precision": ["int8", "int8-asym"]}, "give fp32 and one or more others"),
        ({"precision": ["fp32"]}, "give fp32 and one or more others"),
    ],
)
def test_build_names_what_is_wrong(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TuneRequest.build(GIVEN | options)


def test_build_names_what_is_wrong_in_a_file(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    with pytest.raises(UsageError, match="cannot read --config"):
        TuneRequest.build(GIVEN, config)
    config.write_text("trials = ")
    with pytest.raises(UsageError, match="cannot read --config .* as TOML: Invalid value"):
        TuneRequest.build(GIVEN, config)
    config.write_text("trails = 5")
    with pytest.raises(UsageError, match=r"c\.toml: unknown option 'trails'; did you mean 'trials'"):
        TuneRequest.build(GIVEN, config)


def test_build_fails_with_unknown_name_error_for_names() -> None:
    with pytest.raises(UnknownNameError):
        TrainRequest.build(GIVEN | {"supernet": "gpt"})


def test_varied_says_what_another_search_of_the_request_may_differ_by(tmp_path: Path) -> None:
    options = {"supernet": "bert", "checkpoint": "c", "task": "text_classification", "data": "d", "out": tmp_path}
    assert TuneRequest.build(options | {"latency": "table", "workers": 2}).varied == ()
    measured = TuneRequest.build(options | {"cluster": "tcp://127.0.0.1:8786"}).varied
    assert [text.split()[0] for text in measured] == ["latencies", "the"]
