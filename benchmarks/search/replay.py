"""Recorded candidates, replayed: a problem whose evaluations cost nothing and are the same every time.

Latency and size follow from the candidate alone: the latency table's, and the weights' megabytes. Accuracy is what was
recorded. A candidate that was not recorded gets that of a *surrogate* fitted on all records, plus an error of its own,
as large as the surrogate's cross-validated one and drawn from the candidate's key: real candidates differ from any
smooth function, and a search that meets none of that looks better than it is. The surrogate is a mean of regression
trees and neural networks; it shares nothing with the predictors that searches use.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor

from benchmarks.search.spaces import Recorded
from qnas_plugin.objectives import hypervolume, signs
from qnas_plugin.search import Problem, _evolution
from qnas_plugin.search._generations import spread_genotypes
from qnas_plugin.space import Candidate, Features, Genes, Precision, SearchSpace

Floats = npt.NDArray[np.float64]
FOLDS = 5
BEST_GENERATIONS = 400


@dataclass(frozen=True, eq=False)
class Replay:
    """The records of a space as a problem to search.

    Args:
        recorded: What was recorded.
        objectives: Names of metrics, two or three.
    """

    recorded: Recorded
    objectives: tuple[str, ...] = ("accuracy", "latency_ms", "size_mb")
    _known: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    @property
    def space(self) -> SearchSpace:
        """The variables."""
        return self.recorded.shape.space

    @cached_property
    def problem(self) -> Problem:
        """What algorithms are given: latency and size are exact."""
        return Problem(
            self.space, self.objectives, exact={"latency_ms": self.recorded.latency, "size_mb": self.size_mb}
        )

    def metrics(self, candidate: Candidate) -> Mapping[str, float]:
        """The metrics of a candidate."""
        genes = self.space.encode(candidate)[None]
        return {"accuracy": self._accuracy(candidate, genes)} | {
            name: float(exact(genes)[0]) for name, exact in self.problem.exact.items()
        }

    def losses(self, genes: Genes, *, smooth: bool = False) -> Floats:
        """The losses ``(m, k)`` of canonical genotypes ``(m, n)``; with the surrogate's accuracies, if smooth."""
        columns = {name: exact(genes) for name, exact in self.problem.exact.items()}
        if smooth:
            columns["accuracy"] = self.surrogate.predict(self.space.features(genes))
        else:
            columns["accuracy"] = np.array([self._accuracy(self.space.decode(row), row[None]) for row in genes])
        return np.column_stack([columns[name] for name in self.objectives]) * signs(self.objectives)

    def size_mb(self, genes: Genes) -> Floats:
        """Megabytes ``(m,)`` of canonical genotypes ``(m, n)``."""
        return self.recorded.size_mb(genes)

    @cached_property
    def genes(self) -> Genes:
        """Canonical genotypes ``(m, n)`` of the records."""
        return self._data["genes"].astype(np.int64)

    @cached_property
    def accuracies(self) -> Mapping[str, Floats]:
        """The accuracies ``(m,)`` of the records on the search and the report split."""
        return {split: self._right(split).mean(axis=1) for split in ("search", "report")}

    @cached_property
    def right(self) -> npt.NDArray[np.bool_]:
        """Which examples of the search split each record got right, ``(m, examples)``."""
        return self._right("search") == 1

    @property
    def answers(self) -> npt.NDArray[np.bool_]:
        """Which examples each record got right, those of the search split and then those of the report split."""
        return np.hstack([self._right(split) for split in ("search", "report")]) == 1

    @property
    def probabilities(self) -> Floats | None:
        """The probability of the label for the same ``(m, examples)``; None where it was not recorded."""
        if "soft_search" not in self._data:
            return None
        return np.hstack([self._data[f"soft_{split}"] for split in ("search", "report")]) / 255

    @cached_property
    def covering(self) -> int:
        """How many of the records, the first ones, cover the space; the others are near predicted fronts."""
        return min(int(self._about["covering"]), len(self.genes))

    @property
    def recorded_mb(self) -> Floats:
        """Megabytes ``(m,)`` of the files of the records."""
        return self._data["size_mb"]

    @cached_property
    def surrogate(self) -> Surrogate:
        """Fitted on all records."""
        return Surrogate.fitted(self.space.features(self.genes), self.accuracies["search"])

    @cached_property
    def quality(self) -> Quality:
        """How well the surrogate predicts records that it was not fitted to."""
        return cross_validated(self.space.features(self.genes), self.accuracies["search"])

    @cached_property
    def reference(self) -> Floats:
        """Losses ``(k,)`` that hypervolumes are taken to: the worst of the four corners of the space."""
        corners = [self.space.corner(size, precision) for size in ("smallest", "largest") for precision in Precision]
        points: Floats = self.losses(np.array([self.space.encode(corner) for corner in corners]), smooth=True)
        return points.max(axis=0)

    @cached_property
    def best_volume(self) -> float:
        """The hypervolume of the best known front by the surrogate: what a long search of it finds."""

        def score(genes: Genes) -> _evolution.Scores:
            return self.losses(self.space.canonical(genes), smooth=True), np.zeros((len(genes), 0))

        rng = np.random.default_rng(0)
        start = np.concatenate([self.genes, spread_genotypes(self.space, 500, rng)])
        best = _evolution.minimise(self.space, score, start, population=400, generations=BEST_GENERATIONS, rng=rng)
        return hypervolume(self.losses(self.space.canonical(best), smooth=True), self.reference)

    def _accuracy(self, candidate: Candidate, genes: Genes) -> float:
        if candidate.key in self._recorded:
            return self._recorded[candidate.key]
        if candidate.key not in self._known:
            error = np.random.default_rng(int(candidate.key, 16)).normal(0, self.quality.error)
            accuracy = float(self.surrogate.predict(self.space.features(genes))[0]) + error
            count = self._about["examples"]["search"]
            self._known[candidate.key] = float(np.clip(np.round(accuracy * count) / count, 0, 1))
        return self._known[candidate.key]

    @cached_property
    def _recorded(self) -> dict[str, float]:
        keys = (self.space.decode(row).key for row in self.genes)
        return dict(zip(keys, self.accuracies["search"].tolist(), strict=True))

    def _right(self, split: str) -> npt.NDArray[np.uint8]:
        return np.unpackbits(self._data[split], axis=1, count=self._about["examples"][split])

    @cached_property
    def _about(self) -> dict[str, Any]:
        about: dict[str, Any] = json.loads(str(self._data["about"]))
        return about

    @cached_property
    def _data(self) -> dict[str, npt.NDArray[Any]]:
        with np.load(self.recorded.records, allow_pickle=False) as stored:
            return dict(stored)


@dataclass(frozen=True)
class Quality:
    """Of cross-validated predictions.

    Args:
        tau: Kendall's, with the recorded accuracies.
        error: Standard deviation of the difference, in accuracy.
        spread: Standard deviation of the recorded accuracies.
    """

    tau: float
    error: float
    spread: float


@dataclass(frozen=True, eq=False)
class Surrogate:
    """The mean of several regressors of different kinds."""

    models: tuple[Any, ...]
    centre: float
    scale: float

    @classmethod
    def fitted(cls, X: Features, y: Floats) -> Surrogate:
        """Fits to features ``(m, f)`` and accuracies ``(m,)``."""
        centre, scale = float(y.mean()), float(y.std())
        models = (
            HistGradientBoostingRegressor(max_iter=300, learning_rate=0.05, max_leaf_nodes=12, random_state=0),
            *(
                MLPRegressor(
                    hidden_layer_sizes=(64, 64), alpha=3.0, learning_rate_init=3e-3, max_iter=60, random_state=i
                )
                for i in range(2)
            ),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # so few epochs regularise
            for model in models:
                model.fit(X, (y - centre) / scale)
        return cls(models, centre, scale)

    def predict(self, X: Features) -> Floats:
        """Accuracies ``(m,)`` for features ``(m, f)``."""
        predicted: Floats = np.mean([model.predict(X) for model in self.models], axis=0)
        return predicted * self.scale + self.centre


def cross_validated(X: Features, y: Floats) -> Quality:
    """How well a surrogate predicts what it was not fitted to."""
    predicted = np.empty(len(y))
    for fold in np.array_split(np.random.default_rng(0).permutation(len(y)), FOLDS):
        rest = np.setdiff1d(np.arange(len(y)), fold)
        predicted[fold] = Surrogate.fitted(X[rest], y[rest]).predict(X[fold])
    return Quality(float(kendalltau(predicted, y).statistic), float((predicted - y).std()), float(y.std()))
