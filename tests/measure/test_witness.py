"""The soft score and its guard."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.search.replay import Replay
from benchmarks.search.spaces import SOFT
from qnas_plugin.measure.witness import HALVINGS, LEAST_TRIALS, Corrected, corrected, halvings

Floats = npt.NDArray[np.float64]


def told(scores: Floats, soft: Floats | None) -> Corrected:
    """What follows from scores ``(m, n)`` of trials."""
    first = halvings(scores.shape[1])

    def halves(values: Floats) -> Floats:
        return np.array([[row[half].mean() for half in first] for row in values])

    return corrected(
        scores.mean(axis=1),
        None if soft is None else soft.mean(axis=1),
        halves(scores),
        None if soft is None else halves(soft),
        scores.shape[1],
    )


def simulated(rng: np.random.Generator, trials: int = 60, examples: int = 300) -> tuple[Floats, Floats, Floats]:
    """True accuracies, scores, and probabilities that know them with less noise."""
    true = rng.uniform(0.85, 0.95, trials)
    scores = (rng.random((trials, examples)) < true[:, None]).astype(float)
    soft = np.clip(2 * true[:, None] - 1 + rng.normal(0, 0.1, (trials, examples)), 0, 1)
    return true, scores, soft


def test_halvings_are_the_same_each_time_and_halve() -> None:
    first = halvings(301)
    assert first.shape == (HALVINGS, 301)
    assert (first.sum(axis=1) == 150).all()
    assert (first == halvings(301)).all()
    assert len(np.unique(first, axis=0)) == HALVINGS


def test_corrected_follows_a_soft_score_that_predicts_better_and_is_nearer_to_the_truth() -> None:
    true, scores, soft = simulated(np.random.default_rng(0))
    found = told(scores, soft)
    assert found.witness == "soft"
    assert found.slope == pytest.approx(0.5, abs=0.1)  # accuracy changes by half of what the soft score does
    own = np.abs(scores.mean(axis=1) - true).mean()
    assert np.abs(found.accuracy - scores.mean() - (true - true.mean())).mean() < own / 2
    assert found.soft_correlation > found.accuracy_correlation


@pytest.mark.parametrize("kind", ["none", "noise", "against", "itself", "constant"])
def test_corrected_leaves_accuracy_alone_without_a_witness_that_is_better(kind: str) -> None:
    rng = np.random.default_rng(1)
    _, scores, soft = simulated(rng)
    other = {
        "none": None,
        "noise": rng.random(scores.shape),
        "against": 1 - soft,
        "itself": scores,
        "constant": np.full(scores.shape, 0.5),
    }[kind]
    found = told(scores, other)
    assert found.witness == "accuracy"
    assert (found.accuracy == scores.mean(axis=1)).all()


def test_corrected_leaves_accuracy_alone_with_too_few_trials() -> None:
    _, scores, soft = simulated(np.random.default_rng(0), trials=LEAST_TRIALS - 1)
    assert told(scores, soft).witness == "accuracy"


def test_corrected_has_the_spread_of_what_it_says() -> None:
    true, scores, _ = simulated(np.random.default_rng(2), trials=400)
    found = told(scores, None)
    assert found.spread == pytest.approx((scores.mean(axis=1) - true).std(), rel=0.15)


@pytest.mark.parametrize("space", [space for space in SOFT.values() if space.records.exists()], ids=lambda s: s.name)
def test_probability_of_the_label_tells_accuracy_on_other_examples_better_than_accuracy_does(space: object) -> None:
    replay = Replay(space)  # type: ignore[arg-type]
    soft = replay.probabilities
    assert soft is not None
    drawn = np.random.default_rng(0).permutation(soft.shape[1])
    search, rest = drawn[:300], drawn[300:]
    trials = np.random.default_rng(1).permutation(len(soft))[:150]
    right = replay.answers[trials].astype(float)
    found = told(right[:, search], soft[trials][:, search])
    elsewhere = right[:, rest].mean(axis=1)
    assert found.witness == "soft"
    own = np.corrcoef(right[:, search].mean(axis=1), elsewhere)[0, 1]
    assert np.corrcoef(found.accuracy, elsewhere)[0, 1] > own + 0.1
