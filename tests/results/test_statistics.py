from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from qnas_plugin.results.statistics import Paired, compare, interval


def test_compare_gives_ratios_and_the_exact_paired_test() -> None:
    mine, theirs = np.ones(20), np.ones(20)
    theirs[:6] = 0
    mine[6:8] = 0
    got = compare(
        {"accuracy": 0.9, "latency_ms": 2.0, "size_mb": 5.0},
        {"accuracy": 0.7, "latency_ms": 5.0, "size_mb": 20.0},
        mine,
        theirs,
    )
    assert (got["latency_ratio"], got["size_ratio"], got["gained"], got["lost"]) == (2.5, 4.0, 6, 2)
    assert got["accuracy_difference"] == pytest.approx(0.2)
    assert got["p_value"] == pytest.approx(2 * binom.cdf(2, 8, 0.5))


def test_compare_finds_no_difference_when_predictions_are_equal() -> None:
    scores = np.array([0, 1, 0.5])
    metrics = {"accuracy": 1.0, "latency_ms": 1.0, "size_mb": 1.0}
    assert compare(metrics, metrics, scores, scores)["p_value"] == 1.0


@pytest.mark.parametrize("questions", [1, 5], ids=["alone", "five of one image"])
def test_interval_holds_the_true_difference_as_often_as_it_says(questions: int) -> None:
    rng = np.random.default_rng(0)
    held, trials = 0, 400
    for _ in range(trials):
        differences = rng.choice([-1.0, 0.0, 1.0], p=[0.06, 0.91, 0.03], size=600 // questions).repeat(questions)
        clusters = None if questions == 1 else np.arange(600) // questions
        low, high = interval(Paired(differences), 0.9, clusters) or (0.0, 0.0)
        held += low <= -0.03 <= high
    assert 0.86 <= held / trials <= 0.97


def test_interval_is_not_empty_where_no_example_differs() -> None:
    low, high = interval(Paired(np.zeros(100)), 0.9) or (0.0, 0.0)
    assert low == pytest.approx(-0.0164, abs=1e-4)
    assert high == -low
    assert interval(Paired(np.zeros(1)), 0.9) is None
