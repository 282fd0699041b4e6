from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qnas_plugin.errors import DataError, QnasError, UsageError
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


def test_fit_evaluates_what_tune_does(case: Case, tuned: Path, tmp_path: Path) -> None:
    result = search(case, tmp_path)
    assert trials(tmp_path) == trials(tuned)
    assert front(tmp_path) == front(tuned)
    assert [member.candidate.key for member in result.members] == [key for key, *_ in front(tuned)]
    assert (tmp_path / "report.html").is_file()
    assert not Path("nc_workspace").exists()


def test_quantization_fit_returns_the_best_model_within_the_criterion(case: Case, tmp_path: Path) -> None:
    from neural_compressor import PostTrainingQuantConfig, quantization
    from neural_compressor.config import AccuracyCriterion, options

    criterion = LinasCriterion(
        tmp_path / "out",
        objectives=("accuracy", "latency_ms", "size_mb"),
        max_trials=8,
        strategy_kwargs={"population": 4, "hardware": str(case.hardware)},
    )
    conf = PostTrainingQuantConfig(
        quant_level=1,
        tuning_criterion=criterion,
        accuracy_criterion=AccuracyCriterion(criterion="absolute", tolerable_loss=0.05),
        calibration_sampling_size=[32],
    )
    options.workspace = str(tmp_path / "workspace")
    model = onnx.load(case.model)
    best = quantization.fit(model, conf, calib_dataloader=Loader(case), eval_func=case.accuracy)
    choice = criterion.result().choice
    assert choice is not None
    assert best.model == onnx.load(tmp_path / "out" / choice.folder / "model.onnx")
    assert choice.search["accuracy"] >= case.accuracy(model) - 0.05
    assert case.accuracy(best.model) == choice.report["accuracy"] == choice.search["accuracy"]
    assert set(criterion.result().to_dataframe().columns) >= {"accuracy", "latency_ms", "size_mb", "recommended"}


def test_fit_ends_when_the_time_is_up_with_what_it_has(case: Case, tmp_path: Path) -> None:
    def slowly(model: onnx.ModelProto) -> float:
        time.sleep(0.2)
        return case.accuracy(model)

    result = search(case, tmp_path, eval_func=slowly, max_trials=10_000, timeout=4)
    assert 1 <= len(trials(tmp_path)) < 100
    assert result.members


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
