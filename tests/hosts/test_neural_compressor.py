from __future__ import annotations

import _thread
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qnas_plugin.errors import DataError, QnasError, StudyError, UsageError
from qnas_plugin.hosts import neural_compressor
from qnas_plugin.hosts.neural_compressor import LinasCriterion, fit
from tests.hosts.conftest import Case, front, trials

pytestmark = pytest.mark.filterwarnings("ignore")  # of Neural Compressor, at import and in each fit


class Loader:
    """The calibration part in batches, as Neural Compressor takes it."""

    batch_size = 8

    def __init__(self, case: Case) -> None:
        part = case.dataset.calibration
        self.images = np.stack([example["pixel_values"] for example in part.inputs])
        self.labels = part.labels

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for start in range(0, len(self.labels), self.batch_size):
            chosen = slice(start, start + self.batch_size)
            yield self.images[chosen], self.labels[chosen]


def search(case: Case, out: Path, **changes: Any) -> Any:
    given = {
        "out": out,
        "calib_dataloader": Loader(case),
        "eval_func": case.accuracy,
        "objectives": ("accuracy", "size_mb"),
        "max_trials": 10,
        "strategy_kwargs": {
            "seed": 3,
            "population": 5,
            "hardware": str(case.hardware),
            "calibration_samples": 32,
            **changes.pop("strategy_kwargs", {}),
        },
    }
    return fit(case.model, **(given | changes))


def test_fit_evaluates_what_tune_does(case: Case, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    result = search(case, tmp_path)
    assert trials(tmp_path) == trials(tuned)
    assert set(front(tmp_path)) <= set(trials(tuned))  # tune has a soft score too, by which it chooses the set
    assert [member.candidate.key for member in result.members] == [key for key, *_ in front(tmp_path)]
    assert (tmp_path / "report.html").is_file()
    assert not list(elsewhere.iterdir())


def test_quantization_fit_returns_the_best_model_within_the_criterion(case: Case, tmp_path: Path) -> None:
    from neural_compressor import PostTrainingQuantConfig, quantization
    from neural_compressor.config import AccuracyCriterion, options

    criterion = LinasCriterion(
        tmp_path / "out",
        objectives=("accuracy", "size_mb", "latency_ms"),
        max_trials=8,
        strategy_kwargs={"population": 4, "hardware": str(case.hardware)},
    )
    conf = PostTrainingQuantConfig(
        quant_level=1,
        tuning_criterion=criterion,
        accuracy_criterion=AccuracyCriterion(criterion="absolute", tolerable_loss=1.0),
        calibration_sampling_size=[32],
    )
    options.workspace = str(tmp_path / "workspace")
    model = onnx.load(case.model)
    best = quantization.fit(model, conf, calib_dataloader=Loader(case), eval_func=case.accuracy)
    choice = criterion.result().choice
    assert choice is not None
    assert choice not in criterion.result().baselines
    assert best.model == onnx.load(tmp_path / "out" / choice.folder / "model.onnx")
    assert choice.search["accuracy"] >= case.accuracy(model) - 0.5
    assert case.accuracy(best.model) == choice.report["accuracy"] == choice.search["accuracy"]
    assert set(criterion.result().to_dataframe().columns) >= {"accuracy", "latency_ms", "size_mb", "recommended"}


@pytest.mark.parametrize("finished", [0, 3])
def test_fit_ends_when_the_time_is_up_with_what_it_has(
    finished: int, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neural_compressor, "_time_is_up", lambda criterion, began: True)
    calls = 0

    def until_then(model: onnx.ModelProto) -> float:
        nonlocal calls
        calls += 1
        if calls == finished + 2:  # the first call is for the FP32 model
            _thread.interrupt_main()  # as Neural Compressor does when its timer ends
        return case.accuracy(model)

    if finished == 0:
        with pytest.raises(StudyError, match="before a trial was finished"):
            search(case, tmp_path, eval_func=until_then)
    else:
        result = search(case, tmp_path, eval_func=until_then)
        assert len(trials(tmp_path)) == finished
        assert result.members


def test_fit_stops_at_ctrl_c(case: Case, tmp_path: Path) -> None:
    calls = 0

    def interrupted(model: onnx.ModelProto) -> float:
        nonlocal calls
        calls += 1
        if calls == 3:
            _thread.interrupt_main()
        return case.accuracy(model)

    with pytest.raises(KeyboardInterrupt):
        search(case, tmp_path, eval_func=interrupted)
    assert len(trials(tmp_path)) == 1
    assert not (tmp_path / "out" / "pareto.json").exists()


def test_fit_promises_nothing_for_data_that_it_does_not_have(case: Case, tmp_path: Path) -> None:
    result = search(case, tmp_path, tolerable_loss=0.5, criterion="absolute")
    assert result.choice is not None
    assert "half of the allowed 50.00 points" in result.reason
    assert "nothing is promised for other data" in result.reason
    assert result.record["selection"]["rule"] == "margin"


def test_fit_keeps_what_it_is_told_in_fp32(case: Case, tmp_path: Path) -> None:
    from neural_compressor import PostTrainingQuantConfig, quantization
    from neural_compressor.config import options

    def tried(wanted: dict[str, Any]) -> LinasCriterion:
        criterion = LinasCriterion(
            tmp_path / "out",
            objectives=("accuracy", "size_mb"),
            max_trials=2,
            strategy_kwargs={"population": 4, "hardware": str(case.hardware)},
        )
        options.workspace = str(tmp_path / "workspace")
        conf = PostTrainingQuantConfig(quant_level=1, tuning_criterion=criterion, op_name_dict=wanted)
        quantization.fit(str(case.model), conf, calib_dataloader=Loader(case), eval_func=case.accuracy)
        return criterion

    fp32 = {"weight": {"dtype": ["fp32"]}, "activation": {"dtype": ["fp32"]}}
    with pytest.raises(UsageError, match=r"'nowhere\.\*' matches no node"):
        tried({"nowhere.*": fp32}).result()
    with pytest.raises(UsageError, match="can only be fp32"):
        tried({".*classifier.*": {"weight": {"dtype": ["int8"]}}}).result()
    variables = tried({".*classifier.*": fp32}).result().members[0].candidate
    assert variables
    assert not [name for name in variables if "classifier" in name]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"eval_func": lambda model: 93.1}, UsageError, r"eval_func gave 93\.1; .* in \[0, 1\]"),
        ({"calib_dataloader": [np.zeros((1, 1, 8, 8))]}, DataError, "gives ndarray; it must give pairs"),
        ({"calib_dataloader": []}, DataError, "gives nothing"),
        ({"objectives": ("accuracy", "speed")}, QnasError, "unknown objective 'speed'"),
        ({"strategy_kwargs": {"trails": 3}}, UsageError, "trails"),
        ({"strategy_kwargs": {"workers": 1}}, UsageError, "in this process; leave workers and cluster out"),
    ],
)
def test_fit_says_what_is_wrong(
    changes: dict[str, Any], error: type[Exception], message: str, case: Case, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        search(case, tmp_path, **changes)


def test_fit_raises_what_a_users_function_raises(case: Case, tmp_path: Path) -> None:
    def broken(model: onnx.ModelProto) -> float:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        search(case, tmp_path, eval_func=broken)


def test_result_says_why_there_is_none() -> None:
    with pytest.raises(UsageError, match="quant_level=1"):
        LinasCriterion("out").result()
