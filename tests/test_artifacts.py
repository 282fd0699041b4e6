from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from qnas_plugin.artifacts import Member, compare, recommend
from qnas_plugin.request import TuneRequest
from qnas_plugin.space import Candidate


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


def member(name: str, accuracy: float, latency_ms: float, size_mb: float) -> Member:
    against = {"latency_ratio": 8 / latency_ms, "size_ratio": 20 / size_mb, "accuracy_difference": accuracy - 0.9}
    metrics = {"accuracy": accuracy, "latency_ms": latency_ms, "size_mb": size_mb}
    return Member(name, Candidate(()), metrics, metrics, {}, {"largest-int8": against}, f"pareto/{name}")


MEMBERS = (member("slow", 0.91, 8.0, 20.0), member("middle", 0.895, 4.0, 15.0), member("fast", 0.85, 2.0, 10.0))


def request(**options: object) -> TuneRequest:
    given = {"supernet": "bert", "checkpoint": "c", "task": "text_classification", "data": "d", "out": Path("o")}
    return TuneRequest.build(given | options)


def test_recommend_takes_the_fastest_within_the_accuracy_drop() -> None:
    reference = member("largest-int8", 0.9, 8.0, 20.0)
    name, reason = recommend(MEMBERS, reference, request())
    assert name == "middle"
    assert "2.00x as fast" in reason
    assert "1.33x smaller" in reason
    assert recommend(MEMBERS, reference, request(max_accuracy_drop=0.1))[0] == "fast"
    assert recommend(MEMBERS, reference, request(max_accuracy_drop=0.0))[0] == "slow"


def test_recommend_takes_the_smallest_when_size_is_the_goal() -> None:
    reference = member("largest-int8", 0.9, 8.0, 20.0)
    assert recommend(MEMBERS, reference, request(objectives=("accuracy", "size_mb")))[0] == "middle"


def test_recommend_names_the_nearest_when_no_member_keeps_a_limit() -> None:
    reference = member("largest-int8", 0.9, 8.0, 20.0)
    name, reason = recommend(MEMBERS, reference, request(limits=["latency_ms<=3"]))
    assert name is None
    assert "no member keeps latency_ms<=3 and accuracy>=0.89" in reason
    assert "nearest is pareto/fast" in reason or "nearest is pareto/middle" in reason
