"""Ridge regression: linear in the one-hot features, its penalty chosen by leave-one-out error."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import RidgeCV

from qnas_plugin.predictors import Predictor, Scale
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
        self._model = RidgeCV(PENALTIES).fit(X, self._scale.down(y))

    def predict(self, X: Features) -> npt.NDArray[np.float64]:
        """Values ``(m,)`` for ``(m, f)`` features."""
        return self._scale.up(self._model.predict(X))
