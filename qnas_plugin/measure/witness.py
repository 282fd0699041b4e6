"""What is believed of accuracy, from what was measured of each trial: a soft score beside right and wrong answers.

The accuracy of a network on a few hundred examples is mostly luck of the examples. A smooth score of the same outputs,
such as the probability of the label, has far less of it, but need not be about accuracy. So it has to prove itself: the
examples are halved at random several times, and over the trials the soft score on one half must predict the accuracy on
the other half better than the accuracy on the first half does. Where it does, accuracy is estimated from it by a line
through the trials; where not, accuracy stays what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

HALVINGS = 10
LEAST_TRIALS = 10
"""The soft score cannot prove itself on fewer."""


@dataclass(frozen=True)
class Corrected:
    """Estimates of accuracy.

    Args:
        accuracy: Of each trial, ``(m,)``.
        spread: Standard deviation of the error of each, beside what the errors of all have in common; 0 where there are
            too few trials to tell.
        witness: What they follow: the soft score, or the measured accuracy itself.
        soft_correlation: Over the trials, of the soft score on one half of the examples with accuracy on the other; the
            mean over the halvings. 0 where it cannot be told.
        accuracy_correlation: The same of accuracy on both halves.
        soft_reliability: The same of the soft score on both halves.
        slope: Accuracy for one unit of the soft score.
    """

    accuracy: Floats
    spread: float
    witness: Literal["soft", "accuracy"]
    soft_correlation: float
    accuracy_correlation: float
    soft_reliability: float
    slope: float


def halvings(examples: int) -> npt.NDArray[np.bool_]:
    """Which of the examples are in the first half, ``(HALVINGS, examples)``; the same for each call."""
    rng = np.random.default_rng(0)
    ranks = rng.random((HALVINGS, examples)).argsort(axis=1).argsort(axis=1)
    return ranks < examples // 2


def corrected(
    accuracy: Floats,
    soft: Floats | None,
    accuracy_halves: Floats,
    soft_halves: Floats | None,
    examples: int,
) -> Corrected:
    """Estimates of the accuracy of trials from what was measured of them.

    Args:
        accuracy: Mean scores of ``m`` trials on all examples, ``(m,)``.
        soft: Mean soft scores of the same outputs, ``(m,)``; None where the metric has none.
        accuracy_halves: Mean scores on the first half of each of the `halvings`, ``(m, HALVINGS)``.
        soft_halves: Mean soft scores on them, ``(m, HALVINGS)``.
        examples: How many there are.
    """
    m, first = len(accuracy), examples // 2
    if m < LEAST_TRIALS or first < 2:
        return Corrected(accuracy, 0.0, "accuracy", 0.0, 0.0, 0.0, 0.0)
    other = (examples * accuracy[:, None] - first * accuracy_halves) / (examples - first)
    own = _correlation(accuracy_halves, other)
    true_variance = max(_covariance(accuracy_halves, other), 0.0)
    noise = max(float(accuracy.var()) - true_variance, 0.0)
    if soft is None or soft_halves is None:
        return Corrected(accuracy, noise**0.5, "accuracy", 0.0, own, 0.0, 0.0)
    soft_other = (examples * soft[:, None] - first * soft_halves) / (examples - first)
    across, reliability = _correlation(soft_halves, other), _correlation(soft_halves, soft_other)
    slope = _covariance(soft_halves, other) / max(float(soft.var()), 1e-30)
    if across <= own or slope <= 0:
        return Corrected(accuracy, noise**0.5, "accuracy", across, own, reliability, slope)
    error = max(true_variance - slope**2 * float(soft.var()), 0.0)
    estimates = accuracy.mean() + slope * (soft - soft.mean())
    return Corrected(estimates, error**0.5, "soft", across, own, reliability, slope)


def _covariance(a: Floats, b: Floats) -> float:
    """The mean over halvings of the covariance over trials; ``(m, HALVINGS)`` each."""
    return float(((a - a.mean(axis=0)) * (b - b.mean(axis=0))).mean())


def _correlation(a: Floats, b: Floats) -> float:
    """The mean over halvings of the correlation over trials; 0 where one of them is constant."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    scale = np.sqrt((a**2).mean(axis=0) * (b**2).mean(axis=0))
    return float(np.mean((a * b).mean(axis=0) / np.maximum(scale, 1e-30)))
