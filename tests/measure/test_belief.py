from __future__ import annotations

import numpy as np
import pytest

from qnas_plugin.measure.belief import RATIO, SOFT, Halves, believed
from qnas_plugin.measure.metrics import Scored
from qnas_plugin.search import Observation
from qnas_plugin.space import Candidate


def observations(count: int, examples: int, *, honest: bool = True) -> tuple[list[Observation], np.ndarray]:
    """Trials whose right and wrong answers follow their probabilities of being right, and those probabilities."""
    rng = np.random.default_rng(0)
    true = rng.uniform(0.85, 0.95, count)
    found = []
    for i, accuracy in enumerate(true):
        right = (rng.random(examples) < accuracy).astype(float)
        soft = np.clip(rng.normal(accuracy if honest else 0.9, 0.03, examples), 0, 1)
        scored = Scored(right, soft)
        metrics = {"accuracy": right.mean(), SOFT: soft.mean()}
        found.append(Observation(Candidate((("depth", i),)), metrics, Halves.of(scored)))
    return found, true


def test_believed_takes_accuracy_from_a_soft_score_that_proves_itself() -> None:
    trials, true = observations(60, 300)
    beliefs = believed(trials)
    assert beliefs.accuracy is not None
    assert beliefs.accuracy.witness == "soft"
    measured = np.array([trial.metrics["accuracy"] for trial in trials if trial.metrics])
    corrected = np.array([row["accuracy"] for row in beliefs.metrics])
    assert np.abs(corrected - true).mean() < 0.5 * np.abs(measured - true).mean()


def test_believed_leaves_accuracy_alone_where_the_soft_score_says_nothing() -> None:
    trials, _ = observations(60, 300, honest=False)
    beliefs = believed(trials)
    assert beliefs.accuracy is not None
    assert beliefs.accuracy.witness == "accuracy"
    assert [row["accuracy"] for row in beliefs.metrics] == [
        trial.metrics["accuracy"] for trial in trials if trial.metrics
    ]


def test_believed_needs_halves_of_all_trials() -> None:
    trials, _ = observations(60, 300)
    old = Observation(Candidate((("depth", 99),)), {"accuracy": 0.9})
    assert believed([*trials, old]).accuracy is None
    assert believed([]).metrics == ()


def test_believed_latencies_are_free_of_what_slowed_the_reference_too() -> None:
    slowed = np.array([1.0, 1.0, 1.8, 1.0, 1.3])
    true = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    trials = [
        Observation(Candidate((("depth", i),)), {"accuracy": 0.9, "latency_ms": ms * slow, RATIO: 10 / ms})
        for i, (ms, slow) in enumerate(zip(true, slowed, strict=True))
    ]
    beliefs = believed(trials)
    assert beliefs.reference_ms == pytest.approx(10)
    np.testing.assert_allclose([row["latency_ms"] for row in beliefs.metrics], true)
