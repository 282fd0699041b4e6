"""LINAS with one of its parts taken away or replaced: what each one is worth."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, DotProduct, WhiteKernel

from benchmarks.search.contenders import CONTENDERS, Contender, Evaluate, registered
from qnas_plugin import predictors
from qnas_plugin.objectives import losses, non_dominated, violations
from qnas_plugin.predictors import Predictor, Scale, ridge, svr
from qnas_plugin.search import Problem, linas
from qnas_plugin.search._evolution import Scores
from qnas_plugin.search._generations import first_generation
from qnas_plugin.space import Genes, SearchSpace


def changed(**attributes: Any) -> Contender:
    """LINAS with other attributes of its module."""

    def run(problem: Problem, evaluate: Evaluate, seed: int) -> None:
        with ExitStack() as stack:
            for name, value in attributes.items():
                stack.enter_context(patch.object(linas, name, value))
            registered("linas")(problem, evaluate, seed)

    return run


def with_features(features: Callable[[SearchSpace, Genes], Any]) -> Contender:
    """LINAS whose predictors learn from other features."""

    def run(problem: Problem, evaluate: Evaluate, seed: int) -> None:
        with patch.object(predictors, "features", features):
            registered("linas")(problem, evaluate, seed)

    return run


def predicted_by(create: Callable[[], Predictor]) -> Contender:
    """LINAS with one predictor in all cases."""

    def choose(names: Sequence[str], X: Any, y: Any, rng: np.random.Generator) -> tuple[Predictor, float]:
        predictor = create()
        predictor.fit(X, y)
        return predictor, 0.0

    def run(problem: Problem, evaluate: Evaluate, seed: int) -> None:
        with patch.object(predictors, "choose", choose):
            registered("linas")(problem, evaluate, seed)

    return run


class Trees:
    """Extremely randomised trees (Geurts et al. 2006).

    Args:
        count: Of the trees.
    """

    def __init__(self, count: int = 100) -> None:
        self.count = count

    def fit(self, X: Any, y: Any) -> None:
        """Learns from ``(m, f)`` features and ``(m,)`` values."""
        self._scale = Scale.of(y)
        self._model = ExtraTreesRegressor(self.count, max_features=0.3, random_state=0).fit(X, self._scale.down(y))

    def predict(self, X: Any) -> Any:
        """Values ``(m,)`` for ``(m, f)`` features."""
        # Five times faster than the forest's own predict, which checks the features and starts threads for each tree.
        X = np.ascontiguousarray(X, np.float32)
        return self._scale.up(np.mean([tree.tree_.predict(X)[:, 0] for tree in self._model.estimators_], axis=0))


class MeanOfThree:
    """The mean of ridge, SVR and trees."""

    def __init__(self) -> None:
        self._members: list[Predictor] = [ridge.create(), svr.create(), Trees(50)]

    def fit(self, X: Any, y: Any) -> None:
        """Learns from ``(m, f)`` features and ``(m,)`` values."""
        for member in self._members:
            member.fit(X, y)

    def predict(self, X: Any) -> Any:
        """Values ``(m,)`` for ``(m, f)`` features."""
        return np.mean([member.predict(X) for member in self._members], axis=0)


class GaussianProcess:
    """A linear kernel and a Gaussian one, both and the noise by marginal likelihood.

    Args:
        optimism: So many standard deviations are added to what it predicts.
    """

    def __init__(self, optimism: float = 0.0) -> None:
        self.optimism = optimism

    def fit(self, X: Any, y: Any) -> None:
        """Learns from ``(m, f)`` features and ``(m,)`` values."""
        self._scale = Scale.of(y)
        kernel = 0.1 * DotProduct(1.0) + 0.5 * RBF(5.0, (1.0, 50.0)) + WhiteKernel(0.2, (1e-3, 2.0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a bound is where the noise may end
            self._model = GaussianProcessRegressor(kernel).fit(X, self._scale.down(y))

    def predict(self, X: Any) -> Any:
        """Values ``(m,)`` for ``(m, f)`` features."""
        if not self.optimism:
            return self._scale.up(self._model.predict(X))
        mean, deviation = self._model.predict(X, return_std=True)
        return self._scale.up(mean + self.optimism * deviation)


def measured_incumbents(problem: Problem, evaluate: Evaluate, seed: int) -> None:
    """LINAS that chooses by what the trials measured, where it takes the predictor's own values for them."""
    known: list[Scores] = []
    fitted, chosen = linas.Model.fitted, linas.most_gain_first

    def remembered(problem: Problem, genes: Genes, metrics: Sequence[Mapping[str, float]], rng: Any) -> linas.Model:
        known.append((losses(metrics, problem.objectives), violations(metrics, problem.limits)))
        return fitted(problem, genes, metrics, rng)

    def by_measured(scores: Scores, _: Scores) -> Iterator[int]:
        return chosen(scores, known[-1])

    with patch.object(linas.Model, "fitted", remembered), patch.object(linas, "most_gain_first", by_measured):
        registered("linas")(problem, evaluate, seed)


def farthest_first(scores: Scores, _: Scores) -> Iterator[int]:
    """The predicted front alone, each time the point that is farthest from those before it."""
    front = np.flatnonzero(non_dominated(scores[0]))
    points = scores[0][front]
    span = np.ptp(points, axis=0)
    points = points / np.where(span > 0, span, 1.0)
    distance = np.full(len(points), np.inf)
    next_ = int(np.argmin(points[:, 0]))
    for _ in range(len(points)):
        yield int(front[next_])
        distance = np.minimum(distance, np.linalg.norm(points - points[next_], axis=1))
        distance[next_] = -1.0
        next_ = int(np.argmax(distance))


ABLATIONS: dict[str, Contender] = {
    "linas": CONTENDERS["linas"],
    "one-hot features alone": with_features(lambda space, genes: space.features(genes)),
    "ridge alone": changed(PREDICTORS=("ridge",)),
    "SVR alone": changed(PREDICTORS=("svr",)),
    "trees": predicted_by(Trees),
    "mean of ridge, SVR and trees": predicted_by(MeanOfThree),
    "Gaussian process": predicted_by(GaussianProcess),
    "Gaussian process, optimistic": predicted_by(partial(GaussianProcess, 1.0)),
    "measured incumbents": measured_incumbents,
    "farthest first": changed(most_gain_first=farthest_first),
    "batches of 10": changed(BATCHES=5),
    "batches of 25": changed(BATCHES=2),
    "batches of 50": changed(BATCHES=1),
    "start of 20": changed(START=20),
    "start of 50": changed(START=50),
    "start without strata": changed(stratified_start=first_generation),
    "no networks set one by one": changed(one_by_one=lambda model, genes, rng: genes[:0]),
}
