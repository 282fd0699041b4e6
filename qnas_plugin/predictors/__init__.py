"""The seam of the predictors: regression from one-hot features to one metric.

A predictor is a module of this folder (or of an entry point ``qnas_plugin.predictors``) with one function:

    create() -> Predictor
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from qnas_plugin import registry
from qnas_plugin.space import Features, Genes, SearchSpace

FOLDS = 5
JUDGED = 300
"""Rows on which predictors and their settings are compared at most: more cost more and hardly change what is best."""
LEARNED = 1000
"""Rows that a predictor learns from at most whose cost grows faster than their number."""


class Predictor(Protocol):
    """Learns one metric from few candidates; what counts is the order of its predictions."""

    def fit(self, X: Features, y: npt.NDArray[np.float64]) -> None:
        """Learns from ``(m, f)`` features and ``(m,)`` values, ``m`` at least 2."""
        ...

    def predict(self, X: Features) -> npt.NDArray[np.float64]:
        """Values ``(m,)`` for ``(m, f)`` features."""
        ...


@dataclass(frozen=True)
class Scale:
    """Moves values to mean 0 and standard deviation 1, and back."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, y: npt.NDArray[np.float64]) -> Scale:
        """The scale of these values; constant ones are only moved."""
        return cls(float(y.mean()), float(y.std()) or 1.0)

    def down(self, y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Values to standard ones."""
        return (y - self.mean) / self.deviation

    def up(self, y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Standard values back to values."""
        return y * self.deviation + self.mean


def step(y: npt.NDArray[np.float64]) -> float:
    """The step to which predictions of a metric are rounded: a power of ten, about 1e-6 of the range of its values.

    The last bits of a prediction differ between CPUs, as their BLAS kernels add in another order. What is ranked, or
    compared, is rounded first, so that equal metrics lead to equal proposals.

    Args:
        y: Known values ``(m,)``, ``m`` at least 1.
    """
    span = float(np.ptp(y)) or float(np.abs(y).max()) or 1.0
    return float(10.0 ** (np.floor(np.log10(span)) - 5))


def rounded(values: npt.NDArray[np.float64], step: float) -> npt.NDArray[np.float64]:
    """Values ``(m,)`` at whole multiples of a step."""
    steps: npt.NDArray[np.float64] = np.round(values / step)
    return steps * step


def features(space: SearchSpace, genes: Genes) -> Features:
    """What predictors learn from: one-hot features ``(m, f)``, and their sums over variables that differ in a number.

    ``layer.0.heads`` and ``layer.1.heads`` do: with their sum beside them, what all layers share is learned from few
    rows, and what one layer has of its own is a correction.
    """
    one_hot = space.features(genes)
    kinds = [
        (re.sub(r"\d+", "*", variable.name), choice) for variable in space.variables for choice in variable.choices
    ]
    columns = {kind: i for i, kind in enumerate(dict.fromkeys(kinds))}
    sums = np.zeros((one_hot.shape[1], len(columns)))
    sums[np.arange(len(kinds)), [columns[kind] for kind in kinds]] = 1.0
    return np.hstack([one_hot, one_hot @ sums[:, sums.sum(axis=0) > 1]])


def choose(
    names: Sequence[str], X: Features, y: npt.NDArray[np.float64], rng: np.random.Generator
) -> tuple[Predictor, float]:
    """Trains the predictor that ranks best.

    Args:
        names: Registered predictors; the first one wins a tie.
        X: One-hot features ``(m, f)``, ``m`` at least 3.
        y: Values ``(m,)``.
        rng: Draws the folds.

    Returns:
        The predictor, trained on all rows, and the Kendall tau of its cross-validated predictions of ``JUDGED`` rows at
        most; 0 where they or the values are constant.
    """
    rows = few(len(y), JUDGED)
    folds = np.array_split(rng.permutation(len(rows)), min(FOLDS, len(rows)))
    taus = [_tau(name, X[rows], y[rows], folds) for name in names]
    best = int(np.argmax(taus))
    predictor: Predictor = registry.load("predictors", names[best]).create()
    predictor.fit(X, y)
    return predictor, taus[best]


def few(count: int, most: int) -> npt.NDArray[np.int64]:
    """Positions of at most so many of ``count`` rows: half of them are the newest, the others are spread over the rest.

    Later trials are nearer to the front, and the earlier ones tell how the rest of the space is.
    """
    if count <= most:
        return np.arange(count)
    newest = np.arange(count - most // 2, count)
    return np.concatenate([np.linspace(0, newest[0] - 1, most - len(newest)).astype(np.int64), newest])


def _tau(name: str, X: Features, y: npt.NDArray[np.float64], folds: Sequence[npt.NDArray[np.int64]]) -> float:
    from scipy.stats import kendalltau

    predicted = np.empty(len(y))
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(y)), fold)
        predictor: Predictor = registry.load("predictors", name).create()
        predictor.fit(X[rest], y[rest])
        predicted[fold] = predictor.predict(X[fold])
    return float(np.nan_to_num(kendalltau(rounded(predicted, step(y)), y).statistic))
