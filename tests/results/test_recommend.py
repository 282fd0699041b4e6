from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from qnas_plugin.request import TuneRequest
from qnas_plugin.results.member import Member
from qnas_plugin.results.recommend import Part, Recommendation, recommend
from qnas_plugin.space import Candidate

REFERENCE = "largest-int8"
NONE = Part(0, lambda member: np.zeros(0))


def member(name: str, accuracy: float, latency_ms: float, size_mb: float, report: float | None = None) -> Member:
    verified = accuracy if report is None else report
    against = {"latency_ratio": 8 / latency_ms, "size_ratio": 20 / size_mb, "accuracy_difference": verified - 0.9}
    return Member(
        name,
        Candidate((("depth", name),)),
        {"accuracy": accuracy, "latency_ms": latency_ms, "size_mb": size_mb},
        {"accuracy": verified, "latency_ms": latency_ms, "size_mb": size_mb},
        {},
        {} if name == REFERENCE else {REFERENCE: against},
        f"pareto/{name}",
    )


FULL = member(REFERENCE, 0.9, 8.0, 20.0)
MEMBERS = (member("slow", 0.91, 8.0, 20.0), member("middle", 0.895, 4.0, 15.0), member("fast", 0.85, 2.0, 10.0))


def request(**options: object) -> TuneRequest:
    given = {"supernet": "bert", "checkpoint": "c", "task": "text_classification", "data": "d", "out": Path("o")}
    return TuneRequest.build(given | options)


def part(accuracies: Mapping[str, float], count: int = 2000, clusters: np.ndarray | None = None) -> Part:
    """Each model is right on the first of the examples: differences to the reference are as small as they can be."""

    def scores(which: Member) -> np.ndarray:
        return (np.arange(count) < accuracies[which.name] * count).astype(float)

    return Part(count, scores, clusters)


def advice(
    asked: TuneRequest, selection: Part = NONE, members: Sequence[Member] = MEMBERS, reference: Member = FULL
) -> Recommendation:
    report = part({each.name: each.report["accuracy"] for each in (*members, reference)}, 1000)
    return recommend(members, reference, asked, selection=selection, report=report)


def test_recommend_takes_the_fastest_that_the_selection_part_shows_to_be_good_enough() -> None:
    asked = request(max_accuracy_drop=0.02)
    found = advice(asked, part({"slow": 0.91, "middle": 0.897, "fast": 0.8, REFERENCE: 0.9}))
    assert (found.name, found.kept) == ("middle", True)
    assert "2.00x as fast and 1.33x smaller" in found.reason
    assert "2000 examples that nothing was searched on show at 90% confidence" in found.reason
    assert "on the 1000 report examples the difference is -0.50 points" in found.reason
    assert "the limit is kept" in found.reason
    assert [test["name"] for test in found.selection["tests"] if test["passed"]] == ["middle"]


def test_recommend_does_not_believe_the_search() -> None:
    """Middle looked half a point worse where it was searched for, and loses four where it was not."""
    found = advice(request(), part({"slow": 0.9, "middle": 0.86, "fast": 0.8, REFERENCE: 0.9}))
    assert (found.name, found.kept) == (REFERENCE, True)
    assert "nothing better was shown to lose no more than 1.00 points" in found.reason
    assert "nearest is pareto/middle, at -4.00 points there" in found.reason
    assert found.selection["missing"]["limit"] == pytest.approx(0.047, abs=0.005)


def test_recommend_says_how_many_examples_would_show_it() -> None:
    accuracies = {"slow": 0.9, "middle": 0.9, "fast": 0.8, REFERENCE: 0.9}
    found = advice(request(), part(accuracies, count=200))
    assert found.name == REFERENCE
    enough = found.selection["missing"]["examples"]
    assert f"or with about {enough} examples" in found.reason
    assert 200 < enough < 1000
    assert advice(request(), part(accuracies, count=enough)).name == "middle"


def test_recommend_says_when_the_limit_is_not_kept_on_the_report_part() -> None:
    members = (member("middle", 0.897, 4.0, 15.0, report=0.85),)
    found = advice(request(), part({"middle": 0.9, REFERENCE: 0.9}), members)
    assert (found.name, found.kept) == ("middle", False)
    assert "-5.00 points (-6" in found.reason
    assert "more than allowed: the limit is not kept there" in found.reason
    assert found.limit["kept"] is False


def test_recommend_takes_half_of_the_allowance_as_margin_without_a_selection_part() -> None:
    found = advice(request())
    assert found.name == "middle"
    assert "nothing is promised for other data" in found.reason
    assert advice(request(max_accuracy_drop=0.008)).name == REFERENCE
    assert advice(request(max_accuracy_drop=0.2)).name == "fast"


def test_recommend_takes_the_smallest_when_size_is_the_goal() -> None:
    members = (*MEMBERS, member("small", 0.897, 16.0, 5.0))
    asked = request(objectives=("accuracy", "size_mb"), max_accuracy_drop=0.02)
    found = advice(asked, part({"slow": 0.9, "middle": 0.9, "fast": 0.8, "small": 0.9, REFERENCE: 0.9}), members)
    assert found.name == "small"


def test_recommend_tests_a_limit_on_accuracy_too() -> None:
    accuracies = {"slow": 0.91, "middle": 0.897, "fast": 0.8, REFERENCE: 0.92}
    reference = member(REFERENCE, 0.92, 8.0, 20.0)
    asked = request(max_accuracy_drop=0.04)
    assert advice(asked, part(accuracies), reference=reference).name == "middle"
    with_limit = request(max_accuracy_drop=0.04, limits=["accuracy>=0.9"])
    assert advice(with_limit, part(accuracies), reference=reference).name == REFERENCE


def test_recommend_keeps_limits_on_latency_before_all_else() -> None:
    asked = request(limits=["latency_ms<=3"], max_accuracy_drop=0.2)
    found = advice(asked, part({"slow": 0.9, "middle": 0.9, "fast": 0.85, REFERENCE: 0.9}))
    assert [test["name"] for test in found.selection["tests"]] == ["fast"]
    assert found.name == "fast"


def test_recommend_names_the_nearest_when_nothing_keeps_a_limit() -> None:
    found = advice(request(limits=["latency_ms<=3"]), part({"fast": 0.8, REFERENCE: 0.9}))
    assert (found.name, found.kept) == (None, None)
    assert found.reason.startswith("no member keeps latency_ms<=3 and accuracy>=0.89; nearest is pareto/fast")


def test_recommend_counts_questions_of_one_image_once() -> None:
    """Ten questions an image, all right or all wrong: a tenth of the evidence."""
    accuracies = {"slow": 0.9, "middle": 0.898, "fast": 0.8, REFERENCE: 0.9}
    asked = request(max_accuracy_drop=0.02)
    assert advice(asked, part(accuracies, 1000)).name == "middle"
    assert advice(asked, part(accuracies, 1000, np.arange(1000) // 10)).name == REFERENCE


@pytest.mark.parametrize("drop", [0.0, 1.0])
def test_recommend_takes_any_allowance(drop: float) -> None:
    found = advice(request(max_accuracy_drop=drop), part({"slow": 0.9, "middle": 0.897, "fast": 0.8, REFERENCE: 0.9}))
    assert found.name == ("fast" if drop else REFERENCE)
