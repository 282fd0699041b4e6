"""How well predictors rank unseen candidates, against the number of candidates that they learned from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qnas_plugin.predictors import Predictor
from qnas_plugin.space import Features

REPEATS = 10
LEAST_UNSEEN = 20
"""So many candidates are always left to be predicted."""


@dataclass(frozen=True)
class Point:
    """One predictor at one number of candidates; medians over random choices of them.

    Args:
        name: The predictor.
        rows: How many candidates it learned from.
        tau: Kendall's tau of predicted and measured order of the others; that of a constant is 0.
        error: Mean absolute error.
        constant: That of the mean of what was learned from.
        mape: Mean absolute error relative to what was measured: what says little where all values are near each other.
    """

    name: str
    rows: int
    tau: float
    error: float
    constant: float
    mape: float


def curve(
    creators: Mapping[str, Callable[[], Predictor]],
    X: Features,
    y: npt.NDArray[np.float64],
    sizes: Sequence[int],
    rng: np.random.Generator,
) -> Iterator[Point]:
    """The points of some predictors at those sizes that leave enough to predict.

    Args:
        creators: What makes each of them, untrained.
        X: Features ``(m, f)``.
        y: Values ``(m,)``.
        sizes: Numbers of candidates to learn from.
        rng: Draws them.
    """
    from scipy.stats import kendalltau

    for rows in (size for size in sizes if size <= len(y) - LEAST_UNSEEN):
        found: dict[str, list[tuple[float, ...]]] = {name: [] for name in creators}
        for _ in range(REPEATS):
            order = rng.permutation(len(y))
            seen, unseen = order[:rows], order[rows:]
            constant = float(np.abs(y[seen].mean() - y[unseen]).mean())
            for name, create in creators.items():
                predictor = create()
                predictor.fit(X[seen], y[seen])
                predicted = predictor.predict(X[unseen])
                tau = float(np.nan_to_num(kendalltau(predicted, y[unseen]).statistic))
                error = np.abs(predicted - y[unseen])
                relative = error / np.maximum(np.abs(y[unseen]), 1e-12)
                found[name].append((tau, float(error.mean()), constant, float(relative.mean())))
        for name in creators:
            yield Point(name, rows, *np.median(found[name], axis=0).tolist())
