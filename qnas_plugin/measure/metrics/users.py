"""Metrics of the user's: a function that gives scores, or an object with statistics and the value of their sums."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from qnas_plugin.errors import UsageError
from qnas_plugin.measure.metrics.metric import Floats, Mean, Metric, OfSums, Outputs, Scores
from qnas_plugin.objectives import Direction
from qnas_plugin.user_function import call, load_named


def user_metric(name: str) -> Metric:
    """The metric ``module:name``.

    A function gives scores in [0, 1] of the examples of a run, whose mean is the value. An object, or a class that is
    called without arguments, has ``statistics(outputs, labels)``, which gives ``(b, s)`` numbers, and ``value(sums)``,
    which gives the value of their sums ``(..., s)``; it may have ``direction``, "maximize" or "minimize", and
    ``ideal``.

    Raises:
        UsageError: It cannot be imported, or is neither.
    """
    found = load_named(name)
    if not (hasattr(found, "statistics") and hasattr(found, "value")):
        if not callable(found):
            raise UsageError(
                f"'{name}' is no function, but {type(found).__name__}, and has no statistics(outputs, labels) and "
                "value(sums)"
            )
        return Mean(partial(_scores, name, found))
    if isinstance(found, type):
        found = call(found, UsageError, f"the metric '{name}' failed")
    direction: Direction = getattr(found, "direction", "maximize")
    if direction not in ("maximize", "minimize"):
        raise UsageError(f"the direction of the metric '{name}' must be 'maximize' or 'minimize', got {direction!r}")
    ideal = float(getattr(found, "ideal", 1.0 if direction == "maximize" else 0.0))
    return OfSums(
        partial(_statistics, name, found),
        partial(_value, name, found),
        direction=direction,
        ideal=ideal,
        points=direction == "maximize" and ideal == 1.0,
    )


def _scores(name: str, function: Any, outputs: Outputs, labels: npt.NDArray[Any]) -> Scores:
    count = len(labels)
    scores = call(
        lambda: np.atleast_1d(np.asarray(function(outputs, labels), dtype=np.float64)),
        UsageError,
        f"the metric '{name}' failed",
    )
    if scores.shape != (count,) or not ((scores >= 0) & (scores <= 1)).all():
        raise UsageError(
            f"the metric '{name}' must give {count} scores in [0, 1], one for each example; got "
            f"{np.array2string(scores, threshold=4)} of shape {scores.shape}"
        )
    return scores


def _statistics(name: str, metric: Any, outputs: Outputs, labels: npt.NDArray[Any]) -> Floats:
    found = call(
        lambda: np.asarray(metric.statistics(outputs, labels), dtype=np.float64),
        UsageError,
        f"the metric '{name}' failed",
    )
    if found.ndim != 2 or len(found) != len(labels) or not np.isfinite(found).all():
        raise UsageError(
            f"the statistics of the metric '{name}' must be finite numbers of {len(labels)} examples, "
            f"({len(labels)}, s); got shape {found.shape}"
        )
    return found


def _value(name: str, metric: Any, sums: Floats) -> Floats:
    def value() -> Floats:
        with np.errstate(all="ignore"):
            return np.asarray(metric.value(sums), dtype=np.float64)

    found = call(value, UsageError, f"the metric '{name}' failed")
    if found.shape != sums.shape[:-1]:
        raise UsageError(
            f"value of the metric '{name}' must take sums {sums.shape} to values {sums.shape[:-1]}, index them as "
            f"sums[..., i]; got shape {found.shape}"
        )
    return found
