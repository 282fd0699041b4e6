"""The pick: its p-values against brute force, and the promised error rate by enumeration and simulation."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, multinomial

from qnas_plugin.results import selection
from qnas_plugin.results.selection import exact_p_value, examples_needed, kept_limit, p_value, pick, plan
from qnas_plugin.results.statistics import Paired

Floats = npt.NDArray[np.float64]


def outcomes(count: int) -> npt.NDArray[np.int64]:
    """All numbers of gained, lost and equal examples, ``(k, 3)``."""
    return np.array([(g, n - g, count - n) for n in range(count + 1) for g in range(n + 1)])


def chance(found: npt.NDArray[np.int64], gaining: float, losing: float) -> Floats:
    equal = max(1 - gaining - losing, 0.0)
    return np.asarray(multinomial.pmf(found, found[0].sum(), [gaining, losing, equal]))


def differences(gained: int, lost: int, count: int) -> Floats:
    return np.repeat([1.0, -1.0, 0.0], [gained, lost, count - gained - lost])


@pytest.mark.parametrize(("gained", "lost", "allowed"), [(0, 0, 0.1), (3, 1, 0.05), (2, 4, 0.2), (8, 3, 0.0)])
def test_exact_p_value_is_the_worst_chance_of_an_outcome_as_good(gained: int, lost: int, allowed: float) -> None:
    count = 20
    found = outcomes(count)
    added = max(count * allowed, 1) / 2
    statistics = (found[:, 0] - found[:, 1] + count * allowed) / np.sqrt(found[:, 0] + found[:, 1] + added)
    mine = (gained - lost + count * allowed) / math.sqrt(gained + lost + added)
    n = gained + lost
    low = beta.ppf(0.0005, n, count - n + 1) if n else 0.0
    shares = np.linspace(max(low, allowed, 1e-9), beta.ppf(0.9995, n + 1, count - n), 2000)
    worst = max(
        chance(found[statistics >= mine - 1e-12], (share - allowed) / 2, (share + allowed) / 2).sum()
        for share in shares
    )
    assert exact_p_value(gained, lost, count, allowed) == pytest.approx(worst + 0.001, abs=2e-4)


@pytest.mark.parametrize("allowed", [0.0, 0.02, 0.1])
def test_exact_p_value_keeps_every_level_for_every_loss_above_the_allowed_one(allowed: float) -> None:
    found = outcomes(30)
    p = np.array([exact_p_value(int(gained), int(lost), 30, allowed) for gained, lost, _ in found])
    for loss in (allowed, allowed + 0.05):
        for gaining in (0.0, 0.01, 0.05, 0.2, 0.4):
            if 2 * gaining + loss <= 1:
                chances = chance(found, gaining, gaining + loss)
                for level in (0.01, 0.05, 0.1, 0.2):
                    assert chances[p <= level].sum() <= level


def test_p_value_without_any_difference_is_that_of_seeing_no_failure() -> None:
    assert p_value(np.zeros(500), 0.005) == pytest.approx(0.995**500, abs=0.002)


def test_p_value_of_smooth_scores_keeps_its_level_where_losses_are_rare_and_large() -> None:
    rng = np.random.default_rng(0)
    passed = 0
    for _ in range(1000):
        lost = rng.random(300) < 0.0125
        passed += p_value(np.where(lost, -0.8, rng.uniform(-1e-3, 1e-3, 300)), 0.01) <= 0.1
    assert passed / 1000 <= 0.1


def test_p_value_counts_dependent_examples_once_when_their_groups_are_given() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 5)
    passed = {"apart": 0, "together": 0}
    for _ in range(250):
        scores = rng.choice([1.0, -1.0, 0.0], p=[0.05, 0.07, 0.88], size=100)[groups]  # loses exactly 2 points
        passed["apart"] += p_value(scores, 0.02) <= 0.1
        passed["together"] += p_value(scores, 0.02, groups) <= 0.1
    assert passed["together"] / 250 <= 0.1 < passed["apart"] / 250


def test_p_value_of_groups_of_one_is_the_exact_one() -> None:
    scores = differences(4, 3, 300)
    assert p_value(scores, 0.01, np.arange(300)) == p_value(scores, 0.01)


@given(
    st.lists(st.tuples(st.integers(0, 6).map(lambda n: n / 10), st.integers(5, 30).map(lambda n: n / 10)), max_size=12)
)
def test_plan_is_the_front_from_the_most_accurate_to_the_fastest(members: list[tuple[float, float]]) -> None:
    accuracies, gains = np.array(members, dtype=float).reshape(-1, 2).T
    chain = plan(accuracies, gains)
    assert all(gains[i] < gains[j] and accuracies[i] > accuracies[j] for i, j in pairwise(chain))
    front = {
        member
        for member in members
        if member[1] > 1 and not any(o != member and o[0] >= member[0] and o[1] >= member[1] for o in members)
    }
    assert {members[i] for i in chain} == front


def test_pick_stops_at_the_first_failure_and_recommends_the_fastest_before_it() -> None:
    parts = [differences(5, 2, 600), differences(6, 4, 600), differences(5, 40, 600), differences(9, 0, 600)]
    asked: list[int] = []

    def scores(i: int) -> Paired:
        asked.append(i)
        return Paired(parts[i])

    outcome = pick((0, 1, 2, 3), scores, np.array([1.2, 1.5, 2.0, 3.0]), allowed=0.01)
    assert outcome.chosen == 1
    assert asked == [0, 1, 2]
    assert [test.passed for test in outcome.tests] == [True, True, False]
    assert outcome.tests[2].difference == pytest.approx(-35 / 600)
    assert outcome.missing is None


def test_pick_passes_a_member_only_with_its_other_limits() -> None:
    def chosen(p_of_second: float) -> int | None:
        return pick(
            (0, 1),
            lambda i: Paired(differences(5, 2, 600)),
            np.array([1.2, 1.5]),
            allowed=0.01,
            others=lambda i: p_of_second if i == 1 else 0.0,
        ).chosen

    assert chosen(0.09) == 1
    assert chosen(0.11) == 0


def test_pick_says_what_is_missing_when_nothing_passes() -> None:
    scores = differences(4, 4, 300)
    outcome = pick((0,), lambda i: Paired(scores), np.array([2.0]), allowed=0.005)
    assert outcome.chosen is None
    assert outcome.missing is not None
    assert p_value(scores, outcome.missing.limit) == pytest.approx(0.1, abs=0.005)
    assert outcome.missing.examples is not None
    assert outcome.missing.examples > 300
    worse = pick((0,), lambda i: Paired(differences(0, 9, 300)), np.array([2.0]), allowed=0.005)
    assert worse.missing is not None
    assert worse.missing.examples is None


def test_pick_without_members_chooses_none() -> None:
    assert pick((), lambda i: Paired(np.zeros(9)), np.empty(0), allowed=0.01).chosen is None


@pytest.mark.parametrize("limit", [0.005, 0.02])
def test_kept_limit_is_where_the_test_begins_to_pass(limit: float) -> None:
    for scores in (differences(4, 4, 300), differences(1, 9, 700), differences(12, 0, 300)):
        if abs(kept_limit(scores, 0.9) - limit) > 1e-4:
            assert (kept_limit(scores, 0.9) < limit) == (p_value(scores, limit) <= 0.1)


def test_examples_needed_are_enough_four_times_in_five() -> None:
    seen = differences(6, 8, 1000)
    needed = examples_needed(seen, 0.01, 0.9)
    assert needed is not None
    draws = np.random.default_rng(2).choice([1.0, -1.0, 0.0], p=[0.006, 0.008, 0.986], size=(150, needed))
    assert np.mean([p_value(scores, 0.01) <= 0.1 for scores in draws]) == pytest.approx(0.8, abs=0.1)


def test_the_whole_pick_errs_no_more_often_than_promised_where_the_best_on_the_search_part_does() -> None:
    rng = np.random.default_rng(3)
    gains = np.linspace(1.1, 3.0, 25)
    broken = {"today": 0, "tests": 0}
    found = 0
    for _ in range(150):
        losses = np.maximum(rng.normal(0.012, 0.006, 25), -0.005)  # true ones; half of them are above the limit
        losing = losses / 2 + 0.012
        draws = rng.random((2, 25, 600))  # of the search and the selection part
        scores = [
            np.where(one < losing[:, None], -1.0, np.where(one > 1 - (losing - losses)[:, None], 1.0, 0.0))
            for one in draws
        ]
        believed = scores[0].mean(axis=1)
        within = np.flatnonzero(believed >= -0.01)
        if len(within):
            broken["today"] += losses[within[gains[within].argmax()]] > 0.01
        outcome = pick(plan(believed, gains), lambda i, own=scores[1]: Paired(own[i]), gains, allowed=0.01)  # type: ignore[misc]
        if outcome.chosen is not None:
            found += 1
            broken["tests"] += losses[outcome.chosen] > 0.01
    assert broken["tests"] / 150 <= 1 - selection.CONFIDENCE < broken["today"] / 150
    assert found > 50
