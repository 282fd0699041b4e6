"""The seam of the predictors: regression from one-hot features to one metric.

A predictor is a module of this folder (or of an entry point ``qnas_plugin.predictors``) with one function:

    create() -> Predictor
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from qnas_plugin.space import Features


class Predictor(Protocol):
    """Learns one metric from few candidates; what counts is the order of its predictions."""

    def fit(self, X: Features, y: npt.NDArray[np.float64]) -> None:
        """Learns from ``(m, f)`` features and ``(m,)`` values."""
        ...

    def predict(self, X: Features) -> npt.NDArray[np.float64]:
        """Values ``(m,)`` for ``(m, f)`` features."""
        ...
