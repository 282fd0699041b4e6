"""The seam of the metrics: numbers of single examples, and what all examples together are worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qnas_plugin.objectives import Direction

Floats = npt.NDArray[np.float64]

Outputs = Mapping[str, npt.NDArray[Any]]
"""Outputs of one run by name."""

Scores = Floats
"""One number for each example; their mean is the value of the metric."""


class Metric(Protocol):
    """What a model is worth on some examples.

    Whatever compares models does so example by example, on *scores*, whose mean is the value. Those of a mean are what
    it is the mean of; `OfSums` has them for a function of sums.
    """

    @property
    def direction(self) -> Direction:
        """Whether more or less is better."""
        ...

    @property
    def ideal(self) -> float:
        """The best possible value."""
        ...

    @property
    def of_reference(self) -> bool:
        """Whether outputs are compared with those of the FP32 model; otherwise with labels."""
        ...

    @property
    def mean(self) -> bool:
        """Whether scores are those of the examples themselves, in [0, 1]; otherwise they are so to first order."""
        ...

    @property
    def points(self) -> bool:
        """Whether differences are told in points, hundredths of the range from 0 to 1."""
        ...

    def statistics(self, outputs: Outputs, expected: Any) -> Floats:
        """What must be known of each of ``b`` examples, ``(b, s)``.

        Args:
            outputs: Of a run.
            expected: Labels ``(b, ...)``, or the outputs of the FP32 model.

        Raises:
            UsageError: The outputs do not fit.
        """
        ...

    def scores(self, statistics: Floats) -> Scores:
        """The scores ``(n,)`` of all examples, by their statistics ``(n, s)``."""
        ...

    def soft(self, outputs: Outputs, expected: Any) -> Scores | None:
        """A smooth score ``(b,)`` of each example, see ``measure.witness``; None where there is none."""
        ...


@dataclass(frozen=True)
class Mean:
    """The mean of a score in [0, 1], of which more is better.

    Args:
        score: Outputs of a run and what is expected to scores ``(b,)``.
        soft_score: The same to soft scores.
        of_reference: Whether outputs are compared with those of the FP32 model.
    """

    score: Callable[[Outputs, Any], Scores]
    soft_score: Callable[[Outputs, Any], Scores | None] | None = None
    of_reference: bool = False
    direction: Direction = "maximize"
    ideal: float = 1.0
    mean: bool = True
    points: bool = True

    def statistics(self, outputs: Outputs, expected: Any) -> Floats:
        """The score of each example, ``(b, 1)``."""
        return self.score(outputs, expected)[:, None]

    def scores(self, statistics: Floats) -> Scores:
        """The scores themselves."""
        return np.ascontiguousarray(statistics[:, 0])

    def soft(self, outputs: Outputs, expected: Any) -> Scores | None:
        """The soft scores, where there are some."""
        return None if self.soft_score is None else self.soft_score(outputs, expected)


@dataclass(frozen=True)
class OfSums:
    """A function of sums over examples, such as F1.

    Args:
        statistic: Outputs of a run and what is expected to what is summed, ``(b, s)``.
        value: Sums ``(..., s)`` to values ``(...)``. It may be nan where there are too few examples.
        soft_score: Outputs of a run and what is expected to soft scores ``(b,)``.
        direction: Whether more or less is better.
        ideal: The best possible value.
        points: Whether differences are told in points.
    """

    statistic: Callable[[Outputs, Any], Floats]
    value: Callable[[Floats], Floats]
    soft_score: Callable[[Outputs, Any], Scores | None] | None = None
    direction: Direction = "maximize"
    ideal: float = 1.0
    points: bool = True
    of_reference: bool = False
    mean: bool = False

    def statistics(self, outputs: Outputs, expected: Any) -> Floats:
        """What is summed."""
        return self.statistic(outputs, expected)

    def scores(self, statistics: Floats) -> Scores:
        """The value, and to first order what each example adds to it: by how much it falls without that example."""
        sums = statistics.sum(axis=0)
        with np.errstate(all="ignore"):
            return spread_over(float(self.value(sums)), np.asarray(self.value(sums - statistics)))

    def soft(self, outputs: Outputs, expected: Any) -> Scores | None:
        """The soft scores, where there are some."""
        return None if self.soft_score is None else self.soft_score(outputs, expected)


def spread_over(whole: float, without: Floats) -> Scores:
    """Scores whose mean is the value of all examples: the jackknife's (Efron and Stein 1981), moved to that mean.

    Args:
        whole: The value of all.
        without: The value without each of the examples, ``(n,)``; an example without which there is none adds nothing.
    """
    influence = (len(without) - 1) * (whole - np.where(np.isfinite(without), without, whole))
    return np.asarray(whole + (influence - influence.mean()))
