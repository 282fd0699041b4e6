"""What every predictor promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from qnas_plugin import registry
from qnas_plugin.predictors import Predictor
from qnas_plugin.space import Features
from qnas_plugin.testing._contract import Contract
from qnas_plugin.testing._spaces import encoder_space

Floats = npt.NDArray[np.float64]


def create(name: str) -> Predictor:
    """A fresh one."""
    predictor: Predictor = registry.load("predictors", name).create()
    return predictor


def sampled(count: int, seed: int) -> tuple[Features, Floats]:
    """Features of BERT-base's space and additive accuracies near 0.9 that differ in the third digit."""
    space = encoder_space()
    X = space.features(space.sample(count, np.random.default_rng(seed)))
    worth = np.random.default_rng(7).normal(size=X.shape[1])
    return X, 0.9 + 0.001 * (X @ worth)


class PredictorContract(Contract):
    """Predictors rank unseen candidates, are deterministic, and work with what a search has: few and equal values."""

    def test_predict_ranks_unseen_candidates(self, name: str) -> None:
        from scipy.stats import kendalltau

        predictor = create(name)
        predictor.fit(*sampled(200, seed=0))
        X, y = sampled(200, seed=1)
        predicted = predictor.predict(X)
        assert predicted.shape == y.shape
        assert kendalltau(predicted, y).statistic > 0.5
        assert abs(predicted.mean() - y.mean()) < 3 * y.std()

    def test_fit_is_deterministic_and_independent_of_units(self, name: str) -> None:
        X, y = sampled(60, seed=0)
        one, other, percent = create(name), create(name), create(name)
        one.fit(X, y)
        other.fit(X, y)
        percent.fit(X, 100 * y)
        assert (one.predict(X) == other.predict(X)).all()
        np.testing.assert_allclose(percent.predict(X), 100 * one.predict(X), rtol=1e-6)

    def test_fit_gives_the_constant_when_all_values_are_equal(self, name: str) -> None:
        X, _ = sampled(20, seed=0)
        predictor = create(name)
        predictor.fit(X, np.full(20, 0.75))
        np.testing.assert_allclose(predictor.predict(X), np.full(20, 0.75), rtol=1e-6)

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("rows", [2, 3, 6])
    def test_fit_works_when_rows_are_few(self, name: str, rows: int) -> None:
        X, y = sampled(rows, seed=0)
        predictor = create(name)
        predictor.fit(X, y)
        predicted: np.ndarray[Any, Any] = predictor.predict(X)
        assert np.isfinite(predicted).all()
