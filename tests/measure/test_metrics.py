from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from qnas_plugin.errors import UnknownNameError, UsageError
from qnas_plugin.measure.metrics import Scorer, load, standard_error
from qnas_plugin.measure.metrics.classes import accuracy
from qnas_plugin.measure.metrics.likeness import agreement, cosine
from qnas_plugin.measure.metrics.metric import Outputs, Scores
from qnas_plugin.measure.metrics.predictions import label_probability
from qnas_plugin.measure.metrics.references import References


def scores(scorer: Scorer, outputs: Outputs, positions: np.ndarray) -> Scores:
    return scorer.scores(scorer.statistics(outputs, positions))


def references(*runs: tuple[np.ndarray, Outputs]) -> References:
    return References(lambda: runs)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the current folder."""
    (tmp_path / "user_metrics.py").write_text(
        "def near(outputs, labels):\n    return 1 - abs(outputs['y'][:, 0] - labels)\n"
        "def total(outputs, labels):\n    return [0.5]\n"
        "def broken(outputs, labels):\n    return 1 / 0\n"
        "def leaves(outputs, labels):\n    import sys\n    sys.exit(0)\n"
        "def turns(outputs, labels):\n    import time\n    end = time.monotonic() + 2\n"
        "    while time.monotonic() < end:\n        pass\n"
        "def sleeps(outputs, labels):\n    import time\n    time.sleep(1e6)\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "user_metrics", raising=False)
    return "user_metrics"


def test_accuracy_is_the_share_of_each_examples_labels() -> None:
    logits = np.eye(3)[[0, 1, 2]]
    np.testing.assert_array_equal(accuracy({"y": logits}, np.array([0, 1, 1])), [1, 1, 0])
    np.testing.assert_array_equal(accuracy({"y": logits[None]}, np.array([[0, 0, 2]])), [2 / 3])
    np.testing.assert_array_equal(
        accuracy({"hidden": logits[:, ::-1], "logits": logits}, np.array([0, 1, 2])), [1, 1, 1]
    )


def test_accuracy_and_cosine_refuse_outputs_that_say_nothing() -> None:
    with pytest.raises(UsageError, match=r"'y' has shape \(2, 1\)"):
        accuracy({"y": np.ones((2, 1))}, np.zeros(2))
    with pytest.raises(UsageError, match=r"'y' has \(2,\) predictions and there are labels \(2, 3\)"):
        accuracy({"y": np.ones((2, 5))}, np.zeros((2, 3)))
    with pytest.raises(UsageError, match="'y' is one number"):
        scores(
            Scorer("cosine", references((np.arange(2), {"y": np.ones((2, 1))}))), {"y": np.ones((2, 1))}, np.arange(2)
        )


def test_cosine_is_that_of_all_float_outputs() -> None:
    a, b = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]]), np.array([[2.0, 0.0], [1.0, 1.0], [-1.0, 0.0]])
    np.testing.assert_allclose(cosine({"y": a}, {"y": b}), [1, 0.5**0.5, 0])
    np.testing.assert_allclose(
        cosine({"y": a, "z": a, "n": np.ones((3, 1), int)}, {"y": b, "z": a}), [1, (1 + 0.5**0.5) / 2, 0]
    )
    zeros = np.zeros((1, 2))
    np.testing.assert_array_equal(cosine({"y": zeros}, {"y": zeros}), [1])


def test_agreement_compares_predictions_alone() -> None:
    a, b = np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([[0.4, 0.6], [0.4, 0.6]])
    np.testing.assert_array_equal(agreement({"y": a}, {"y": b}), [1, 0])


def test_scorer_finds_the_fp32_outputs_of_each_example() -> None:
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(5, 4))
    targets = references(
        (np.array([3, 0]), {"y": outputs[:2]}),
        (np.array([2, 1]), {"y": outputs[2:4]}),
        (np.array([4]), {"y": outputs[4:]}),
    )
    for metric in ("cosine", "agreement"):
        scorer = Scorer(metric, targets)
        np.testing.assert_array_equal(scores(scorer, {"y": outputs[:2]}, np.array([3, 0])), [1, 1])
        np.testing.assert_array_equal(scores(scorer, {"y": outputs[4:]}, np.array([4])), [1])
        assert scores(scorer, {"y": outputs[::-1][:2]}, np.array([3, 0])).min() < 1


def test_scorer_takes_a_function_of_the_users(mine: str) -> None:
    scorer = Scorer(f"{mine}:near", np.array([0.0, 1.0, 0.5]))
    np.testing.assert_allclose(scores(scorer, {"y": np.array([[0.25], [1.0]])}, np.array([2, 1])), [0.75, 1.0])
    with pytest.raises(UsageError, match=r"must give 2 scores in \[0, 1\]"):
        scores(Scorer(f"{mine}:total", np.zeros(2)), {"y": np.zeros((2, 1))}, np.arange(2))
    with pytest.raises(UsageError, match=r"must give 2 scores in \[0, 1\]"):
        scores(Scorer(f"{mine}:near", np.full(2, 9.0)), {"y": np.zeros((2, 1))}, np.arange(2))
    with pytest.raises(UsageError, match="broken' failed: ZeroDivisionError"):
        scores(Scorer(f"{mine}:broken", np.zeros(2)), {"y": np.zeros((2, 1))}, np.arange(2))


def test_load_names_what_is_wrong(mine: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown metric 'cosin'; did you mean 'cosine'"):
        load("cosin")
    for name, message in (
        ("nowhere:f", "No module named 'nowhere'"),
        (f"{mine}:f", "has no attribute 'f'"),
        (f"{mine}:number", "is no function"),
    ):
        with pytest.raises(UsageError, match=message):
            load(name)


def test_standard_error_of_a_share_is_the_binomial_one() -> None:
    right = np.array([1.0] * 30 + [0.0] * 10)
    assert standard_error(right) == pytest.approx((0.75 * 0.25 / 40) ** 0.5)


def test_soft_score_is_the_probability_of_the_label() -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]])) + 5
    np.testing.assert_allclose(label_probability({"y": logits}, np.array([0, 2])), [0.7, 0.4])
    np.testing.assert_allclose(label_probability({"y": np.exp(logits - 5)}, np.array([0, 2])), [0.7, 0.4])
    np.testing.assert_allclose(label_probability({"y": logits}, np.array([-100, 3])), [0, 0])
    np.testing.assert_allclose(label_probability({"y": logits[None]}, np.array([[0, 2]])), [0.55])


def test_scorer_gives_soft_scores_where_the_metric_has_some() -> None:
    outputs, positions = {"y": np.log(np.array([[0.7, 0.3], [0.2, 0.8]]))}, np.array([1, 0])
    soft = Scorer("accuracy", np.array([0, 1])).soft(outputs, positions)
    assert soft is not None
    np.testing.assert_allclose(soft, [0.3, 0.2])
    theirs = references((positions, {"y": np.array([[1.0, 0.0], [0.0, 1.0]])}))
    agreeing = Scorer("agreement", theirs).soft(outputs, positions)
    assert agreeing is not None
    np.testing.assert_allclose(agreeing, [0.7, 0.8])
    assert Scorer("cosine", theirs).soft(outputs, positions) is None
    assert Scorer("accuracy", np.array(["a", "b"])).soft(outputs, positions) is None


@pytest.mark.parametrize("in_worker", [False, True])
@pytest.mark.parametrize(
    ("function", "message"),
    [("leaves", "SystemExit: 0"), ("turns", "no end within 0.2 seconds"), ("sleeps", "no end within 0.2 seconds")],
)
def test_scorer_ends_in_one_line_when_a_function_does_not_return(
    mine: str, monkeypatch: pytest.MonkeyPatch, function: str, message: str, in_worker: bool
) -> None:
    """Workers run in threads, where signals do not go."""
    monkeypatch.setenv("QNAS_FUNCTION_SECONDS", "0.2")
    scorer = Scorer(f"{mine}:{function}", np.zeros(2))
    with ThreadPoolExecutor(1) as pool:
        score = partial(scorer.statistics, {"y": np.zeros((2, 1))}, np.arange(2))
        with pytest.raises(UsageError, match=f"the metric 'user_metrics:{function}' failed: {message}"):
            pool.submit(score).result() if in_worker else score()
