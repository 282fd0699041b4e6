"""Support vector regression with a Gaussian kernel, its C chosen by cross-validation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVR

from qnas_plugin.predictors import JUDGED, LEARNED, Predictor, Scale, few
from qnas_plugin.space import Features

COSTS = (0.3, 1.0, 3.0, 10.0)


def create() -> Predictor:
    """An untrained predictor."""
    return SupportVectors()


class SupportVectors:
    """Sees interactions of variables that a linear model cannot; learns from ``LEARNED`` rows at most."""

    def fit(self, X: Features, y: npt.NDArray[np.float64]) -> None:
        """Learns from ``(m, f)`` features and ``(m,)`` values, ``m`` at least 2."""
        self._scale = Scale.of(y)
        self._model = SVR(gamma="scale", epsilon=0.1)
        if len(y) < 6:
            self._model.fit(X, self._scale.down(y))
            return
        search = GridSearchCV(self._model, {"C": COSTS}, cv=3, scoring="neg_mean_squared_error")
        rows = few(len(y), JUDGED)
        self._model = search.fit(X[rows], self._scale.down(y[rows])).best_estimator_
        if len(rows) < len(y):
            rows = few(len(y), LEARNED)
            self._model.fit(X[rows], self._scale.down(y[rows]))

    def predict(self, X: Features) -> npt.NDArray[np.float64]:
        """Values ``(m,)`` for ``(m, f)`` features."""
        return self._scale.up(self._model.predict(X))
