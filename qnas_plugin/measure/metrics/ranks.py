"""Spearman's rank correlation of one number that a model gives with one label, over all examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from qnas_plugin.errors import UsageError
from qnas_plugin.measure.metrics.metric import Floats, Outputs, Scores, spread_over
from qnas_plugin.measure.metrics.predictions import OWN, ordered
from qnas_plugin.objectives import Direction

AT_ONCE = 256
"""Examples that are compared with all others at a time."""


@dataclass(frozen=True)
class Spearman:
    """Ranks are those among all examples, so that no sum over examples tells it: its statistics are the two numbers."""

    direction: Direction = "maximize"
    ideal: float = 1.0
    of_reference: bool = False
    mean: bool = False
    points: bool = True

    def statistics(self, outputs: Outputs, expected: npt.NDArray[Any]) -> Floats:
        """What is given and what is right, ``(b, 2)``.

        Raises:
            UsageError: Labels are not one number for each example, or no output of floats is.
        """
        labels = expected.reshape(len(expected), -1)
        if labels.shape[1] != 1 or labels.dtype.kind not in "biuf":
            raise UsageError(f"spearman needs one number as label of each example, got {expected.shape} of them; {OWN}")
        for values in ordered(outputs).values():
            if values.dtype.kind in "fiu" and values.size == len(labels) and values.shape[:1] == labels.shape[:1]:
                return np.column_stack([values.reshape(-1), labels[:, 0]]).astype(np.float64)
        raise UsageError(
            f"spearman needs an output of one number for each example, (examples,) or (examples, 1); {OWN}"
        )

    def scores(self, statistics: Floats) -> Scores:
        """As those of `OfSums`: ranks are counted anew without each example. 0 where all numbers are equal."""
        given, right = statistics.T
        a, b, count = rankdata(given), rankdata(right), len(given)
        whole = _correlation(a @ b, a @ a, b @ b, count)
        # Without an example each rank above its own falls by 1, and each equal one by 1/2.
        fallen = _both_fall(given, right)
        products = a @ b - a * b - _falls(given, b) - _falls(right, a) + fallen
        squares = [
            rank @ rank - rank**2 - 2 * _falls(values, rank) + _falls(values, np.ones(count), equal=0.25)
            for values, rank in ((given, a), (right, b))
        ]
        return spread_over(float(whole), _correlation(products, squares[0], squares[1], count - 1))

    def soft(self, outputs: Outputs, expected: Any) -> Scores | None:
        """There are none."""
        return None


def _correlation(products: Any, squares: Any, other_squares: Any, count: int) -> Any:
    """Of two rankings of so many examples, by the sums over them; 0 where one ranks all alike."""
    mean = count * ((count + 1) / 2) ** 2
    scale = np.sqrt(np.maximum((squares - mean) * (other_squares - mean), 0.0))
    return np.where(scale > 1e-9, (products - mean) / np.where(scale > 1e-9, scale, 1.0), 0.0)


def _falls(values: Floats, weights: Floats, equal: float = 0.5) -> Floats:
    """For each example the weights of those of larger value, and a part of the weights of others of equal value."""
    _, group = np.unique(values, return_inverse=True)
    sums = np.bincount(group, weights)
    return np.asarray((sums[::-1].cumsum()[::-1] - sums)[group] + equal * (sums[group] - weights))


def _both_fall(values: Floats, others: Floats) -> Floats:
    """For each example the sum over the others of the product of what they fall by in both rankings."""
    found = []
    for left in np.array_split(np.arange(len(values)), -(-len(values) // AT_ONCE)):
        twice = [(x > x[left, None]).view(np.uint8) + (x >= x[left, None]).view(np.uint8) for x in (values, others)]
        found.append((twice[0] * twice[1]).sum(axis=1) / 4 - 0.25)  # itself is equal in both
    return np.concatenate(found)
