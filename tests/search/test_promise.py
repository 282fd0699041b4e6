"""The simulation of the promise counts what it says."""

import numpy as np
import pytest

from benchmarks.search.promise import LIMITS, Population, Study, results
from benchmarks.search.spaces import SOFT


@pytest.fixture(scope="module")
def population() -> Population:
    return Population.of(SOFT["digits"])


def test_results_are_those_of_the_true_accuracies_and_repeat_themselves(population: Population) -> None:
    studies = [Study.run(population, 300, seed) for seed in (0, 0, 1)]
    first, again, other = (dict(results(study, (0.8, 0.9))) for study in studies)
    assert first == again
    assert first != other
    assert {allowed for allowed, _ in first} == set(LIMITS)
    for (_, rule), found in first.items():
        assert found.breaks or found.gain <= found.oracle, rule
        assert found.gain >= 1 or rule == "today"
    for allowed in LIMITS:
        assert first[allowed, "tests, 80%"].gain >= first[allowed, "tests, 90%"].gain


def test_study_evaluates_distinct_records_and_knows_their_true_losses(population: Population) -> None:
    study = Study.run(population, 300, 0)
    assert study.told[0] == population.reference
    assert len(set(study.told.tolist())) == len(study.told) == population.trials
    right = population.right[study.told].astype(bool)
    assert study.true_losses[7] == pytest.approx(np.mean(right[0]) - np.mean(right[7]))
    chosen = study.oracle(0.01)
    assert study.true_losses[chosen] <= 0.01 + 1e-9
    assert (study.true_losses[study.gains > study.gains[chosen]] > 0.01).all()
