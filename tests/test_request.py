from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from qnas_plugin.errors import MissingOptionsError, UnknownNameError, UsageError
from qnas_plugin.request import ExportRequest, Options, ProfileRequest, RetargetRequest, TrainRequest, TuneRequest
from qnas_plugin.request.options import GROUPS, shown

REQUESTS = (ExportRequest, ProfileRequest, RetargetRequest, TrainRequest, TuneRequest)

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
        ({"trials": 0}, "--trials 0: it must be at least 1$"),
        ({"trials": "many"}, "--trials 'many': it must be a whole number$"),
        ({"checkpoint": None}, "--checkpoint is missing"),
        ({"checkpoint": None, "data": None, "trials": 0}, "--trials 0: it must be at least 1$"),
        ({"trials": 2**70}, "--trials is a number of more than 64 bits"),
        ({"trials": str(2**70)}, "--trials is a number of more than 64 bits"),
        ({"latency": "guessed"}, "--latency 'guessed': it must be 'measured' or 'table'$"),
        ({"confidence": 1}, "--confidence 1: it must be less than 1$"),
        ({"objectives": "accuracy"}, "--objective 'accuracy': it must be a list$"),
        ({"cluster": "host"}, "--cluster 'host': write it like tcp://host:8786"),
        ({"limits": ["accuracy>=90"]}, "the limit 'accuracy>=90': accuracy is between 0 and 1; did you mean 0.9?"),
        ({"max_accuracy_drop": 1.5}, "--max-accuracy-drop 1.5: accuracy is between 0 and 1; for 1.5 points give 0.015"),
        ({"max_accuracy_drop": "2"}, "--max-accuracy-drop 2: accuracy is between 0 and 1; for 2 points give 0.02"),
        ({"max_accuracy_drop": 200}, "--max-accuracy-drop 200: accuracy is between 0 and 1$"),
        ({"trails": 5}, "unknown option 'trails'; did you mean 'trials'"),
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


@pytest.mark.parametrize("kind", REQUESTS)
def test_each_field_is_described_and_has_its_place_in_help(kind: type[Options]) -> None:
    for name, field in kind.model_fields.items():
        assert field.description
        assert field.description.endswith("."), name
        assert shown(field).group in GROUPS


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("value", [object(), -1, 1e300, {"a": 1}, [["x"]]], ids=lambda value: type(value).__name__)
def test_build_says_what_is_wrong_in_words_of_its_own(kind: type[Options], value: object) -> None:
    for name in kind.model_fields:
        with pytest.raises(UsageError) as raised:  # some values are right, then options are missing
            kind.build({name: value})
        assert "missing" in str(raised.value) or kind.option(name) in str(raised.value)
        assert not re.search("Input should|valid |Value error|instance of", str(raised.value))


@pytest.mark.parametrize(
    ("kind", "given", "missing"),
    [
        (TuneRequest, {}, "--supernet and --checkpoint (or --model), --task, --data and --out are missing"),
        (TuneRequest, {"supernet": "bert", "out": "o"}, "--checkpoint, --task and --data are missing"),
        (TuneRequest, {"model": "m.onnx"}, "--data and --out are missing"),
        (TuneRequest, {**GIVEN, "supernet": None}, "--supernet is missing"),
        (
            TuneRequest,
            {"task": "arrays", "data": "d", "out": "o"},
            "--supernet and --checkpoint (or --model) are missing",
        ),
        (TrainRequest, {"supernet": "bert"}, "--task, --data, --out and --checkpoint are missing"),
        (ExportRequest, {"study": "s"}, "--out is missing"),
        (RetargetRequest, {}, "--study and --hardware are missing"),
    ],
)
def test_build_names_all_that_is_missing(kind: type[Options], given: dict[str, object], missing: str) -> None:
    with pytest.raises(MissingOptionsError) as raised:
        kind.build(given)
    assert str(raised.value) == missing
    assert str(pickle.loads(pickle.dumps(raised.value))) == missing


def test_build_takes_options_by_their_own_names_from_a_file(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('objective = ["accuracy", "size_mb"]\nlimit = ["size_mb<=3"]\nmax-accuracy-drop = 0.02\n')
    request = TuneRequest.build(GIVEN, config)
    assert (request.objectives, request.limits) == (("accuracy", "size_mb"), ("size_mb<=3",))
    assert request.max_accuracy_drop == 0.02
    config.write_text("batch-size = 8\nbatch_size = 9\n")
    with pytest.raises(UsageError, match="'batch_size' stands there twice, by another name too; leave one out"):
        TrainRequest.build(GIVEN, config)


def test_build_reads_numbers_with_commas_between_them() -> None:
    request = TrainRequest.build(GIVEN | {"depth": "2,3", "width": "0.5,1", "heads": [1, 2]})
    assert (request.depth, request.width, request.heads) == ((2, 3), (0.5, 1.0), (1, 2))
    with pytest.raises(UsageError, match="--depth takes numbers with commas between them, like 3,4,6; got '2;3'"):
        TrainRequest.build(GIVEN | {"depth": "2;3"})


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
