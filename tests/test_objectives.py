import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from qnas_plugin.errors import UnknownNameError, UsageError
from qnas_plugin.objectives import (
    COMPUTED,
    METRICS,
    Limit,
    check_objectives,
    hypervolume,
    losses,
    near_front,
    non_dominated,
    parse_limit,
    violations,
)
from qnas_plugin.request import TuneRequest

small_points = st.integers(2, 3).flatmap(
    lambda k: stn.arrays(float, st.tuples(st.integers(0, 8), st.just(k)), elements=st.integers(0, 4).map(float))
)


@given(small_points)
def test_non_dominated_equals_brute_force(points: np.ndarray) -> None:
    def better(a: np.ndarray, b: np.ndarray) -> bool:
        return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))

    expected = [not any(better(other, point) for other in points) for point in points]
    assert non_dominated(points).tolist() == expected


@given(small_points)
def test_hypervolume_equals_counted_unit_cells(points: np.ndarray) -> None:
    k = points.shape[1]
    cells = sum(any(all(point <= cell) for point in points) for cell in itertools.product(range(4), repeat=k))
    assert hypervolume(points, np.full(k, 4.0)) == pytest.approx(cells)


def test_losses_turn_every_metric_so_that_less_is_better() -> None:
    rows = [{"accuracy": 0.9, "latency_ms": 5.0, "size_mb": 9.0}, {"latency_ms": 4.0, "accuracy": 0.8}]
    assert losses(rows, ("latency_ms", "accuracy")).tolist() == [[5.0, -0.9], [4.0, -0.8]]
    assert losses([], ("latency_ms", "accuracy")).shape == (0, 2)
    with pytest.raises(KeyError):
        losses(rows, ("latency_ms", "size_mb"))


@given(
    st.sampled_from(sorted(METRICS)),
    st.sampled_from(["<=", ">="]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", " ", "  "]),
)
def test_parse_limit_reads_what_a_limit_prints(metric: str, comparison: str, value: float, blank: str) -> None:
    limit = Limit(metric, comparison, value)  # type: ignore[arg-type]
    assert parse_limit(str(limit)) == limit
    assert parse_limit(blank.join(["", metric, comparison, repr(value), ""])) == limit


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("latency_ms<5", UsageError, "cannot read the limit 'latency_ms<5'"),
        ("latency_ms<=", UsageError, "cannot read the limit"),
        ("latency_ms<=fast", UsageError, "needs a number after '<='"),
        ("latency_ms<=nan", UsageError, "finite number, got 'nan'"),
        ("accuracy>=inf", UsageError, "finite number, got 'inf'"),
        ("latency<=5", UnknownNameError, "did you mean 'latency_ms'"),
    ],
)
def test_parse_limit_names_what_is_wrong(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_limit(text)


def test_violation_is_relative_and_zero_when_kept() -> None:
    assert Limit("latency_ms", "<=", 5.0).violation({"latency_ms": 6.0}) == pytest.approx(0.2)
    assert Limit("latency_ms", "<=", 5.0).violation({"latency_ms": 5.0}) == 0
    assert Limit("accuracy", ">=", 0.9).violation({"accuracy": 0.81}) == pytest.approx(0.1)
    assert Limit("accuracy", ">=", 0.9).violation({"accuracy": 0.95}) == 0
    assert math.isfinite(Limit("latency_ms", "<=", 0.0).violation({"latency_ms": 1.0}))
    with pytest.raises(KeyError):
        Limit("size_mb", "<=", 5.0).violation({"latency_ms": 6.0})


def test_violations_has_a_row_for_each_candidate_and_a_column_for_each_limit() -> None:
    rows = [
        {"latency_ms": 4.0, "accuracy": 0.9},
        {"latency_ms": 6.0, "accuracy": 0.45},
        {"latency_ms": 5.0, "accuracy": 1.0},
    ]
    limits = [Limit("latency_ms", "<=", 5.0), Limit("accuracy", ">=", 0.9)]
    assert violations(rows, limits) == pytest.approx(np.array([[0, 0], [0.2, 0.5], [0, 0]]))
    assert violations(rows, []).shape == (3, 0)
    assert violations([], limits).shape == (0, 2)


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["accuracy"], UsageError, "two or three"),
        (["accuracy", "accuracy"], UsageError, "may stand once"),
        (["accuracy", "latency"], UnknownNameError, "unknown objective 'latency'; did you mean 'latency_ms'"),
    ],
)
def test_check_objectives_refuses(names: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_objectives(names)


def test_check_objectives_keeps_the_order() -> None:
    assert check_objectives(["size_mb", "accuracy"]) == ("size_mb", "accuracy")


def test_near_front_adds_what_noise_may_hide() -> None:
    points = np.array([[0.0, 2.0], [1.0, 1.0], [2.0, 0.0], [1.05, 1.0], [1.4, 1.2], [3.0, 3.0]])
    tolerance = np.tile([0.1, 0.1], (len(points), 1))
    assert near_front(points, tolerance).tolist() == [True, True, True, True, False, False]
    assert near_front(points, 5 * tolerance).tolist() == [True, True, True, True, True, False]
    np.testing.assert_array_equal(near_front(points, 0 * tolerance), non_dominated(points))


def test_near_front_at_most_doubles_the_front() -> None:
    points = np.column_stack([np.linspace(0, 1, 50), np.linspace(0, 1, 50)])
    assert near_front(points, np.full((50, 2), 10.0)).sum() == 2


def test_computed_metrics_are_minimised_and_need_not_be_objectives() -> None:
    assert check_objectives(("accuracy", "gmacs", "gbitops")) == ("accuracy", "gmacs", "gbitops")
    assert all(METRICS[name] == "minimize" for name in COMPUTED)
    request = {"model": "m.onnx", "data": "d", "out": "o", "limits": ("gbitops<=2", "size_mb<=3")}
    assert TuneRequest.build(request).computes == ("size_mb", "gbitops")
