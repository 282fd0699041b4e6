"""Ridge regression: linear in the one-hot features, its penalty chosen by leave-one-out error."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import Ridge as LinearRidge
from sklearn.linear_model import RidgeCV

from qnas_plugin.predictors import LEARNED, Predictor, Scale, few
from qnas_plugin.space import Features

PENALTIES = np.logspace(-3, 4, 29)


def create() -> Predictor:
    """An untrained predictor."""
    return Ridge()


class Ridge:
    """Linear regression with a penalty from a wide grid; leave-one-out errors come in closed form."""

    def fit(self, X: Features, y: npt.NDArray[np.float64]) -> None:
        """Learns from ``(m, f)`` features and ``(m,)`` values, ``m`` at least 2."""
        self._scale = Scale.of(y)
        rows = few(len(y), LEARNED)
        self._model = RidgeCV(PENALTIES).fit(X[rows], self._scale.down(y[rows]))
        if len(rows) < len(y):  # noise over the size of effects, the best penalty does not depend on the number of rows
            self._model = LinearRidge(self._model.alpha_, solver="cholesky").fit(X, self._scale.down(y))

    def predict(self, X: Features) -> npt.NDArray[np.float64]:
        """Values ``(m,)`` for ``(m, f)`` features."""
        return self._scale.up(self._model.predict(X))
