"""What is said of two models by metrics that are no means of right and wrong answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qnas_plugin.measure.metrics import METRICS, Scorer
from qnas_plugin.measure.metrics.metric import Scores
from qnas_plugin.request import TuneRequest
from qnas_plugin.results.member import Member
from qnas_plugin.results.recommend import Part, Told, recommend
from qnas_plugin.results.selection import kept_limit, p_value, pick
from qnas_plugin.results.statistics import Paired, compare, gain, interval, permutation_p_value
from qnas_plugin.space import Candidate

EXAMPLES = 400


def two(
    metric: str, rng: np.random.Generator, noise: float = 0.5, *, count: int = EXAMPLES, worse: float = 0.0
) -> tuple[Scores, Scores]:
    """Scores of two models that have noise of their own; the first has more."""
    labels = (rng.random(count) < (0.2 if metric == "f1" else 0.5)).astype(int)
    targets = labels + rng.random(count) if metric == "spearman" else labels
    common = 1.5 * np.eye(2)[labels] + rng.normal(size=(count, 2))
    scorer, found = Scorer(metric, targets), []
    for more in (worse, 0.0):
        logits = common + (noise + more) * rng.normal(size=common.shape)
        given = logits[:, 1:] if metric == "spearman" else logits
        found.append(scorer.scores(scorer.statistics({"y": given}, np.arange(count))))
    return found[0], found[1]


@pytest.mark.parametrize("metric", ["f1", "perplexity"])
def test_permutation_test_of_equal_models_errs_as_often_as_it_says(metric: str) -> None:
    rng = np.random.default_rng(0)
    found = np.array(
        [permutation_p_value(Paired.of(*two(metric, rng), METRICS[metric]).differences) for _ in range(200)]
    )
    for level in (0.1, 0.3):
        assert abs((found <= level).mean() - level) < 3.5 * (level * (1 - level) / 200) ** 0.5


def test_permutation_test_of_few_examples_is_exact() -> None:
    """Of the eight ways to exchange three pairs, two are as unequal as this one."""
    assert permutation_p_value(np.array([0.1, 0.2, 0.4])) == pytest.approx(2 / 8)
    assert permutation_p_value(np.array([0.1, 0.0, -0.1])) == 1
    assert permutation_p_value(np.zeros(5)) == 1


def test_permutation_test_exchanges_whole_clusters() -> None:
    """Twenty questions of each image that are answered alike say no more than one."""
    rng, found = np.random.default_rng(1), {"apart": 0, "together": 0}
    clusters = np.repeat(np.arange(20), 20)
    for _ in range(100):
        differences = rng.choice([-1.0, 0.0, 1.0], size=20)[clusters]
        found["apart"] += permutation_p_value(differences) <= 0.1
        found["together"] += permutation_p_value(differences, clusters) <= 0.1
    assert found["apart"] > 40
    assert found["together"] <= 20


def test_compare_uses_the_exact_test_for_independent_means_alone() -> None:
    mine, theirs = np.ones(8), np.array([0.0, 0, 0, 0, 0, 0, 0, 1])
    known = {"accuracy": 1.0, "latency_ms": 1.0, "size_mb": 1.0}
    assert compare(known, known, mine, theirs)["p_value"] == pytest.approx(2 / 2**7)
    grouped = compare(known, known, mine, theirs, clusters=np.array([0, 0, 0, 0, 1, 1, 1, 1]))
    assert (grouped["p_value"], grouped["gained"]) == (pytest.approx(2 / 4), 7)
    assert "gained" not in compare(known, known, mine, theirs, METRICS["f1"])


@pytest.mark.parametrize("metric", ["f1", "spearman", "perplexity"])
def test_interval_of_any_metric_holds_no_difference_as_often_as_it_says(metric: str) -> None:
    rng, held = np.random.default_rng(2), 0
    for _ in range(200):
        low, high = interval(Paired.of(*two(metric, rng), METRICS[metric]), 0.9) or (0.0, 0.0)
        held += low <= 0 <= high
    assert held / 200 >= 0.85


@pytest.mark.parametrize("metric", ["f1", "spearman", "perplexity"])
def test_a_member_that_loses_what_is_allowed_passes_at_most_as_often_as_said(metric: str) -> None:
    """The worse of two models loses just what the difference of their values is over very many examples."""
    rng, found = np.random.default_rng(3), METRICS[metric]

    def draw(count: int) -> tuple[Scores, Scores]:
        return two(metric, rng, count=count, worse=0.5)

    worse, better = draw(20 * EXAMPLES)
    lost = gain(float(better.mean()), float(worse.mean()), found.direction)
    assert lost > 0
    passed = 0
    for _ in range(150):
        pair = Paired.of(*draw(EXAMPLES), found)
        passed += p_value(pair.differences, lost / pair.scale) <= 0.1
    assert passed / 150 <= 0.1 + 2.5 * (0.09 / 150) ** 0.5


def test_pick_speaks_in_units_of_the_metric() -> None:
    rng = np.random.default_rng(4)
    mine, theirs = two("perplexity", rng, noise=0.1)
    pair = Paired.of(mine, theirs, METRICS["perplexity"])
    assert pair.scale > 1
    assert np.abs(pair.differences).max() <= 1
    outcome = pick((0,), lambda i: pair, np.array([2.0]), allowed=1e-6)
    assert outcome.chosen is None
    assert outcome.missing is not None
    assert outcome.tests[0].difference == pytest.approx(theirs.mean() - mine.mean())
    assert outcome.missing.limit == pytest.approx(pair.scale * kept_limit(pair.differences, 0.9))
    enough = pick((0,), lambda i: pair, np.array([2.0]), allowed=1.01 * outcome.missing.limit)
    assert enough.chosen == 0


def _member(name: str, perplexity: float, latency_ms: float) -> Member:
    values = {"accuracy": perplexity, "latency_ms": latency_ms, "size_mb": 1.0}
    against = {"latency_ratio": 8 / latency_ms, "size_ratio": 1.0, "accuracy_difference": perplexity - 3.0}
    return Member(name, Candidate((("depth", name),)), values, values, {}, {"largest-int8": against}, f"pareto/{name}")


@pytest.mark.parametrize("selection", [0, 4000])
def test_recommend_takes_a_low_perplexity_for_a_good_one(selection: int) -> None:
    """The fastest has the highest perplexity: it must not be taken for the best."""
    told = Told.of(METRICS["perplexity"], "perplexity")
    members = [_member("best", 2.9, 7.0), _member("good", 3.01, 4.0), _member("worst", 9.0, 2.0)]
    reference = _member("largest-int8", 3.0, 8.0)
    noise = np.random.default_rng(0).normal(size=selection)

    def scores(member: Member) -> Scores:
        return member.report["accuracy"] + noise + 0.01 * np.sin(np.arange(selection) * member.report["latency_ms"])

    given = {"supernet": "bert", "checkpoint": "c", "task": "text_classification", "data": "d", "out": Path("o")}
    for asked, expected in (({}, "good"), ({"limits": ["accuracy<=3.005"]}, "best")):
        request = TuneRequest.build(given | {"max_accuracy_drop": 0.1} | asked)
        found = recommend(
            members, reference, request, selection=Part(selection, scores), report=Part(selection, scores), told=told
        )
        assert (found.name, found.kept) == (expected, True)
        assert "0.1 of perplexity" in found.reason
        if expected == "good":
            assert "the difference is +0.01 of perplexity" in found.reason


def test_recommend_says_points_of_f1() -> None:
    told = Told.of(METRICS["f1"], "f1")
    assert told.amount(0.01) == "1.00 points of f1"
    assert Told.of(METRICS["accuracy"], "package.module:decisions").amount(0.01) == "1.00 points of decisions"
