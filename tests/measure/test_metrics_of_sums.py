"""Metrics that are no means of scores: values against scikit-learn and SciPy, and what examples add to them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import spearmanr
from sklearn.metrics import f1_score, jaccard_score, log_loss

from qnas_plugin.errors import UsageError
from qnas_plugin.measure.metrics import METRICS, Scorer, load
from qnas_plugin.measure.metrics.metric import Metric, Outputs, Scores, spread_over

RNG = np.random.default_rng(0)


def scores(metric: str, outputs: Outputs, labels: np.ndarray, size: int = 7) -> Scores:
    """In batches, as a model is run."""
    scorer, places = Scorer(metric, labels), np.arange(len(labels))
    parts = [
        scorer.statistics({name: values[own] for name, values in outputs.items()}, own)
        for own in np.array_split(places, -(-len(labels) // size))
    ]
    return scorer.scores(np.concatenate(parts))


def value(metric: str, outputs: Outputs, labels: np.ndarray) -> float:
    return float(scores(metric, outputs, labels).mean())


@pytest.mark.parametrize("classes", [2, 5])
def test_f1_is_that_of_scikit_learn(classes: int) -> None:
    logits, labels = RNG.normal(size=(60, classes)), RNG.integers(0, classes, 60)
    average = "binary" if classes == 2 else "macro"
    expected = f1_score(labels, logits.argmax(-1), average=average)
    assert value("f1", {"y": logits}, labels) == pytest.approx(expected, abs=1e-12)
    if classes == 2:
        assert value("f1", {"y": logits.argmax(-1)}, labels) == pytest.approx(expected, abs=1e-12)


def test_f1_of_tags_counts_each_and_leaves_out_negative_ones() -> None:
    logits, labels = RNG.normal(size=(20, 6, 4)), RNG.integers(-1, 3, (20, 6))  # class 3 is predicted, never right
    known = labels >= 0
    expected = f1_score(labels[known], logits.argmax(-1)[known], average="macro")
    assert value("f1", {"y": logits}, labels) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("last", [False, True])
def test_miou_is_scikit_learns_mean_jaccard_score(last: bool) -> None:
    maps, labels = RNG.normal(size=(12, 4, 5, 6)), RNG.integers(0, 3, (12, 5, 6))
    predicted, labels[:, 0] = maps.argmax(1), 255
    known = labels != 255
    expected = jaccard_score(labels[known], predicted[known], average="macro")
    given = np.moveaxis(maps, 1, -1) if last else maps
    assert value("miou", {"y": given}, labels) == pytest.approx(expected, abs=1e-12)


def test_miou_refuses_maps_of_another_size_and_labels_that_are_no_class() -> None:
    with pytest.raises(UsageError, match=r"'y' has shape \(2, 3, 4, 4\); labels \(2, 8, 8\) need"):
        value("miou", {"y": np.zeros((2, 3, 4, 4))}, np.zeros((2, 8, 8), int))
    with pytest.raises(UsageError, match="the label 7 is no class"):
        value("miou", {"y": np.zeros((2, 3, 4, 4))}, np.full((2, 4, 4), 7))


def test_perplexity_is_the_exponential_of_scikit_learns_log_loss() -> None:
    logits, labels = RNG.normal(size=(40, 6)), RNG.integers(0, 6, 40)
    expected = np.exp(log_loss(labels, softmax(logits, -1), labels=range(6)))
    assert value("perplexity", {"y": logits}, labels) == pytest.approx(expected, rel=1e-9)
    assert value("perplexity", {"y": softmax(logits, -1)}, labels) == pytest.approx(expected, rel=1e-9)
    assert load("perplexity").direction == "minimize"


def test_perplexity_of_texts_is_over_all_their_tokens() -> None:
    logits, labels = RNG.normal(size=(15, 9, 6)), RNG.integers(0, 6, (15, 9))
    labels[:, 5:][RNG.random((15, 4)) < 0.6] = -100
    known = labels >= 0
    own = log_softmax(logits, -1)[known][np.arange(known.sum()), labels[known]]
    assert value("perplexity", {"y": logits}, labels) == pytest.approx(np.exp(-own.mean()), rel=1e-9)


@pytest.mark.parametrize("steps", [1000, 4])
def test_spearman_is_that_of_scipy(steps: int) -> None:
    labels = RNG.integers(0, steps, 300).astype(float)
    given = np.round(labels + RNG.normal(size=300) * steps / 3)
    found = value("spearman", {"y": given[:, None].astype(np.float32)}, labels)
    assert found == pytest.approx(spearmanr(given, labels).statistic, abs=1e-12)


def test_spearman_of_equal_numbers_is_zero() -> None:
    assert value("spearman", {"y": np.ones((9, 1))}, np.arange(9)) == 0


def whole_without(metric: str, outputs: Outputs, labels: np.ndarray) -> Scores:
    """Scores by their definition: all of it again without each example."""
    places = np.arange(len(labels))
    left = [
        value(metric, {name: values[places != i] for name, values in outputs.items()}, labels[places != i])
        for i in places
    ]
    return spread_over(value(metric, outputs, labels), np.array(left))


CASES = {
    "f1": (RNG.normal(size=(30, 3)), RNG.integers(0, 3, 30)),
    "miou": (RNG.normal(size=(10, 3, 4, 4)), RNG.integers(0, 3, (10, 4, 4))),
    "spearman": (RNG.integers(0, 9, (40, 1)).astype(float), RNG.integers(0, 5, 40)),
    "perplexity": (RNG.normal(size=(30, 5)), RNG.integers(0, 5, 30)),
}


@pytest.mark.parametrize("metric", [name for name, found in METRICS.items() if not found.mean])
def test_scores_are_what_each_example_adds(metric: str) -> None:
    outputs, labels = CASES[metric]
    found = scores(metric, {"y": outputs}, labels)
    np.testing.assert_allclose(found, whole_without(metric, {"y": outputs}, labels), atol=1e-9)


@pytest.mark.parametrize("metric", list(CASES))
def test_standard_error_of_scores_is_that_of_the_value(metric: str) -> None:
    """By the spread of the value over samples drawn anew."""
    rng = np.random.default_rng(1)

    def draw() -> tuple[Outputs, np.ndarray]:
        labels = rng.integers(0, 3, (200, 2, 2) if metric == "miou" else 200)
        logits = rng.normal(size=(*labels.shape, 3)) + 1.5 * np.eye(3)[labels]
        if metric == "spearman":
            return {"y": (labels + rng.normal(size=200))[:, None]}, labels
        return {"y": logits}, labels

    drawn = [scores(metric, *draw(), size=200) for _ in range(150)]
    spread = np.std([one.mean() for one in drawn])
    told = np.mean([one.std() / len(one) ** 0.5 for one in drawn])
    assert told == pytest.approx(spread, rel=0.2)


def test_one_example_has_the_value_of_all() -> None:
    for metric, (outputs, labels) in CASES.items():
        assert np.isfinite(scores(metric, {"y": outputs[:1]}, labels[:1])).all()


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "user_sums.py").write_text(
        "import numpy as np\n"
        "class Rmse:\n"
        "    direction = 'minimize'\n"
        "    def statistics(self, outputs, labels):\n"
        "        return np.stack([(outputs['y'][:, 0] - labels) ** 2, np.ones(len(labels))], axis=1)\n"
        "    def value(self, sums):\n        return np.sqrt(sums[..., 0] / sums[..., 1])\n"
        "rmse = Rmse()\n"
        "class Upwards(Rmse):\n    direction = 'up'\n"
        "class Flat(Rmse):\n    def value(self, sums):\n        return 1.0\n"
        "class Short(Rmse):\n    def statistics(self, outputs, labels):\n        return np.ones(len(labels))\n"
        "class Broken(Rmse):\n    def value(self, sums):\n        return 1 / 0\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "user_sums", raising=False)
    return "user_sums"


@pytest.mark.parametrize("name", ["Rmse", "rmse"])
def test_a_user_may_give_statistics_and_the_value_of_their_sums(mine: str, name: str) -> None:
    given, labels = RNG.normal(size=(30, 1)), RNG.normal(size=30)
    found: Metric = load(f"{mine}:{name}")
    assert (found.direction, found.ideal, found.mean, found.points) == ("minimize", 0.0, False, False)
    expected = np.sqrt(((given[:, 0] - labels) ** 2).mean())
    assert value(f"{mine}:{name}", {"y": given}, labels) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Upwards", "must be 'maximize' or 'minimize', got 'up'"),
        ("Flat", r"must take sums \(2,\) to values \(\)|must take sums \(4, 2\) to values \(4,\)"),
        ("Short", r"finite numbers of 4 examples, \(4, s\); got shape \(4,\)"),
        ("Broken", "failed: ZeroDivisionError"),
    ],
)
def test_what_is_wrong_with_a_users_metric_is_said(mine: str, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        value(f"{mine}:{name}", {"y": np.zeros((4, 1))}, np.zeros(4))
